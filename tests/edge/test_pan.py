"""The camera that pans over photographs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice, pairwise

import numpy as np
import pytest
from PIL import Image

from splitrt.edge.pan import Pan, window
from splitrt.errors import SplitrtError
from tests.conftest import ROOT, heeding


@pytest.fixture
def photograph(tmp_path):
    """Red grows to the right, green downwards, so that a part tells where it was cut."""
    rows, columns = np.indices((100, 200))
    image = np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_the_part_moves_inside_the_photograph_from_edge_to_edge():
    places = [window(0.1 * tick, 100, 200, 0.5) for tick in range(700)]
    for rows, columns in places:
        assert rows.stop - rows.start == 50 and columns.stop - columns.start == 100
        assert rows.start >= 0 and rows.stop <= 100
        assert columns.start >= 0 and columns.stop <= 200
    assert {0, 50} <= {rows.start for rows, _ in places}
    assert {0, 100} <= {columns.start for _, columns in places}
    steps = [abs(b[1].start - a[1].start) for a, b in pairwise(places)]
    assert 0 < max(steps) <= 5  # it glides


def test_a_picture_of_an_index_is_the_same_in_every_run(photograph):
    def run():
        with Pan(photograph, rate=100, share=0.5) as camera:
            return {frame.index: frame.image.copy() for frame in islice(camera, 5)}

    first, second = run(), run()
    both = first.keys() & second.keys()
    assert 0 in both and first[0].shape == (50, 100, 3)
    assert all((first[index] == second[index]).all() for index in both)
    rows, columns = window(max(first) / 100, 100, 200, 0.5)
    assert tuple(first[max(first)][0, 0]) == (columns.start, rows.start, 0)


def test_who_is_slow_misses_pictures_and_they_are_counted(photograph):
    seen = []
    with Pan(photograph, rate=100) as camera:
        for frame in islice(camera, 4):
            seen.append(frame.index)
            time.sleep(0.05)
            asked = time.monotonic()
    assert seen == sorted(set(seen)) and seen[1] >= 5
    assert camera.dropped >= seen[-1] - 3
    assert frame.captured <= asked


def test_a_folders_photographs_take_turns_for_ever(photograph):
    Image.new("RGB", (40, 20)).save(photograph.with_name("b.png"))
    (photograph.with_name("c.png")).write_bytes(b"no picture")
    with Pan(photograph.parent, rate=100, seconds=0.001) as camera:  # each frame is another one's
        names = [frame.name.split("-")[0] for frame in islice(camera, 6)]
    assert names == ["a.png", "b.png"] * 3


def test_a_camera_that_is_closed_ends(photograph):
    with Pan(photograph, rate=50) as camera:
        frames = iter(camera)
        next(frames)
        camera.close()
        assert not list(frames)


def test_the_edge_verb_pans_until_it_is_interrupted(photograph):
    command = [sys.executable, "-m", "splitrt.cli", "edge", ROOT / "models" / "cifar10-resnet"]
    command += ["--source", f"pan:{photograph}", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = {"stdout": subprocess.PIPE, "text": True, "preexec_fn": heeding}
    with subprocess.Popen(command, env=environment, **pipe) as running:
        lines = [json.loads(running.stdout.readline()) for _ in range(3)]
        running.send_signal(signal.SIGINT)
        assert running.wait(60) != 0
    assert [line["frame"].split("-")[0] for line in lines] == ["a.png"] * 3
    assert all(line["where"] == "edge" for line in lines)


def test_what_cannot_be_panned_over_is_an_error(tmp_path, photograph):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "b.jpg").write_bytes(b"no picture")
    with Pan(tmp_path / "broken") as camera:
        with pytest.raises(SplitrtError, match=r"no picture of 1 can be read: b.jpg\nhelp: "):
            next(iter(camera))
    with pytest.raises(SplitrtError, match="there is no"):
        Pan(tmp_path / "nowhere.jpg")
    for wrong in ({"rate": 0}, {"rate": float("nan")}, {"share": 1.5}, {"seconds": -1}):
        with pytest.raises(SplitrtError, match=r"\nhelp: more than 0"):
            Pan(photograph, **wrong)
