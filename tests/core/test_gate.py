"""The gate: calibrated confidence against the threshold."""

from __future__ import annotations

import numpy as np
import pytest

from splitrt.core.gate import confidence, judge
from splitrt.core.manifest import ExitRecord


def test_confidence_is_the_softmax_of_the_best_class():
    assert confidence(np.log(np.array([1.0, 2.0, 5.0]))) == pytest.approx(5 / 8)


def test_heat_makes_less_sure():
    logits = np.array([0.0, 3.0])
    assert confidence(logits, 2.0) == pytest.approx(1 / (1 + np.exp(-1.5)))


def test_huge_logits_do_not_overflow():
    assert confidence(np.array([1e30, 0.0])) == 1.0


def test_without_a_threshold_nothing_is_sure():
    logits = np.array([100.0, 0.0])
    assert not judge(logits, ExitRecord(output="logits")).sure
    assert judge(logits, ExitRecord(output="logits", threshold=0.9)).sure
    assert not judge(np.array([0.1, 0.0]), ExitRecord(output="logits", threshold=0.9)).sure
