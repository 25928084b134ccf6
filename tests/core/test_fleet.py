"""The fleets' benchmark: its arithmetic, and that scale.md holds what its command prints."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.fleet import fail, herd, scale
from benchmarks.fleet.load import Count, Load
from benchmarks.fleet.scale import Measured
from tests.conftest import ROOT

SEEN = Measured(
    goodput=1000, base=400, each=100, idle_us=200, plain_ms=2, tls_ms=4, position=4096, asks=100
)


def test_the_page_holds_the_tables_that_the_command_prints():
    command = [sys.executable, "-m", "benchmarks.fleet.scale"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    page = (ROOT / "benchmarks" / "fleet" / "scale.md").read_text()
    assert len(page.splitlines()) <= 120
    rows = [line for line in told.splitlines() if line.startswith("|")]
    assert len(rows) > 12 and [row for row in rows if row not in page.splitlines()] == []


def test_a_fleet_needs_what_its_frames_take_and_what_is_spare():
    one = scale.need(1000, rate=10, share=1.0, spare=0.5, seen=SEEN)
    assert (one.sent, one.cores, one.by, one.connections) == (10_000, 20, "frames", 50)
    assert one.up == pytest.approx(10_000 * (99 + 94) * 8 / 1e6)
    assert one.core_hours == 20 * 24 and one.busy_hours == 10 * 24
    assert one.mib == pytest.approx(20 * 400 + 1000 * 100 / 1024)


def test_devices_that_send_nothing_need_a_server_for_their_pings():
    one = scale.need(100_000, rate=10, share=0.0, spare=0.5, seen=SEEN)
    assert (one.sent, one.cores, one.by) == (0.0, 40, "connections")
    assert scale.need(1, rate=10, share=0.0, spare=0.5, seen=SEEN).cores == 1


def test_a_storm_is_over_within_an_attempt_for_as_many_as_a_core_can_welcome_in_it():
    assert scale.storm(1000, 4, 2.0) == pytest.approx(0.5)
    assert scale.storm(scale.most(4.0), 1, 4.0) <= scale.ATTEMPT
    assert scale.storm(scale.most(4.0) + 1, 1, 4.0) > scale.ATTEMPT


def test_a_chat_holds_whole_steps_of_positions():
    short, long = scale.chats(1024, 1, SEEN)[0], scale.chats(1024, 257, SEEN)[0]
    assert short == pytest.approx(1.0) and long == pytest.approx(2.0)


def test_a_fleet_is_back_with_the_first_second_that_is_good_enough():
    curve = fail.rates([0.1, 0.2, 1.1, 1.3, 1.6, 1.9, 2.2, 2.4], 0.0, 3.0)
    assert curve == [8, 0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0]
    assert fail.recovered(curve, 3.9) == 1.0 and fail.recovered(curve, 9.0) == float("inf")


def test_who_never_arrived_makes_the_last_arrival_endless():
    assert herd.arrived([11.0, 12.0, 13.0], 3, 10.0) == (2.0, 3.0)
    assert herd.arrived([11.0, 12.0, 13.0], 4, 10.0) == (2.0, float("inf"))


def test_a_frame_that_ended_twice_or_never_shows():
    assert Count(frames=4, kept=1, sent=3, in_time=1, late=1, expired=1).whole
    assert not Count(frames=4, kept=1, sent=3, in_time=1, late=1).whole
    assert not Count(frames=4, kept=1, sent=2, in_time=1, late=1).whole


def test_what_was_captured_while_it_counts_counts():
    load = Load("", "", ("a:1",), 1, begin=100.0, seconds=2.0, warm=3.0)
    counted = [at for at in (102.9, 103.0, 104.9, 105.0) if load.counts(at)]
    assert counted == [103.0, 104.9] and load.end == 105.0
