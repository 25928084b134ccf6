"""One direction of a link, on a clock that the tests turn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from splitrt.core import links
from splitrt.core.links import STEP, Trace
from splitrt.core.way import Way


def constant(mbps: float) -> Trace:
    return Trace("constant", np.array([mbps]))


def landings(way: Way[int], until: float, step: float = math.inf) -> dict[int, float]:
    """When each item landed, if `take` is called when it is due, at the latest after `step`."""
    now, landed = 0.0, {}
    while now < until:
        now = min(way.due(), now + step, until)
        landed |= dict.fromkeys(way.take(now), now)
    return landed


@pytest.mark.parametrize("mbps", [0.5, 4.0, 100.0])
@pytest.mark.parametrize("step", [0.001, math.inf])
def test_bytes_take_the_time_that_the_rate_says(mbps, step):
    way = Way(trace=constant(mbps), queue=1 << 20)
    for item in range(100):
        way.put(0.0, item, 1250)  # 10 kbit
    landed = landings(way, 5.0, step)
    for item, when in landed.items():
        assert when == pytest.approx((item + 1) * 0.01 / mbps, rel=1e-6, abs=1e-9)
    assert len(landed) == 100


def test_the_delay_comes_after_the_crossing_and_pieces_overlap_in_it():
    way = Way(trace=constant(1.0), delay=0.5, queue=1 << 20)
    for item in range(3):
        way.put(0.0, item, 12_500)  # 0.1 s each
    assert landings(way, 5.0) == pytest.approx({0: 0.6, 1: 0.7, 2: 0.8})


def test_an_idle_link_saves_nothing_up():
    way = Way(trace=constant(1.0), queue=1 << 20)
    way.put(10.0, 0, 12_500)
    assert way.take(10.099) == [] and way.take(10.101) == [0]


def test_a_trace_is_carried_out_step_by_step_and_begins_again():
    trace = Trace("steps", np.array([1.0, 0.0, 2.0]))  # 31,250, 0 and 62,500 bytes
    way = Way(trace=trace, queue=1 << 20)
    for item in range(3):
        way.put(0.0, item, 46_875)
    assert landings(way, 5.0) == pytest.approx(
        {0: 2 * STEP + STEP / 4, 1: 2 * STEP + STEP, 2: 5 * STEP + STEP / 4}
    )


def test_a_generated_link_carries_what_its_trace_says():
    trace = links.generate(links.link("lte-poor"), 60, seed=4)
    way, size = Way(trace=trace, queue=1 << 30), 1400
    for item in range(20_000):
        way.put(0.0, item, size)
    carried = size * len(landings(way, 59.99))
    assert carried == pytest.approx(trace.carried()[-1], rel=0.01)
    assert carried < 20_000 * size


def test_an_outage_holds_and_loses_nothing_in_order():
    way = Way(trace=constant(0.0), queue=1 << 20)
    for item in range(5):
        way.put(0.0, item, 1000)
    assert landings(way, 60.0) == {}
    way.reshape(60.0, constant(8.0))
    assert way.take(60.0049) == [0, 1, 2, 3] and way.take(61) == [4]


def test_holding_stops_the_crossing_and_not_what_flies():
    way = Way(trace=constant(8.0), delay=0.1, queue=1 << 20)
    way.put(0.0, 0, 1000)
    way.put(0.0, 1, 1000)
    way.hold(0.0015, True)
    assert way.take(50.0) == [0] and way.due() == math.inf
    way.hold(50.0, False)
    assert way.take(50.1) == [] and way.take(50.2) == [1]


def test_a_full_queue_says_so_until_it_has_crossed():
    way = Way(trace=constant(1.0), queue=10_000)
    way.put(0.0, 0, 6000)
    assert way.room == 4000
    way.put(0.0, 1, 6000)
    assert way.room == 0
    way.take(0.06)
    assert way.room == 4000 and way.waiting == 6000


def test_a_slower_rate_holds_for_what_has_not_crossed():
    way = Way(trace=constant(1.0), queue=1 << 20)
    way.put(0.0, 0, 12_500)
    way.reshape(0.05, constant(0.1))
    assert way.take(0.54) == [] and way.take(0.56) == [0]


def test_without_a_limit_only_the_delay_is_left_and_an_end_keeps_its_place():
    way = Way(delay=0.1, queue=1000)
    way.put(1.0, 0, 10**6)
    way.put(1.0, 1, 0)
    assert way.take(1.09) == [] and way.take(1.11) == [0, 1]
    assert way.due() == math.inf and way.flying == way.waiting == 0


def test_jitter_adds_and_keeps_the_order():
    way = Way(delay=0.1, jitter=0.05, queue=1 << 20)
    late = []
    for item in range(500):
        way.put(item / 2, item, 100)
        due = way.due()
        assert way.take(due) == [item]
        late.append(due - item / 2)
    assert 0.1 <= min(late) < 0.11 and 0.14 < max(late) <= 0.15


def test_a_delay_that_shrinks_overtakes_nothing():
    way = Way(delay=0.5, queue=1 << 20)
    way.put(0.0, 0, 100)
    way.delay = 0.0
    way.put(0.1, 1, 100)
    assert way.take(0.4) == [] and way.take(0.5) == [0, 1]
