"""Accuracy by the exit's confidence: what bins keep, and what they must not make up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrt.core.manifest import ExitRecord
from splitrt.train.bins import FEWEST, MOST, Bins, rising
from splitrt.train.record import _bin

fixed = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def drawn(seed: int, frames: int = 2000, gain: float = 0.0) -> tuple[np.ndarray, ...]:
    """(confidence, where the exit is right, where the plan is); the exit is calibrated.

    gain: of the frames that the exit gets wrong, the share that the plan gets right. With none, the
    plan errs as often as the exit does, on frames of its own.
    """
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.2, 1, frames)
    hits = random.random(frames) < confidence
    other = random.random(frames) < confidence
    return confidence, hits, np.where(random.random(frames) < gain, True, other)


def test_frames_are_shared_out_evenly_and_each_lies_between_its_edges():
    confidence, _, _ = drawn(0)
    bins = Bins.of(confidence)
    assert len(bins.edges) == MOST - 1 and bins.shares == pytest.approx(np.full(MOST, 1 / MOST))
    low, high = np.append(-np.inf, bins.edges), np.append(bins.edges, np.inf)
    assert (low[bins.place] <= confidence).all() and (confidence < high[bins.place]).all()


def test_too_few_frames_have_fewer_bins_or_none():
    assert len(Bins.of(drawn(0, 3 * FEWEST + 50)[0]).edges) == 2
    assert Bins.of(drawn(0, 2 * FEWEST - 1)[0]) is None
    assert Bins.of(np.ones(5000)) is None  # all of one confidence


@fixed
@given(
    st.lists(
        st.tuples(st.floats(-1, 1), st.floats(0.01, 1)).filter(lambda p: p[1] > 0),
        min_size=1,
        max_size=12,
    )
)
def test_rising_values_rise_keep_the_mean_and_are_not_touched_if_they_rise_already(pairs):
    values, weights = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    found = rising(values, weights)
    assert (np.diff(found) >= -1e-9).all()
    assert found @ weights == pytest.approx(values @ weights, abs=1e-9)
    assert rising(np.sort(values), weights) == pytest.approx(np.sort(values))


@fixed
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_what_the_bins_say_adds_up_to_what_was_seen(seed, gain):
    confidence, hits, sent = drawn(seed, gain=gain)
    bins = Bins.of(confidence)
    assert bins.exit(hits) @ bins.shares == pytest.approx(hits.mean())
    assert (np.diff(bins.exit(hits)) >= -1e-9).all()
    gains = bins.plan(sent, hits) - bins.exit(hits)
    assert (np.diff(gains) <= 1e-9).all() or bins.plan(sent, hits).max() == 1.0


def test_a_plan_that_is_better_where_the_exit_is_unsure_gains_there():
    confidence, hits, sent = drawn(1, frames=5000, gain=0.8)
    bins = Bins.of(confidence)
    gains = bins.plan(sent, hits) - bins.exit(hits)
    assert gains[0] > 0.4 and gains[-1] < 0.1


def test_a_plan_that_is_no_better_gains_next_to_nothing_by_chance():
    """The better of both in each bin, over 40 draws: smoothed half the promise of it raw."""
    raw, smooth = [], []
    for seed in range(40):
        confidence, hits, sent = drawn(seed)
        bins = Bins.of(confidence)
        seen = bins._mean(sent.astype(float) - hits)
        raw.append(np.maximum(seen, 0) @ bins.shares)
        smooth.append(np.maximum(bins.plan(sent, hits) - bins.exit(hits), 0) @ bins.shares)
    assert np.mean(smooth) < 0.6 * np.mean(raw)


def test_the_exit_and_the_plans_of_its_head_are_recorded_by_its_confidence():
    confidence, hits, sent = drawn(2, gain=0.5)
    sure = 0.5 + confidence / 2  # of the first of two classes
    logits = np.stack([np.log(sure), np.log(1 - sure + 1e-9)], 1)
    right, answer = np.where(hits, 0, 1), np.where(sent == hits, 0, 1)
    width = {"name": "w8", "exit": {"temperature": 1.0}}
    places = {"q4": ("cloud", "w8"), "w16-q4": ("cloud", "w16"), "exit": ("edge", "w8")}
    plans = {name: {"place": place, "width": wide} for name, (place, wide) in places.items()}
    _bin(width, plans, dict.fromkeys(plans, answer), logits, right)
    record = ExitRecord(output="logits", **width["exit"])
    assert len(record.bins) == MOST and [name for name in plans if "bins" in plans[name]] == ["q4"]
    assert np.dot(record.bins, record.shares) == pytest.approx(hits.mean(), abs=1e-3)
    found = np.dot(plans["q4"]["bins"], record.shares)
    assert found == pytest.approx((answer == right).mean(), abs=1e-3)
