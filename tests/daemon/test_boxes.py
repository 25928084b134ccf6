"""A detector in the daemon: the same boxes in a camera's lines, over the socket and for Frigate."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from splitrt import Edge, Manifest, PacketError, Pictures, Result, connect, found
from splitrt.cloud import Server
from splitrt.daemon import arrays, outlet
from splitrt.daemon.seen import Seen
from splitrt.edge.finder import Finder
from tests.daemon.house import in_order, lines, running, until
from tests.detector import BOXED


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three pictures, none of the size that the model takes."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (120, 150 + seed, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def test_lines_calls_watchers_and_frigate_have_the_boxes_of_an_edge(tmp_path, boxed_dir, photos):
    with Server(boxed_dir, port=0, threads=1) as server:
        model = {"path": str(boxed_dir), "cloud": server.address, "plan": "f32", "threads": 1}
        camera = {
            "source": str(photos), "model": "boxed", "fps": 30.0, "repeat": True, "output": "out",
        }  # fmt: skip
        tables = {"socket": "s", "models": {"boxed": model}, "cameras": {"door": camera}}
        pictures = {frame.name: frame.image for frame in Pictures(photos)}
        with Edge(boxed_dir, cloud=server.address, plan="f32", threads=1) as edge:
            wanted = {
                name: found(edge.manifest, edge(image), image.shape[:2]).entries(BOXED)
                for name, image in pictures.items()
            }
        with running(tmp_path, tables) as daemon, connect(tmp_path / "s") as remote:
            for name, image in pictures.items():
                asked = found(remote.manifest, remote(image), image.shape[:2])
                assert_same(asked.entries(BOXED), wanted[name])
            watched = {}
            for name, result, size in remote.watch():
                assert size == pictures[name].shape[:2]
                watched[name] = found(remote.manifest, result, size).entries(BOXED)
                if len(watched) == 3:
                    break
            until(lambda: daemon.status()["cameras"]["door"]["frames"] > 6)
    with Finder(boxed_dir, threads=1) as finder:
        for name, image in pictures.items():
            assert_same(finder(image).entries(BOXED), wanted[name])
            assert_same(watched[name], wanted[name])
    told = lines(tmp_path / "out")
    assert in_order(told) and len(told) > 6
    for line in told:
        assert_same(line["boxes"], wanted[line["frame"]])
        assert line["answer"].endswith(f"of {len(line['boxes'])}")


def assert_same(some, others):
    """Both have boxes, in the same places with the same names."""
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=2e-4)
        np.testing.assert_allclose(one["xyxy"], other["xyxy"], atol=0.2)


def test_a_line_of_outputs_that_are_no_boxes_has_none(boxed_dir):
    manifest = Manifest.load(boxed_dir)
    outputs = {"boxes": np.zeros((3, 7), np.float32), "scores": np.zeros((3, 5), np.float32)}
    seen = Seen("door", "boxed", "1", 1, 0.0, Result(outputs, "cloud", "q8"), "none")
    seen = replace(seen, manifest=manifest, size=(120, 150))
    line = json.loads(outlet.line(seen))
    assert "boxes" not in line and line["answer"] is None
    nobody = replace(seen, result=Result({}, None, "q8"))
    line = json.loads(outlet.line(nobody))
    assert line["boxes"] == [] and line["answer"] is None


@pytest.mark.parametrize("size", [(), (3,), (0, 5), (1, 2, 3), (1 << 31, 5)])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(PacketError, match="height and width"):
        arrays.size(arrays.reply("1", 1, Result({}, None, "q8"), size=size))
