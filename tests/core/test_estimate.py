"""The estimate: what answers of a known link teach, and what silence does."""

from __future__ import annotations

import math

import pytest

from splitrt.core import estimate
from splitrt.core.estimate import Observation, prior

RATE, RTT, SERVER = 200_000.0, 0.07, 0.012  # bytes a second, seconds, seconds


def taught(answers: int, *, start=None, rate: float = RATE, at: float = 0.0):
    """After so many answers, one every 100 ms, of two sizes in turn, over a link without noise."""
    link = start or prior(0.5, 0.1, 0.03)
    for number in range(answers):
        bytes = (1000, 8000)[number % 2]
        seen = Observation(bytes, 0.0, RTT + SERVER + bytes / rate, SERVER)
        link = estimate.learned(link, seen, at + 0.1 * number)
    return link


def test_a_constant_link_is_learned():
    link = taught(300)
    assert math.exp(link.mu) == pytest.approx(RATE, rel=0.5)
    assert link.rtt == pytest.approx(RTT, abs=0.01)
    assert link.server == pytest.approx(SERVER, rel=0.01)
    assert math.sqrt(link.var) < 0.5 and len(link.residuals) == estimate.WINDOW


def test_bytes_that_were_ahead_are_counted():
    alone, queued = prior(0.5, RTT, SERVER), prior(0.5, RTT, SERVER)
    for number in range(100):
        took = RTT + SERVER + 4000 / RATE
        alone = estimate.learned(alone, Observation(4000, 0, took, SERVER), 0.1 * number)
        took = RTT + SERVER + 12_000 / RATE
        queued = estimate.learned(queued, Observation(4000, 8000, took, SERVER), 0.1 * number)
    assert math.exp(queued.mu) == pytest.approx(math.exp(alone.mu), rel=0.2)


def test_a_step_after_a_pause_is_larger_than_one_among_many():
    link = taught(100)
    seen = Observation(4000, 0, RTT + SERVER + 4000 / 20_000, SERVER)
    soon = estimate.learned(link, seen, link.at + 0.03)
    late = estimate.learned(link, seen, link.at + 2.0)
    assert late.mu < soon.mu < link.mu
    assert link.mu - soon.mu < 0.6 * (link.mu - late.mu)


def test_a_small_message_can_only_say_that_the_link_is_faster():
    fast, slow = prior(50, 0.07, SERVER), prior(0.01, 0.07, SERVER)
    seen = Observation(100, 0, 0.1 + SERVER, SERVER)
    assert estimate.learned(fast, seen, 1.0).mu == fast.mu
    assert estimate.learned(slow, seen, 1.0).mu > slow.mu


def test_the_window_holds_the_latest_surprises_only():
    link = taught(100)
    link = taught(estimate.WINDOW, start=link, rate=50_000, at=10.0)
    assert len(link.residuals) == estimate.WINDOW
    assert all(surprise < 0 for surprise in link.residuals)


def test_queues_do_not_raise_the_round_trip_and_it_forgets_after_its_window():
    link = taught(100)
    for number in range(100):
        waits = 0.3 * (number % 4 > 0)
        seen = Observation(100, 0, RTT + SERVER + waits, SERVER)
        link = estimate.learned(link, seen, 10 + 0.1 * number)
    assert link.rtt == pytest.approx(RTT, abs=0.01)
    for number in range(200):
        seen = Observation(100, 0, 0.2 + SERVER, SERVER)
        link = estimate.learned(link, seen, 20 + 0.1 * number)
    assert link.rtt == pytest.approx(0.2, abs=0.01)


def test_a_frame_that_is_overdue_lowers_the_rate_more_the_longer_it_is():
    link = taught(100)
    due = link.rtt + link.server
    rates = [estimate.censored(link, 4000, due + over) for over in (-0.05, 0.01, 0.1, 0.5, 2.0)]
    assert rates[0] == rates[1] == link.mu
    assert rates[1] > rates[2] > rates[3] > rates[4]
    assert rates[4] == pytest.approx(math.log(4000 / 2.0))


def test_the_servers_time_fades_to_its_quiet_time_while_it_is_not_asked():
    link = taught(50)
    for number in range(10):
        seen = Observation(100, 0, RTT + 0.5, 0.5)
        link = estimate.learned(link, seen, 10 + 0.1 * number)
    busy = estimate.serving(link, 0.0)
    assert busy > 0.4
    assert estimate.serving(link, 1.0) == pytest.approx((busy + link.quiet) / 2)
    assert estimate.serving(link, 60.0) == pytest.approx(SERVER, abs=1e-6)


def test_a_throttled_device_takes_longer_than_its_profile():
    link = prior(1, RTT, SERVER)
    for _ in range(30):
        link = estimate.ran(link, 0.06, 0.03)
    assert link.kappa == pytest.approx(2.0, rel=0.01)
    assert estimate.ran(link, 1e9, 0.03).kappa <= 10


def test_after_an_outage_the_rate_is_low_and_wide_and_surprises_are_forgotten():
    link = taught(100)
    after = estimate.cautious(link, 10_000)
    assert after.mu == pytest.approx(math.log(10_000))
    assert after.var >= estimate.CAUTIOUS and after.residuals == ()
    slow = estimate.cautious(prior(0.001, RTT, SERVER), 10_000)
    assert slow.mu == prior(0.001, RTT, SERVER).mu


def test_answers_that_cannot_be_do_not_break_it():
    link = prior(0.5, RTT, SERVER)
    for took, server in ((0.0, 0.0), (0.01, 5.0), (1e6, 0.0), (1e-9, 1e-9)):
        link = estimate.learned(link, Observation(4000, 0, took, server), 1.0)
        assert math.isfinite(link.mu) and math.isfinite(link.var) and link.var >= 0
        assert math.isfinite(link.rtt)
