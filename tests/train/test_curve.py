"""The exit curve, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from splitrt.train.curve import Answers, exit_curve

# Sorted by confidence the exit is right on 1, 1, 0, 0; the cloud on 1, 0, 1, 1.
LOCAL = Answers(
    right=np.array([False, True, True, False]),
    sent=np.zeros(4, int),
    confidence=np.array([0.3, 0.9, 0.8, 0.5]),
)
CLOUD = Answers(np.array([True, True, False, True]), np.array([100, 200, 300, 400]))


def test_a_mix_takes_the_surest_from_the_exit_and_the_others_from_the_cloud():
    found = exit_curve(LOCAL, CLOUD, plan="q4", whole=0.75)
    assert found.plan == "q4"
    by_share = {mix.share: mix for mix in found.curve}
    assert [by_share[i / 4].accuracy for i in range(5)] == [0.75, 0.75, 1.0, 0.75, 0.5]
    assert [by_share[i / 4].bytes_mean for i in range(5)] == [250, 200, 125, 25, 0]
    assert [by_share[i / 4].threshold for i in range(5)] == [None, 0.9, 0.8, 0.5, 0.3]


def test_the_share_within_one_point_is_the_largest():
    assert exit_curve(LOCAL, CLOUD, plan="q4", whole=0.75).within.share == 0.75
    assert exit_curve(LOCAL, CLOUD, plan="q4", whole=1.0).within.share == 0.5
    assert exit_curve(LOCAL, CLOUD, plan="q4", whole=0.5).within.share == 1.0


def test_a_cloud_plan_that_is_worse_than_a_point_has_no_such_share():
    wrong = Answers(np.zeros(4, bool), CLOUD.sent)
    lost = Answers(np.zeros(4, bool), LOCAL.sent, LOCAL.confidence)
    found = exit_curve(lost, wrong, plan="q4", whole=0.9)
    assert found.within is None and found.lost.endswith("the best has 0.00%")


def test_the_quoted_shares_are_those_of_the_frames():
    many = np.random.default_rng(0).random(1000)
    local = Answers(many > 0.2, np.zeros(1000, int), many)
    found = exit_curve(local, Answers(many > 0, np.full(1000, 300)), plan="q4", whole=1.0)
    assert [mix.share for mix in found.points] == [0.1, 0.25, 0.5, 0.75]
    assert found.points[2].bytes_mean == 150
    assert found.within.share >= 0.75 and len(found.curve) == 101


def test_an_exit_without_confidence_has_no_curve():
    with pytest.raises(ValueError, match="confidence"):
        exit_curve(CLOUD, CLOUD, plan="q4", whole=1.0)
