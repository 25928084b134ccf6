"""Answer here, or send on: the local exit's confidence against the model's threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitrt.core.manifest import ExitRecord


@dataclass(frozen=True, slots=True)
class Verdict:
    """sure: the exit's answer is good enough.  confidence: calibrated, 0 to 1."""

    sure: bool
    confidence: float


def judge(logits: np.ndarray, record: ExitRecord) -> Verdict:
    """The verdict on the exit's logits [classes]; never sure without a threshold."""
    best = confidence(logits, record.temperature)
    return Verdict(record.threshold is not None and best >= record.threshold, best)


def confidence(logits: np.ndarray, temperature: float = 1.0) -> float:
    """Probability of the best class after temperature scaling (Guo et al. 2017)."""
    scaled = logits.astype(np.float64) / temperature
    return float(1 / np.exp(scaled - scaled.max()).sum())
