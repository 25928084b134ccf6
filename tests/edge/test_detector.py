"""A detector over two processes: pictures of several sizes, side inputs, several outputs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from splitrt import Edge, Frame, PacketError
from splitrt.cloud import Server
from splitrt.core import packet
from splitrt.train import Pixels
from splitrt.wire import tail_pb2 as wire
from tests.attacks.test_lying_server import lying
from tests.core.test_manifest import edited
from tests.detector import anchors, detector
from tests.edge.test_loopback import served

WHOLE = detector()
SIZES = [(64, 64), (96, 160), (160, 64), (160, 192)]


@pytest.fixture(scope="module")
def address(detector_dir) -> Iterator[str]:
    process, port = served(detector_dir, 0)
    yield f"127.0.0.1:{port}"
    process.terminate()
    assert process.wait(20) == 0


def picture(index: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = SIZES[index % len(SIZES)]
    image = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
    return image, np.array([height + index, 2 * width])


def whole(image: np.ndarray, size: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        answer = WHOLE(Pixels()(torch.from_numpy(image)[None]), torch.from_numpy(size)[None])
    return {name: tensor[0].numpy() for name, tensor in answer.items()}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted) == ["boxes", "scores"]
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        assert np.linalg.norm(found[name] - array) <= 1e-4 * np.linalg.norm(array)


def test_every_size_is_answered_as_the_whole_model_does(detector_dir, address):
    with Edge(detector_dir, cloud=address, plan="f32", threads=1) as edge:
        for index in range(8):
            image, size = picture(index)
            result = edge({"image": image, "size": size})
            assert result.where == "cloud"
            assert len(result.outputs["boxes"]) == anchors(*image.shape[:2])
            assert_same(result.outputs, whole(image, size))
            crossing = edge.manifest.at(image.shape[:2]).widths[0].elements
            assert result.sent_bytes - 4 * crossing < 48  # size and side data travel too


def test_a_stream_of_mixed_sizes_is_answered_in_order(detector_dir, address):
    def source() -> Iterator[Frame]:
        for index in range(40):
            image, size = picture(index)
            yield Frame(image, index, time.monotonic(), str(index), {"size": size})

    with Edge(detector_dir, cloud=address, plan="f32", threads=1) as edge:
        streamed = list(edge.stream(source(), inflight=8))
    assert [frame.index for frame, _ in streamed] == list(range(40))
    for frame, result in streamed[::5]:
        assert_same(result.outputs, whole(frame.image, frame.side["size"]))


@pytest.mark.parametrize(
    ("plan", "far"), [("f16", 1e-3), ("q8", 0.02), ("q4", 0.05), ("local", 1e-4)]
)
def test_every_plan_answers_every_size(detector_dir, address, plan, far):
    with Edge(detector_dir, cloud=address, plan=plan, threads=1) as edge:
        for index in range(len(SIZES)):
            image, size = picture(index)
            found, wanted = edge({"image": image, "size": size}).outputs, whole(image, size)
            for name, array in wanted.items():
                assert np.linalg.norm(found[name] - array) <= far * np.linalg.norm(array)


def test_every_size_is_stood_in_for_with_its_side_inputs(detector_dir):
    with Edge(detector_dir, cloud="127.0.0.1:1", deadline=20.0, threads=1) as edge:
        for index in range(4):
            image, size = picture(index)
            result = edge({"image": image, "size": size})
            assert (result.where, result.plan) == ("edge", "local") and result.reason
            assert_same(result.outputs, whole(image, size))


def test_the_pictures_own_size_need_not_be_given(detector_dir, tmp_path):
    copy = tmp_path / "detector"
    shutil.copytree(detector_dir, copy)
    edited(copy, "picture = false", "picture = true")
    edited(copy, 'fit = "exact"', 'fit = "letterbox"')
    image = picture(0)[0].repeat(4, axis=0)
    with Edge(copy, plan="local", threads=1) as edge:
        found = edge(image).outputs
        given = edge({"image": image, "size": np.array(image.shape[:2])}).outputs
        other = edge({"image": image, "size": np.array([9, 9])}).outputs
    assert np.array_equal(found["boxes"], given["boxes"])
    assert not np.allclose(found["boxes"], other["boxes"])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"image": np.zeros((65, 64, 3), np.uint8), "size": np.ones(2, int)}, "multiple of 32"),
        ({"image": np.zeros((64, 999, 3), np.uint8), "size": np.ones(2, int)}, "is wanted"),
        ({"image": np.zeros((64, 64, 3), np.uint8)}, "'image' and 'size'"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "size": np.ones(3, int)}, r"int64 \[2\]"),
        (np.zeros((64, 64, 3), np.uint8), "by name"),
    ],
)
def test_bad_input_is_named(detector_dir, wrong, words):
    with (
        Edge(detector_dir, plan="local", threads=1) as edge,
        pytest.raises(PacketError, match=words),
    ):
        edge(wrong)


def test_a_server_that_answers_with_another_sizes_boxes_is_not_believed(detector_dir):
    def answers(frame: wire.Frame) -> list[wire.Answer]:
        shapes = [[anchors(96, 96), n] for n in (4, 5)]
        outputs = [wire.Tensor(shape=s, data=bytes(4 * s[0] * s[1])) for s in shapes]
        return [wire.Answer(seq=frame.seq, status=wire.OK, outputs=outputs)]

    image, size = picture(0)
    with (
        lying(answers) as liar,
        Edge(detector_dir, cloud=liar, plan="f32", threads=1, standin=False) as edge,
    ):
        with pytest.raises(PacketError, match=r"has shape \[378, 4\], \[168, 4\] wanted"):
            edge({"image": image, "size": size})


def test_frames_of_a_model_of_one_size_carry_nothing_more():
    raw = packet.frame(7, 3, b"payload", 0.25).SerializeToString()
    assert raw == bytes.fromhex("1211080710031a077061796c6f61642090a10f")
    frame = packet.frame(7, 3, b"payload", 0.25, packet.Beside((64, 96), [b"ab"])).frame
    assert (list(frame.size), list(frame.side)) == ([64, 96], [b"ab"])


def test_a_server_of_the_same_process_is_the_same(detector_dir, address):
    image, size = picture(1)
    inputs = {"image": image, "size": size}
    with Server(detector_dir, port=0, threads=1) as server:
        with Edge(detector_dir, cloud=server.address, plan="q8", threads=1) as edge:
            here = edge(inputs).outputs
    with Edge(detector_dir, cloud=address, plan="q8", threads=1) as edge:
        np.testing.assert_array_equal(edge(inputs).outputs["boxes"], here["boxes"])
