"""The controller, transition by transition: nothing sleeps, time and chance are arguments."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from splitrt.core import control
from splitrt.core.control import Decision, Rules, State
from splitrt.core.gate import Verdict
from splitrt.core.plan import Bin, Local, Option, Price
from splitrt.errors import SplitrtError

OPTIONS = (
    Option("raw", 22_000, 0.004, 0.785),
    Option("wide", 7400, 0.035, 0.775),
    Option("middle", 3700, 0.033, 0.765),
    Option("narrow", 1000, 0.032, 0.735),
)
LOCAL = Local(0.64)


def decided(
    state: State,
    now: float,
    *,
    local: Local = LOCAL,
    left: float = 0.25,
    chance: float = 0.5,
    **more,
) -> tuple[Decision, State]:
    return control.decide(state, OPTIONS, local, left=left, now=now, chance=chance, **more)


def driven(state: State, begin: float, frames: int, *, mbps: float) -> tuple[list[Decision], State]:
    """So many frames at 10 a second, answered as a link of that rate does; 0: not at all."""
    told = []
    for frame in range(frames):
        now = begin + 0.1 * frame
        decision, state = decided(state, now)
        told.append(decision)
        if decision.option is None:
            continue
        ready = now + decision.option.head
        state = control.sent(state, frame + round(1000 * begin), decision.option.bytes, ready)
        if mbps:
            back = ready + 0.082 + decision.option.bytes * 8e-6 / mbps
            number = frame + round(1000 * begin)
            state = control.answered(state, number, back, server=0.012)
    return told, state


def fallen(now: float = 10.0) -> State:
    """A state that is down since `now`."""
    _, state = driven(control.start(OPTIONS), 0.0, 50, mbps=20)
    return control.broken(state, now)


def test_a_fast_link_carries_the_richest_plan_and_a_slow_one_the_leanest():
    told, state = driven(control.start(OPTIONS), 0.0, 100, mbps=40)
    assert {one.option.name for one in told[-20:]} == {"raw"} and told[-1].hit > 0.9
    told, _ = driven(state, 20.0, 100, mbps=0.12)
    assert {one.option.name for one in told[-20:] if one.option} == {"narrow"}


def test_a_sure_frame_stays_here_and_the_unsure_one_after_it_goes():
    _, state = driven(control.start(OPTIONS), 0.0, 50, mbps=20)
    sure, state = decided(state, 5.05, local=Local(0.99))
    unsure, _ = decided(state, 5.15, local=Local(0.3))
    assert (sure.action, unsure.action) == ("local", "send")


def test_an_empty_frame_is_dropped_whatever_the_link():
    for state in (control.start(OPTIONS), fallen()):
        assert decided(state, 11.0, local=Local(0.64, empty=True))[0].action == "drop"


def test_a_frame_that_no_head_could_finish_is_dropped():
    _, state = driven(control.start(OPTIONS), 0.0, 50, mbps=20)
    late = Local(0.64, seconds=0.03)
    assert decided(state, 5.0, local=late, left=0.002)[0].action == "drop"
    assert decided(state, 5.0, local=late, left=-1.0)[0].action == "drop"
    assert decided(state, 5.0, left=0.002)[0].action == "local"  # its answer is there already


def test_with_four_frames_in_flight_the_device_answers_or_the_frame_is_dropped():
    _, state = driven(control.start(OPTIONS), 0.0, 50, mbps=20)
    for number in range(4):
        assert decided(state, 5.0, local=Local(0.2))[0].action == "send"
        state = control.sent(state, 9000 + number, 100, 5.0)
    assert decided(state, 5.01, local=Local(0.2))[0].action == "local"
    assert decided(state, 5.01, local=Local(0.0))[0].action == "drop"
    state = control.answered(state, 9001, 5.08)
    assert decided(state, 5.09, local=Local(0.2))[0].action == "send"


def test_a_silent_link_goes_down_and_no_frame_is_sent_until_a_pong():
    _, state = driven(control.start(OPTIONS), 0.0, 50, mbps=20)
    told, state = driven(state, 5.0, 600, mbps=0)
    sends = [place for place, one in enumerate(told) if one.action == "send"]
    assert len(sends) <= 4 and max(sends) < 17
    assert not state.up and state.flights == ()
    state = control.ponged(state, 0.09, 65.0)
    assert state.up and decided(state, 65.0)[0].action == "send"


def test_silence_is_a_second_and_a_half_or_six_round_trips():
    for rtt, patience in ((0.07, 1.5), (0.5, 3.0)):
        state = control.sent(control.start(OPTIONS, rtt=rtt), 1, 1000, 10.0)
        assert control.silent(state, 10.0 + patience - 0.01) == state
        assert not control.silent(state, 10.0 + patience + 0.01).up


def test_heartbeats_come_at_once_then_ever_more_slowly_up_to_a_second():
    state, beats, draw = fallen(10.0), [], random.Random(1)
    for step in range(2000):
        now = 10 + 0.01 * step
        due, state = control.beat(state, now, draw.random())
        beats += [now] * due
    gaps = [b - a for a, b in itertools.pairwise(beats)]
    assert beats[0] == 10.0
    assert 0.15 < gaps[0] < 0.26 and 0.25 < gaps[1] < 0.4
    assert all(0.79 < gap < 1.22 for gap in gaps[4:])
    assert max(gaps[4:]) - min(gaps[4:]) > 0.05  # devices do not fall into step


def test_no_heartbeat_goes_while_the_link_is_up():
    state = control.start(OPTIONS)
    assert control.beat(state, 1e6, 0.5) == (False, state)


def test_after_an_outage_the_first_frames_are_lean_and_the_next_outage_beats_fast_again():
    _, state = driven(control.start(OPTIONS), 0.0, 100, mbps=40)
    state = control.broken(state, 10.0)
    for now in (10.0, 10.5, 11.5, 12.8):
        _, state = control.beat(state, now, 0.5)
    state = control.ponged(state, 0.08, 13.0)
    assert state.link.residuals == () and math.exp(state.link.mu) <= 10_000 + 1e-6
    told, state = driven(state, 13.0, 40, mbps=40)
    assert told[0].option.name == "narrow" and told[-1].option.name == "raw"
    _, state = control.beat(control.broken(state, 20.0), 20.0, 0.5)
    assert state.beat_at == pytest.approx(20.2)


def test_answers_from_before_an_outage_change_nothing():
    state = control.sent(control.start(OPTIONS), 7, 1000, 1.0)
    state = control.broken(state, 2.0)
    assert control.answered(state, 7, 3.0) == state
    assert control.gone(state, 7) == state


def test_a_busy_server_is_sent_less_and_left_alone_and_the_link_is_not_blamed():
    _, state = driven(control.start(OPTIONS), 0.0, 50, mbps=20)
    before = state.link
    state = control.sent(state, 9000, 1000, 5.0)
    state = control.refused(state, 9000, 0.2, 5.1, 0.5)
    assert state.link == before and state.flights == () and state.up
    assert state.share == pytest.approx(0.85)
    assert decided(state, 5.39, chance=0.0)[0].action == "local"  # 0.2 s x 1.5
    assert decided(state, 5.41, chance=0.0)[0].action == "send"
    assert decided(state, 5.41, chance=0.86)[0].action == "local"
    for number in range(100):
        state = control.refused(state, number, 0.0, 6.0, 0.0)
    assert state.share == 0.02
    state = control.answered(control.sent(state, 1, 1000, 6.0), 1, 6.1)
    assert state.share == pytest.approx(0.03)


def test_a_link_too_slow_for_anything_is_probed_with_the_smallest_plan():
    state = control.start(OPTIONS, mbps=0.001)
    told, state = driven(state, 0.0, 400, mbps=0.02)
    probes = [one for one in told if one.probe]
    assert {one.option.name for one in probes} == {"narrow"}
    assert 10 <= len(probes) <= 21  # 5 % and the first
    told, _ = driven(state, 40.0, 100, mbps=40)
    assert told[-1].option.name == "raw"  # the probes noticed


def test_lean_frames_are_followed_by_one_richer_probe_now_and_then():
    lean = (Option("rich", 4000, 0.03, 0.74), Option("lean", 1000, 0.03, 0.7399))
    state, told = control.start(lean, mbps=5), []
    for frame in range(200):
        now = 0.1 * frame
        decision, state = control.decide(
            state, lean, LOCAL, left=0.25, now=now, chance=0.5, price=Price(byte=1e-5)
        )
        told.append(decision)
        state = control.sent(state, frame, decision.option.bytes, now + 0.03)
        state = control.answered(state, frame, now + 0.15, server=0.012)
    probes = [place for place, one in enumerate(told) if one.probe]
    assert {told[place].option.name for place in probes} == {"rich"}
    assert 5 <= len(probes) <= 11
    assert min(b - a for a, b in itertools.pairwise(probes)) >= 12


def test_without_a_share_for_probes_there_are_none():
    state = control.start(OPTIONS, rules=Rules(probes=0.0), mbps=0.001)
    told, _ = driven(state, 0.0, 300, mbps=0.02)
    assert {one.action for one in told} == {"local"}


def test_a_price_makes_frames_leaner_and_then_keeps_them_here():
    _, state = driven(control.start(OPTIONS), 0.0, 100, mbps=40)
    names = []
    for byte in (0.0, 1e-5, 4e-5, 1e-3):
        decision, _ = decided(state, 10.0, price=Price(byte=byte))
        names.append(decision.option.name if decision.option else None)
    assert names == ["raw", "middle", "narrow", None]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_rules_hold(seed):
    """Random events: no frame while down, few probes, probabilities, bounded memory."""
    draw = random.Random(seed)
    state, now, probes, frames, seq = control.start(OPTIONS), 0.0, 0, 0, 0
    for _ in range(1500):
        now += draw.expovariate(10)
        event = draw.choice(["frame"] * 6 + ["answer"] * 4 + ["refuse", "gone", "break", "pong"])
        flying = [flight.seq for flight in state.flights]
        one = draw.choice(flying) if flying and draw.random() < 0.95 else 10**9
        if event == "frame":
            was_up = state.up
            local = Local(draw.random(), hedged=draw.random() < 0.5)
            decision, state = decided(state, now, local=local, chance=draw.random())
            frames, probes = frames + 1, probes + decision.probe
            assert was_up or decision.action != "send"
            assert 0 <= decision.hit <= 1
            assert (decision.option is not None) == (decision.action == "send")
            if decision.option and draw.random() < 0.9:
                seq += 1
                state = control.sent(state, seq, decision.option.bytes, now + 0.03)
        elif event == "answer":
            state = control.answered(state, one, now + draw.random(), server=draw.random())
        elif event == "refuse":
            state = control.refused(state, one, draw.random(), now, draw.random())
        elif event == "gone":
            state = control.gone(state, one)
        elif event == "break" and draw.random() < 0.2:
            state = control.broken(state, now)
        elif event == "pong":
            _, state = control.beat(state, now, draw.random())
            state = control.ponged(state, draw.random(), now)
        assert 0.02 <= state.share <= 1 and probes <= 1 + 0.05 * frames
        assert len(state.flights) <= 5 and len(state.link.floors) <= 256
        assert math.isfinite(state.link.mu) and state.link.var >= 0


BINNED = Option(
    "wide", 7400, 0.035, 0.775, bins=(Bin(0.5, 0.4, 0.6), Bin(0.5, 0.95, 0.95)), edges=(0.8,)
)


def test_a_frame_goes_where_its_plan_beats_its_exit_on_frames_like_it():
    state = control.start([BINNED])
    assert control.confirms(state, BINNED, 0.9, Verdict(False, 0.79))
    assert control.confirms(state, BINNED, 0.9, Verdict(True, 0.79))  # the gate is not asked
    assert not control.confirms(state, BINNED, 0.9, Verdict(False, 0.8))
    assert not control.confirms(state, BINNED, 0.01, Verdict(False, 0.2))  # it would not arrive
    dear = Price(byte=1e-3)
    assert not control.confirms(state, BINNED, 0.9, Verdict(False, 0.2), dear)


def test_without_bins_a_frame_stays_of_which_the_gate_is_sure():
    state = control.start(OPTIONS)
    assert control.confirms(state, OPTIONS[0], 0.9, Verdict(False, 0.7))
    assert not control.confirms(state, OPTIONS[0], 0.9, Verdict(True, 0.7))
    assert not control.confirms(state, OPTIONS[0], 0.9, Verdict(False, 0.79))


def test_before_the_exit_answers_a_frame_is_chosen_for_by_the_mean_over_its_bins():
    """The plan adds .2 on half of the frames: nothing where the device's own exit is .1 better."""
    state = control.start([BINNED], rules=Rules(probes=0.0), mbps=20)
    for here, action in ((0.675, "send"), (0.775, "local")):
        found, _ = control.decide(state, [BINNED], Local(here), left=0.25, now=9.0, chance=0.5)
        assert found.action == action
    found, _ = control.decide(state, [BINNED], Local(0.675), left=0.25, now=9.0, chance=0.5)
    assert found.value == pytest.approx(0.1 * found.hit)


@pytest.mark.parametrize("options", [(), (Option("none", 0, 0.03, 0.7),)])
def test_options_must_be_ways_to_the_server(options):
    with pytest.raises(SplitrtError, match="help"):
        control.start(options)
