"""Boxes: each layout read, the picture's fit undone, one box a thing, nothing trusted."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from splitrt.core.boxes import Boxes, decode, found, iou, placing
from splitrt.core.layouts import Layout
from splitrt.core.manifest import Manifest
from splitrt.core.result import Result
from splitrt.core.sizes import Placing, Sizes
from splitrt.errors import ModelError, PacketError
from tests.core.test_manifest import edited

SAME = Placing((64, 96), (64, 96), (64, 96))
PLAIN = Layout(kind="boxes")


def plain(boxes: list, scores: list, labels: list) -> dict[str, np.ndarray]:
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return {"boxes": corners, "scores": np.array(scores), "labels": np.array(labels)}


def yolox(size: tuple[int, int], classes: int = 3) -> np.ndarray:
    count = sum((size[0] // stride) * (size[1] // stride) for stride in (8, 16, 32))
    return np.zeros((count, 5 + classes), np.float32)


def test_yolox_boxes_lie_at_their_level_and_place():
    raw = yolox((64, 96))
    raw[2 * 12 + 5] = [0.5, 0.25, np.log(2), 0, 0.9, 0, 0.8, 0]  # stride 8: row 2, column 5
    raw[8 * 12 + 4 * 6] = [0, 0, 0, 0, 0.9, 0.9, 0, 0]  # the first of stride 32
    boxes = decode(Layout(kind="yolox"), {"out": raw}, SAME)
    np.testing.assert_allclose(boxes.xyxy[1], [36, 14, 52, 22])
    np.testing.assert_allclose(boxes.xyxy[0], [0, 0, 16, 16])  # the half outside is cut off
    np.testing.assert_allclose(boxes.score, [0.81, 0.72], rtol=1e-6)
    assert boxes.label.tolist() == [0, 1]


def test_fastestdet_boxes_lie_at_their_place():
    raw = np.zeros((8, 4, 6), np.float32)
    raw[:, 1, 2] = [0.5, 0, np.arctanh(0.5), 0, 0, 0, 0, 0.7]
    boxes = decode(Layout(kind="fastestdet"), {"out": raw}, SAME)
    np.testing.assert_allclose(boxes.xyxy, [[8, 8, 56, 40]], atol=1e-4)
    np.testing.assert_allclose(boxes.score, [0.5**0.6 * 0.7**0.4], rtol=1e-6)
    assert boxes.label.tolist() == [2]


def test_detr_has_a_class_for_nothing():
    logits = np.array([[9.0, 0, 0], [0, 0, 9.0]])
    shares = np.array([[0.5, 0.5, 0.5, 0.25], [0.5, 0.5, 1, 1]])
    boxes = decode(Layout(kind="detr"), {"logits": logits, "boxes": shares}, SAME)
    np.testing.assert_allclose(boxes.xyxy, [[24, 24, 72, 40]])
    assert boxes.label.tolist() == [0]


def test_plain_rows_have_labels_or_scores_by_class():
    outputs = plain([[1, 2, 3, 4], [5, 6, 9, 9]], [0.4, 0.9], [7, 8])
    boxes = decode(PLAIN, outputs, SAME)
    assert boxes.label.tolist() == [8, 7]
    by_class = {"boxes": outputs["boxes"], "scores": np.array([[0.1, 0.5], [0.2, 0.1]])}
    assert decode(PLAIN, by_class, SAME).label.tolist() == [1]


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        (Placing((128, 96), (64, 96), (64, 96)), [8, 32, 24, 64]),  # stretched
        (Placing((128, 192), (32, 48), (64, 96)), [32, 64, 96, 128]),  # letterboxed
        (Placing((24, 20), (24, 20), (64, 96)), [8, 16, 20, 24]),  # padded; cut off at the edge
    ],
)
def test_what_was_done_to_the_picture_is_undone(place, wanted):
    outputs = plain([[8, 16, 24, 32]], [0.9], [0])
    np.testing.assert_allclose(decode(PLAIN, outputs, place).xyxy, [wanted])
    original = PLAIN.model_copy(update={"original": True})
    x = decode(original, outputs, Placing((40, 40), (10, 10), (64, 96)))
    np.testing.assert_allclose(x.xyxy, [[8, 16, 24, 32]])


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_a_placing_is_what_the_device_does(fit):
    from splitrt.edge.place import place

    sizes = Sizes.between((64, 64), (160, 192), fit=fit)
    for size in ((64, 64), (300, 100), (90, 400), (5, 5)):
        assert place(np.zeros((*size, 3), np.uint8), sizes).shape[:2] == sizes.placing(size).outer


def test_of_two_boxes_of_one_label_the_better_one_stays():
    outputs = plain([[0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10]], [0.5, 0.9, 0.8], [0, 0, 1])
    boxes = decode(PLAIN, outputs, SAME)
    np.testing.assert_allclose(boxes.score, [0.9, 0.8])
    every = decode(PLAIN.model_copy(update={"overlap": 1.0}), outputs, SAME)
    assert len(every) == 3


def test_a_chain_of_overlaps_is_not_one_thing():
    outputs = plain([[0, 0, 10, 9], [4, 0, 14, 9], [8, 0, 18, 9]], [0.9, 0.8, 0.7], [0, 0, 0])
    layout = PLAIN.model_copy(update={"overlap": 0.3})
    np.testing.assert_allclose(decode(layout, outputs, SAME).score, [0.9, 0.7])


def test_no_more_boxes_than_the_layout_allows_and_the_best_of_them():
    random = np.random.default_rng(0)
    corner = random.uniform(0, 60, (5000, 2))
    outputs = plain(np.c_[corner, corner + 1].tolist(), random.random(5000), [0] * 5000)
    boxes = decode(PLAIN.model_copy(update={"most": 7}), outputs, SAME)
    assert len(boxes) == 7 and boxes.score[-1] > 0.99
    assert (np.diff(boxes.score) <= 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("kind", ["yolox", "fastestdet", "detr", "boxes"])
def test_numbers_that_are_none_make_no_boxes_and_no_noise(kind, bad):
    shapes = {"yolox": [(126, 8)], "fastestdet": [(8, 4, 6)], "detr": [(5, 3), (5, 4)]}
    arrays = [np.full(shape, bad, np.float32) for shape in shapes.get(kind, [(5, 4), (5,), (5,)])]
    outputs = {str(number): array for number, array in enumerate(arrays)}
    with np.errstate(all="raise"):
        boxes = decode(Layout(kind=kind), outputs, SAME)
    assert np.isfinite(boxes.xyxy).all() and np.isfinite(boxes.score).all()
    assert (boxes.xyxy >= 0).all() and (boxes.xyxy <= [96, 64, 96, 64]).all()


@pytest.mark.parametrize(
    ("kind", "shapes", "words"),
    [
        ("yolox", [(125, 8)], "for 64×96 pixels"),
        ("yolox", [(126, 5)], "5 \\+ classes"),
        ("yolox", [(1, 126, 8)], "not"),
        ("fastestdet", [(8, 24)], "h, w"),
        ("fastestdet", [(8, 0, 6)], "h, w"),
        ("detr", [(5, 3)], "need 2 outputs"),
        ("detr", [(5, 3), (5, 5)], r"\[n, 4\]"),
        ("detr", [(4, 3), (5, 4)], "classes \\+ 1"),
        ("boxes", [(5, 3), (5,), (5,)], r"\[n, 4\]"),
        ("boxes", [(5, 4), (4,), (4,)], "with labels"),
        ("boxes", [(5, 4), (5,)], "with labels"),
        ("boxes", [(5, 4), (5, 0)], "with labels"),
        ("boxes", [(5, 4), ()], "with labels"),
    ],
)
def test_outputs_of_another_shape_are_said(kind, shapes, words):
    outputs = {str(number): np.zeros(shape, np.float32) for number, shape in enumerate(shapes)}
    with pytest.raises(PacketError, match=words):
        decode(Layout(kind=kind), outputs, SAME)


def test_outputs_that_are_not_there_or_no_numbers_are_said():
    named = Layout(kind="yolox", outputs=["grid"])
    with pytest.raises(PacketError, match="'grid'"):
        decode(named, {"out": yolox((64, 96))}, SAME)
    with pytest.raises(PacketError, match="no boxes"):
        decode(Layout(kind="yolox"), {"out": np.array(["a"])}, SAME)


def test_boxes_are_scaled_and_normalised():
    boxes = Boxes(np.float32([[10, 20, 30, 40]]), np.float32([0.5]), np.array([1]))
    np.testing.assert_allclose(boxes.normalised((80, 100)).xyxy, [[0.1, 0.25, 0.3, 0.5]])
    np.testing.assert_allclose(boxes.scaled(2).xyxy, [[20, 40, 60, 80]])
    np.testing.assert_allclose(boxes.scaled(2, 3).xyxy, [[30, 40, 90, 80]])
    assert boxes.names(["cat", "dog"]) == ["dog"] and boxes.names(None) == ["1"]
    with pytest.raises(PacketError, match=r"\[n, 4\]"):
        Boxes(np.zeros((2, 4)), np.zeros(1), np.zeros(1))


def test_iou_of_nothing_is_nothing():
    boxes = np.array([[0, 0, 0, 0], [0, 0, 2, 2], [1, 0, 3, 2]], np.float64)
    np.testing.assert_allclose(iou(boxes, boxes), [[0, 0, 0], [0, 1, 1 / 3], [0, 1 / 3, 1]])


def test_a_results_boxes_are_those_of_its_picture(detector_dir, tmp_path):
    manifest = Manifest.load(detector_dir)
    result = Result(plain([[8, 16, 24, 32]], [0.9], [0]), "cloud", "q8")
    with pytest.raises(ModelError, match=r"table \[boxes\]"):
        found(manifest, result, (64, 96))
    manifest = manifest.model_copy(update={"boxes": PLAIN})
    np.testing.assert_allclose(found(manifest, result, (64, 96)).xyxy, [[8, 16, 24, 32]])
    assert len(found(manifest, Result({}, None, "empty"), (64, 96))) == 0
    assert len(Boxes.none()) == 0


def test_a_model_of_one_size_stretches(model_dir):
    manifest = Manifest.load(model_dir)
    assert placing(manifest, (64, 16)) == Placing((64, 16), (32, 32), (32, 32))


@pytest.mark.parametrize(
    "wrong",
    [
        'kind = "ssd"',
        'kind = "yolox"\nmost = 0',
        'kind = "yolox"\nthreshhold = 0.3',
        'kind = "yolox"\noutputs = ["elsewhere"]',
    ],
)
def test_a_table_that_makes_no_sense_is_refused(model_dir, tmp_path, wrong):
    import shutil

    folder = shutil.copytree(model_dir, tmp_path / "copy")
    edited(folder, "[codecs.", f"[boxes]\n{wrong}\n\n[codecs.")
    with pytest.raises(ModelError, match="boxes"):
        Manifest.load(folder)
    with pytest.raises(ValidationError):
        Layout(kind="yolox", overlap=2)
