"""The threshold of the similarity filter, chosen on a video whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from splitrt.errors import SplitrtError
from splitrt.train import similar


def video(levels: list[int]) -> list[np.ndarray]:
    """A grey picture for each level, so that the change is twice the difference of levels."""
    return [np.full((32, 48, 3), level, np.uint8) for level in levels]


def test_the_largest_threshold_that_keeps_answers_true():
    levels = [100, 101, 102, 110, 111, 112, 130, 131, 132] * 10
    answers = [level // 10 for level in levels]
    found = similar(video(levels), answers, wrong=0.0)
    assert found.threshold == pytest.approx(18, abs=0.01)  # from 100 to 110 the change is 20
    assert found.agreement == 1.0
    assert found.share == pytest.approx(2 / 3, abs=0.01)
    loose = similar(video(levels), answers, wrong=0.5)
    assert loose.threshold > found.threshold and loose.agreement >= 0.5


def test_answers_that_flip_without_a_change_leave_nothing_to_re_use():
    found = similar(video([100] * 50), [place % 2 for place in range(50)])
    assert (found.threshold, found.agreement) == (0.0, None)


def test_the_interval_bounds_what_a_still_video_re_uses():
    found = similar(video([100] * 50), [1] * 50, interval=10)
    assert (found.interval, found.share) == (10, 0.9)


def test_every_picture_needs_an_answer():
    with pytest.raises(SplitrtError, match="help:"):
        similar(video([1, 2, 3]), [1, 2])
