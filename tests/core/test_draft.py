"""Draft lengths: the figures of the page, and what must hold whatever the numbers are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrt.core.draft import (
    PROBE,
    Cost,
    Mean,
    Way,
    answered,
    chances,
    goodput,
    length,
    served,
    start,
    stepped,
)
from splitrt.core.language import Bin, Exit

ROW = 2 * 4096  # bytes: float16 of a hidden size of 4096
MBIT = 1e6 / 8


def state(step=0.02, accepted=0.75, server=0.015):
    exit = Exit(layer=8, segment="s.onnx", file="e.onnx", accepted=accepted)
    return start(exit, step=step, server=server)


def gain(found, way):
    return goodput(found, length(found, way), way) / goodput(found, 0, way)


def test_a_long_round_trip_is_worth_three_or_four_drafts_and_nearly_twice_the_tokens():
    way = Way(rtt=0.080, rate=20 * MBIT, row=ROW)
    assert length(state(), way) in (3, 4)
    assert gain(state(), way) == pytest.approx(1.8, abs=0.1)


def test_a_short_round_trip_is_worth_a_fifth():
    assert gain(state(), Way(rtt=0.002, rate=20 * MBIT, row=ROW)) == pytest.approx(1.2, abs=0.05)


def test_a_slow_device_gains_next_to_nothing_on_a_short_link():
    found = gain(state(step=0.060), Way(rtt=0.002, rate=20 * MBIT, row=ROW))
    assert found == pytest.approx(1.03, abs=0.02)


def test_drafts_that_are_never_right_are_not_made():
    found = state(accepted=0.0)
    assert length(found, Way(0.08, 20 * MBIT, ROW), [0.05]) == 0


def test_a_draft_nobody_made_is_unknown_not_wrong():
    found = state()
    for _ in range(50):
        found = answered(found, [0.9], 1)
    assert found.places[0].weight and not found.places[1].weight
    assert chances(found, (), 2)[1] > 0.8 * chances(found, (), 1)[0]


def test_what_lies_behind_the_first_wrong_draft_says_nothing():
    before = state()
    after = answered(before, [0.9, 0.9, 0.9], 1)
    assert [place.weight for place in after.places[:3]] == [1, 1, 0]
    assert after.places[0].value == 1 and after.places[1].value == 0


def test_the_bins_of_the_manifest_are_believed_until_drafts_say_otherwise():
    bins = (Bin(low=0.0, share=0.5, accepted=0.2), Bin(low=0.7, share=0.5, accepted=0.95))
    found = start(Exit(layer=8, segment="s", file="e", bins=bins))
    assert found.overall.value == pytest.approx(0.575)
    assert chances(found, [0.3], 1) == [pytest.approx(0.2)]
    assert chances(found, [0.99], 1) == [pytest.approx(0.95)]
    for _ in range(200):
        found = answered(found, [0.3], 1)
    assert chances(found, [0.3], 1)[0] > 0.85


def test_an_unsure_draft_ends_a_round_that_a_sure_one_would_not():
    bins = (Bin(low=0.0, share=0.5, accepted=0.1), Bin(low=0.8, share=0.5, accepted=0.95))
    found = start(Exit(layer=8, segment="s", file="e", bins=bins))
    way = Way(rtt=0.02, rate=20 * MBIT, row=ROW)
    assert length(found, way, [0.95, 0.95]) >= 2
    assert length(found, way, [0.95, 0.1]) == 1


def test_one_round_in_so_many_drafts_one_more():
    way = Way(rtt=0.08, rate=20 * MBIT, row=ROW)
    lengths = [length(replace(state(), rounds=rounds), way) for rounds in range(2 * PROBE)]
    usual = lengths[0]
    assert sorted(lengths) == [usual] * (2 * PROBE - 2) + [usual + 1] * 2
    assert length(replace(state(), rounds=PROBE - 1), way, most=usual) == usual


def test_the_servers_cost_is_a_line_over_its_rows():
    cost = Cost()
    for rows in (1, 2, 8, 16, 4, 3, 9):
        cost = cost.seen(rows, 0.010 + 0.001 * rows)
    assert cost.of(20) == pytest.approx(0.030, rel=1e-6)
    assert Cost().seen(5, 0.02).of(50) == 0.02  # one point is no line


def test_a_busy_server_makes_rounds_rarer():
    """More rows of others, each dear: the round is long anyway, so a draft more costs little."""
    quiet = busy = state()
    for rows in (1, 2, 3, 4, 5, 6):
        quiet = served(quiet, rows=rows, batch=rows, verify=0.01, queue=0.0)
        busy = served(busy, rows=rows, batch=rows, verify=0.01, queue=0.2)
    way = Way(rtt=0.002, rate=100 * MBIT, row=ROW)
    assert length(busy, way) > length(quiet, way)


def test_a_device_that_slows_down_is_noticed():
    found = state(step=0.01)
    for _ in range(60):
        found = stepped(found, 0.05)
    assert found.step == pytest.approx(0.05, rel=0.01)


shares = st.floats(0.0, 1.0)
steps = st.floats(0.001, 0.2)
rates = st.floats(1e4, 1e8)
trips = st.floats(0.0, 1.0)


@settings(deadline=None, derandomize=True)
@given(steps, shares, rates, trips, trips)
def test_a_longer_round_trip_never_drafts_less(step, accepted, rate, one, two):
    found, (short, long) = state(step, accepted), sorted((one, two))
    assert length(found, Way(short, rate, ROW)) <= length(found, Way(long, rate, ROW))


@settings(deadline=None, derandomize=True)
@given(steps, steps, shares, trips)
def test_a_slower_device_never_drafts_more(one, two, accepted, rtt):
    """Where the rate is no matter; else a slow device's rows cross while it drafts."""
    fast, slow = sorted((one, two))
    way = Way(rtt, 1e12, ROW)
    assert length(state(slow, accepted), way) <= length(state(fast, accepted), way)


@settings(deadline=None, derandomize=True)
@given(steps, shares, rates, trips, st.lists(shares, max_size=6), st.integers(0, 16))
def test_the_length_is_the_best_and_within_its_bounds(step, accepted, rate, rtt, sure, most):
    found, way = state(step, accepted), Way(rtt, rate, ROW)
    best = length(found, way, sure, most=most)
    assert 0 <= best <= most
    assert all(
        goodput(found, best, way, sure) >= goodput(found, other, way, sure) * (1 - 1e-6)
        for other in range(most + 1)
    )


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.lists(shares, max_size=8), st.integers(0, 8)), max_size=40))
def test_chances_stay_chances_and_fall_with_every_draft(rounds):
    found = state()
    for sure, accepted in rounds:
        found = answered(found, sure, min(accepted, len(sure)))
    for sure in ([], [0.5] * 4):
        row = chances(found, sure, 8)
        assert all(
            0 <= later <= earlier <= 1 for earlier, later in zip([1.0, *row[:-1]], row, strict=True)
        )


@settings(deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_a_mean_is_what_was_seen_and_yields_to_it(values):
    mean = Mean()
    for value in values:
        mean = mean.moved(float(value))
    assert mean.value == pytest.approx(sum(values) / len(values))
    low, high = sorted((mean.value, 0.5))
    assert low - 1e-9 <= mean.beside(0.5) <= high + 1e-9
