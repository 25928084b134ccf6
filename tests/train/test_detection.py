"""Real detectors on real pictures: their boxes are those that people drew; a cut one learns."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from benchmarks.detection.data import Picture, coco, labels, resized
from benchmarks.detection.make import LAYOUT, far
from splitrt import Boxes, Edge
from splitrt.core.boxes import decode
from splitrt.core.layouts import Layout
from splitrt.core.sizes import Placing, Sizes
from splitrt.edge.place import place
from splitrt.train import Frames, Pixels, Schedule, cut, distill, export, precision
from tests.conftest import SHARED, pictures, settled

MEAN, STD = Pixels().mean, Pixels().std
FEW = 20


@pytest.fixture(scope="module")
def drawn() -> list[Picture]:
    if not (SHARED / "coco128" / "val2017.zip").exists():
        pytest.skip("../shared/data is absent")
    return coco(SHARED, "val2017")[:FEW]


def session(name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(SHARED / "detectors" / name), options)


def agreed(found: list[Boxes], drawn: list[Picture]) -> float:
    return precision(found, [picture.truth for picture in drawn], overlaps=[0.5])


def test_yolox_finds_what_people_drew_in_letterboxed_pictures(drawn):
    yolox, boxes = session("yolox_nano.onnx"), []
    sizes = Sizes.between((416, 416), (416, 416), fit="letterbox")
    layout = Layout(kind="yolox", threshold=0.01, overlap=0.65)
    for picture in drawn:
        seen = (place(picture.image, sizes) / 255 - MEAN) / STD
        x = seen.transpose(2, 0, 1)[None].astype(np.float32)
        (raw,) = yolox.run(None, {"inputs": x})
        boxes.append(decode(layout, {"out": raw[0]}, sizes.placing(picture.size)))
    assert agreed(boxes, drawn) > 0.4  # .498 on all of val2017
    shifted = [one.scaled(1.3) for one in boxes]
    assert agreed(shifted, drawn) < 0.5 * agreed(boxes, drawn)


def test_fastestdet_finds_what_people_drew_in_stretched_pictures(drawn):
    detector, boxes = session("FastestDet.onnx"), []
    layout = Layout(kind="fastestdet", threshold=0.01)
    for picture, seen in zip(drawn, resized(drawn, 352), strict=True):
        x = (seen[:, :, ::-1] / 255).transpose(2, 0, 1)[None].astype(np.float32)
        (raw,) = detector.run(None, {"input.1": x})
        where = Placing(picture.size, (352, 352), (352, 352))
        boxes.append(decode(layout, {"out": raw[0]}, where))
    assert agreed(boxes, drawn) > 0.25  # .337 on all of val2017


def test_labels_and_boxes_come_as_they_are_stored(drawn):
    assert labels(SHARED)[0] == "person" and len(labels(SHARED)) == 80
    with zipfile.ZipFile(SHARED / "coco128" / "val2017.zip") as archive:
        name = min(name for name in archive.namelist() if name.endswith(".txt"))
        first = np.loadtxt(io.BytesIO(archive.read(name)), ndmin=2)[0]
    left, _, right, _ = drawn[0].truth.xyxy[0]
    assert drawn[0].truth.label[0] == first[0]
    assert (left + right) / 2 == pytest.approx(first[1] * drawn[0].size[1], rel=1e-4)


class Grid(torch.nn.Module):
    """A detector of three classes on a grid of 8 by 8, in FastestDet's layout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
        )
        self.last = torch.nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.stem(x))
        return torch.cat([x[:, :1].sigmoid(), x[:, 1:5], x[:, 5:].softmax(1)], 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Frames, dict[str, list[float]]]:
    """A cut detector whose filter looks for bright pictures; and the losses by `far`."""
    torch.manual_seed(0)
    whole, frames = settled(Grid(), (3, 32, 32)), pictures(160, seed=3)
    bright = np.arange(len(frames)) % 2 == 0
    images = np.where(bright[:, None, None, None], frames.images // 2 + 128, frames.images // 4)
    frames = Frames(images.astype(np.uint8), None, bright)
    split = cut(whole, after="stem", channels=4, shape=(1, 3, 32, 32))
    x = split.pixels(torch.from_numpy(frames.images[:32]))
    with torch.no_grad():
        before = far(split(x), [whole(x)]).item()
    schedule = Schedule(features=6, task=6, batch=16)
    distill(split, teacher=whole, frames=frames, schedule=schedule, far=far, progress=False)
    with torch.no_grad():
        after = far(split(x), [whole(x)]).item()
    folder = tmp_path_factory.mktemp("models") / "grid"
    export(split, folder, frames=frames, held_out=frames, labels=["a", "b", "c"], boxes=LAYOUT)
    return folder, frames, {"far": [before, after]}


def test_a_cut_detector_learns_by_the_measure_that_it_is_given(made):
    before, after = made[2]["far"]
    assert after < 0.7 * before
    assert far([torch.ones(1, 8, 2, 2) / 2], [torch.ones(1, 8, 2, 2) / 2]).item() >= 0


def test_its_filter_is_trained_and_its_manifest_says_how_to_read_it(made):
    folder, frames, _ = made
    with Edge(folder, plan="local", filter=True, threads=1) as edge:
        manifest = edge.manifest
        ends = [edge.launch(image, 0.0).empty is not None for image in frames.images[:40]]
    assert manifest.boxes == LAYOUT and manifest.labels == ["a", "b", "c"]
    record = manifest.widths[0].filter
    assert record.recall >= 0.95 and record.dropped > 0.9
    assert np.mean(np.array(ends) != frames.interest[:40]) > 0.9
