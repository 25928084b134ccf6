"""The exit curve: how right the mix is when the surest frames are answered on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHARES = (0.1, 0.25, 0.5, 0.75)
POINT = 0.01  # of accuracy, that a mix may lose against the whole model
STEPS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What one plan did with each of N frames.

    right: bool [N].  sent: bytes, int [N].  confidence: of the exit, float [N], or None.
    """

    right: np.ndarray
    sent: np.ndarray
    confidence: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Mix:
    """The surest `share` of the frames answered by the exit, the others by the cloud plan.

    threshold: confidence of the least sure frame that stays; None where none stays.
    bytes_mean: over all frames; those that stay send nothing.
    """

    share: float
    threshold: float | None
    accuracy: float
    bytes_mean: float


@dataclass(frozen=True, slots=True)
class ExitCurve:
    """Mixes of exit and cloud on the frames that were scored.

    within: the largest share whose accuracy is at most one point below the whole model's; None
    if even the cloud plan alone is not. Its threshold was found on these frames, so other frames
    may do a little worse.
    """

    plan: str
    points: list[Mix]  # at SHARES
    within: Mix | None
    curve: list[Mix]  # from 0 to 1

    @property
    def lost(self) -> str:
        """What `within` None means, in a sentence."""
        best = max(mix.accuracy for mix in self.curve)
        return f"no mix is within 1 point of the whole model: the best has {best:.2%}"


def exit_curve(local: Answers, cloud: Answers, *, plan: str, whole: float) -> ExitCurve:
    """Mix the exit's answers with those of a cloud plan, the surest frames first."""
    if local.confidence is None:
        raise ValueError("the exit's answers come without confidence")
    order = np.argsort(-local.confidence, kind="stable")
    count = len(order)
    right = _sums(local.right[order]) + _rest(cloud.right[order])  # [N + 1] by how many stay
    sent = _rest(cloud.sent[order])
    sure = local.confidence[order]

    def mix(kept: int) -> Mix:
        threshold = round(float(sure[kept - 1]), 4) if kept else None
        return Mix(
            share=round(kept / count, 4),
            threshold=threshold,
            accuracy=round(float(right[kept]) / count, 4),
            bytes_mean=round(float(sent[kept]) / count, 1),
        )

    near = np.flatnonzero(right / count >= whole - POINT - 1e-9)
    return ExitCurve(
        plan=plan,
        points=[mix(kept) for kept in _kept(SHARES, count)],
        within=mix(int(near[-1])) if len(near) else None,
        curve=[mix(kept) for kept in _kept([i / STEPS for i in range(STEPS + 1)], count)],
    )


def _kept(shares: Sequence[float], count: int) -> list[int]:
    return sorted({round(share * count) for share in shares})


def _sums(values: np.ndarray) -> np.ndarray:
    """The sum of the first 0, 1, … N values: [N] -> [N + 1]."""
    return np.concatenate([[0], np.cumsum(values)])


def _rest(values: np.ndarray) -> np.ndarray:
    """The sum of all but the first 0, 1, … N values: [N] -> [N + 1]."""
    return values.sum() - _sums(values)
