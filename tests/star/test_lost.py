"""A spoke that dies, stops or is cut off is noticed while the hub computes, and comes again."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from splitrt import LinkDown
from splitrt.core.shards import Shards
from splitrt.relay import Relay
from splitrt.star import Hub, Spoke, Terms
from splitrt.star.call import PATIENCE
from splitrt.star.guest import Guest
from splitrt.star.point import Point
from splitrt.star.roster import Roster
from splitrt.star.work import COMING
from tests.star.crowd import LOCAL, Watched
from tests.star.toy import LONG, ROOT, Toy, process, until


@pytest.fixture
def watched(star_dir: Path, star: Shards) -> Iterator[Watched]:
    with Watched(star_dir, star) as running:
        yield running


def only(watched: Watched) -> Guest:
    (guest,) = watched.roster.wait(1, LONG)
    return guest


def test_a_killed_spoke_is_lost_at_once(watched, tmp_path, record_property):
    with process("join", watched.roster.address, tmp_path, "ann") as running:
        ann, since = only(watched), time.monotonic()
        running.kill()
        record_property("seconds", took := watched.noticed(ann, since))
        print(f"noticed after {took:.3f} s")
    assert watched.why(ann) == "it hung up"


def test_a_stopped_spoke_is_lost_and_comes_again(watched, tmp_path, record_property):
    with process("join", watched.roster.address, tmp_path, "ann") as running:
        ann, since = only(watched), time.monotonic()
        running.send_signal(signal.SIGSTOP)
        record_property("seconds", took := watched.noticed(ann, since))
        print(f"noticed after {took:.3f} s")
        assert "nothing was heard of it for 1.5 s" in watched.why(ann)
        running.send_signal(signal.SIGCONT)
        again = only(watched)
        assert again is not ann and again.name == "ann"


def test_a_spoke_behind_a_dead_link_is_lost_and_comes_again(watched, tmp_path, record_property):
    """Nothing says so: the link takes all bytes and delivers none. The spoke notices, too."""
    with Relay(watched.roster.address) as relay:
        with Point(join=relay.address, layers=Toy, store=tmp_path, name="ann"):
            ann, since = only(watched), time.monotonic()
            relay.hole = True
            record_property("seconds", took := watched.noticed(ann, since))
            print(f"noticed after {took:.3f} s")
            relay.hole = False
            assert only(watched) is not ann


def test_a_spoke_notices_a_silent_hub_by_the_hubs_own_patience(star_dir, star, tmp_path, caplog):
    """Three times as long as the hub waits for it: a hub that only paused is not left."""
    with Roster(star_dir, star, LOCAL, patience=1.0) as roster, Relay(roster.address) as relay:
        with Point(join=relay.address, layers=Toy, store=tmp_path, name="ann"):
            assert roster.wait(1, LONG)
            relay.hole = True
            words = f"nothing was heard of {relay.address} for 3 s"
            until(lambda: words in caplog.text, f"no word of {words!r} in {caplog.text}")


def test_a_spoke_that_waits_for_the_others_ends_when_its_hub_does(star_dir, star, tmp_path):
    """Nobody listens where the sums are to be made, so it waits; then its hub is gone."""

    def working() -> bool:
        return any(one.name == "star-1" for one in threading.enumerate())

    with Roster(star_dir, star, LOCAL) as roster:
        with Point(join=roster.address, layers=Toy, store=tmp_path, name="ann"):
            (ann,) = roster.wait(1, LONG)
            roster.hold(1, {ann: [1, 2]}, port=1, rows=4, longest=64, timeout=LONG)
            assert working()
            roster.close()
            until(lambda: not working(), "it waits for others still", COMING / 2)


@pytest.mark.parametrize("listens", [True, False])
def test_who_waits_for_the_others_can_be_ended_from_another_thread(listens):
    """Before the hub answers its greeting, and before there is a hub at all."""
    terms, begun, ends = Terms(devices=2, hidden=8, timeout=600.0), queue.SimpleQueue(), []

    def wait() -> None:
        with pytest.raises(LinkDown) as caught:
            Spoke(address, terms, device=1, timeout=600.0, begun=begun.put)
        ends.append(str(caught.value))

    with Hub(LOCAL, terms) as hub:  # it listens, and never gathers
        address = hub.address if listens else "127.0.0.1:1"
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        begun.get(timeout=LONG).close()
        waiting.join(LONG)
    assert len(ends) == 1


def test_a_spoke_that_is_told_to_end_leaves_well(watched, tmp_path):
    with process("join", watched.roster.address, tmp_path, "ann") as running:
        ann = only(watched)
        running.terminate()
        assert running.wait(LONG) == 0
        watched.noticed(ann, time.monotonic())


def test_whoever_dies_while_it_loads_is_named(watched, star, tmp_path):
    """A hold is waited for; a loss in it is an error of the hold, and told as any other."""
    with process("join", watched.roster.address, tmp_path / "b", "bob") as running:
        bob = only(watched)
        with ThreadPoolExecutor(1) as pool:
            running.send_signal(signal.SIGSTOP)  # it never gets to be ready
            given = {"port": 1, "rows": 4, "longest": 64}
            holding = pool.submit(watched.roster.hold, 1, {bob: [1, 2]}, **given)
            running.kill()
            with pytest.raises(LinkDown, match="bob is lost"):
                holding.result(LONG)
        watched.noticed(bob, time.monotonic())


HUB = """
import sys
from splitrt.core.shards import Shards
from splitrt.star.roster import Roster
folder = sys.argv[1]
told = lambda guest, why: print(guest.name, why, flush=True)
with Roster(folder, Shards.load(folder), "127.0.0.1:0", gone=told) as roster:
    print(roster.address, flush=True)
    print(len(roster.wait(1, 60)), flush=True)
    for _ in sys.stdin:
        print([one.name for one in roster.guests if one.beat.peak], flush=True)
"""


def test_a_hub_that_was_stopped_itself_loses_nobody(star_dir, tmp_path):
    """What its spokes said meanwhile has not been read yet: that is not their silence."""
    command = [sys.executable, "-c", HUB, str(star_dir)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as hub:
        try:
            address = hub.stdout.readline().strip()
            with Point(join=address, layers=Toy, store=tmp_path, name="ann"):
                assert hub.stdout.readline() == "1\n"
                time.sleep(0.5)
                hub.send_signal(signal.SIGSTOP)
                time.sleep(PATIENCE + 1)
                hub.send_signal(signal.SIGCONT)
                time.sleep(1.0)
                said, _ = hub.communicate("who\n", timeout=LONG)
                assert said == "['ann']\n"
        finally:
            hub.kill()
