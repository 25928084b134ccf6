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
    shares = probabilities(logits, record.temperature)
    best = float(shares.max())
    if record.threshold is None:
        return Verdict(False, best)
    return Verdict(float(measured(shares, record.measure)) >= record.threshold, best)


def unsure(record: ExitRecord | None) -> float:
    """The exit's accuracy on frames of which it is not sure: those that are worth a thought."""
    if record is None or record.accuracy is None:
        return 0.0
    if record.share is None or record.sure_accuracy is None or record.share >= 1:
        return record.accuracy
    return max(0.0, record.accuracy - record.share * record.sure_accuracy) / (1 - record.share)


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Class probabilities [..., classes] after temperature scaling (Guo et al. 2017)."""
    scaled = logits.astype(np.float64) / temperature
    grown = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(grown / grown.sum(-1, keepdims=True))


def measured(shares: np.ndarray, measure: str) -> np.ndarray:
    """How sure probabilities [..., classes] are, 0 to 1; ExitRecord says what each measure is."""
    if measure == "confidence" or shares.shape[-1] < 2:
        return np.asarray(shares.max(-1))
    if measure == "margin":
        first, second = np.sort(shares, -1)[..., -1], np.sort(shares, -1)[..., -2]
        return np.asarray(first - second)
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(-1)
    return np.asarray(1 - entropy / np.log(shares.shape[-1]))


def confidence(logits: np.ndarray, temperature: float = 1.0) -> float:
    """Probability of the best class."""
    return float(probabilities(logits, temperature).max())
