"""The star's demos, run as a user would: the text, the devices, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitrt.core.shards import Shards
from splitrt.errors import LinkError, SplitrtError
from splitrt.relay import Relay
from splitrt.star import EXACT, Point, Star, Way
from splitrt.together import shipped
from tests.conftest import ROOT, heeding

FOUR = [sys.executable, ROOT / "demos" / "four_pis.py", "--delay", "0.2", "--tokens", "15"]
DEMO = [sys.executable, "-m", "splitrt.cli", "demo", "star"]
PATIENCE = 60.0  # seconds


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A variable that what a test starts inherits; nothing that has it may be left running."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SPLITRT_TEST_MARK", str(tmp_path))
    yield f"SPLITRT_TEST_MARK={tmp_path}"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)


def running(mark: str) -> list[str]:
    """Processes that have that variable and were not just seen off."""
    found = []
    for one in Path("/proc").iterdir():
        if one.name.isdecimal() and int(one.name) != os.getpid():
            try:
                if mark.encode() in (one / "environ").read_bytes().split(b"\0"):
                    found.append((one / "cmdline").read_bytes().decode().replace("\0", " "))
            except OSError:  # it ended, or is another's
                continue
    return found


def test_the_shipped_star_is_of_four_and_named_by_its_folder():
    manifest = Shards.load(shipped())
    assert manifest.name == "stories-star" and len(manifest.devices) == 4
    assert manifest.provenance.recipe == "models/stories.py"


def test_four_devices_say_what_one_says_and_none_is_left_behind(mark):
    done = run(*DEMO, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["identical_to_one_device"] is True and "little girl" in found["text"]
    names = {one["name"] for one in found["devices"]}
    assert names == {"hub", "spoke-1", "spoke-2", "spoke-3"}
    assert sorted(shard for one in found["devices"] for shard in one["shards"]) == [0, 1, 2, 3]
    for one in found["devices"]:
        assert one["peak_mb"] > 10 and one["compute_ms"] > 0
        assert one["reduce_ms"] >= 0 and one["wait_ms"] >= 0
    assert found["ms_per_token"] > 0 and found["one_device_ms_per_token"] > 0
    assert running(mark) == []


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_an_interrupted_demo_takes_its_spokes_with_it(mark, which):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(DEMO, preexec_fn=heeding, **pipes)
    try:
        until = time.monotonic() + PATIENCE
        while len(running(mark)) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(running(mark)) == 4
        process.send_signal(which)
        assert process.wait(PATIENCE) != 0
        assert running(mark) == []
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("nowhere", "no model.toml"),
        (ROOT / "models" / "stories", "holds no star"),
    ],
)
def test_a_folder_that_is_no_star_is_said(mark, model, told):
    done = run(*DEMO, "--model", model)
    assert done.returncode == 1
    assert told in done.stderr and "help:" in done.stderr and "Traceback" not in done.stderr
    assert running(mark) == []


def test_a_killed_device_is_not_heard_in_the_text_and_comes_back_for_the_next(mark):
    done = run(*FOUR, "--json")
    assert done.returncode == 0, done.stderr
    *seconds, last = map(json.loads, done.stdout.splitlines())
    verdict = last["verdict"]
    assert verdict["identical"] is True and verdict["next_identical"] is True
    assert (verdict["devices_after_loss"], verdict["devices_of_next_text"]) == (3, 4)
    assert verdict["noticed_s"] > 0 and verdict["next_token_s"] > 0
    said = "".join(one["words"] for one in seconds)
    assert said.count("little girl") == 2
    assert {one["name"] for one in seconds[-1]["devices"]} == {"hub", "pi-1", "pi-2", "pi-3"}
    assert running(mark) == []


def test_rounded_weights_say_the_same_when_all_was_lost_in_mid_text():
    """The hub's own keys and values too: they are computed again as they were before."""
    texts = []
    for lost in ((), (9, 40)):
        with Star(shipped(), drafts=0) as star:
            star.gather(0, 0)
            found = []
            for token in star.answer([0, *range(300, 370)], most=60):
                found.append(token.id)
                if len(found) in lost:
                    star._group.arrange()
            texts.append(found)
    assert texts[0] == texts[1]


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_sums_go_over_the_port_that_was_named_after_every_division(tmp_path):
    """A relay at that port of another address of this machine counts what crosses."""
    port = free()
    star = Star(shipped(), listen="127.0.0.2:0", sums_port=port, ways=[Way()], drafts=0)
    with star, Relay(star.address) as joins, Relay(f"127.0.0.2:{port}", port=port) as sums:
        points = [Point(join=joins.address, store=tmp_path / name, name=name) for name in "ab"]
        with points[0], points[1]:
            assert len(star.gather(2, PATIENCE)) == 2
            tokens = star.answer([0, 300], most=12)
            found = [next(tokens).id for _ in range(4)]
            assert sums.counts.accepted == 2 and len(star.figures()) == 3
            points[0].close()
            found += [token.id for token in tokens]
            assert sums.counts.accepted == 3 and len(star.figures()) == 2
    with Star(shipped(), drafts=0, ways=EXACT) as star:
        star.gather(0, 0)
        assert found == [token.id for token in star.answer([0, 300], most=12)]


def test_a_port_that_cannot_be_had_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with Star(shipped(), sums_port=taken.getsockname()[1]) as star:
            with pytest.raises(LinkError, match="cannot be bound"):
                star.gather(0, 0)
    with pytest.raises(SplitrtError, match="sums_port = 65536"):
        Star(shipped(), sums_port=65536)
