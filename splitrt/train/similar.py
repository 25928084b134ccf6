"""How little a picture may change before the last answer no longer holds: chosen on a video."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from splitrt.core.manifest import Similar
from splitrt.core.similar import blocks, change
from splitrt.errors import SplitrtError

CANDIDATES = 500


def similar(
    images: Iterable[np.ndarray],
    answers: Sequence[object] | np.ndarray,
    *,
    interval: int = 30,
    wrong: float = 0.01,
) -> Similar:
    """The largest threshold at which at most a share `wrong` of the re-used answers is not true.

    images: uint8 [H, W, 3] of one held-out video, in order.  answers: the true answer of each,
    comparable with ==. The agreement and the share of re-used frames go into the record.
    """
    smalls = [blocks(image) for image in images]
    if len(smalls) != len(answers) or len(smalls) < 2:
        raise SplitrtError(f"{len(smalls)} pictures, {len(answers)} answers\nhelp: one for each")
    gaps = _gaps(smalls, interval)
    found = Similar(threshold=0.0, interval=interval)
    for threshold in _candidates(gaps):
        source = replay(gaps, threshold)
        right = [answers[i] == answers[j] for i, j in enumerate(source) if i != j]
        if right and 1 - sum(right) / len(right) <= wrong:
            found = Similar(
                threshold=threshold,
                interval=interval,
                agreement=sum(right) / len(right),
                share=len(right) / len(smalls),
            )
    return found


def replay(gaps: np.ndarray, threshold: float) -> list[int]:
    """For every frame the one whose answer it gets: itself, if it was asked.

    gaps: [N, interval]: the change of frame i since frame i - lag, at [i, lag].
    """
    source: list[int] = []
    last = 0
    for place in range(len(gaps)):
        lag = place - last
        if lag == 0 or lag >= gaps.shape[1] or gaps[place, lag] > threshold:
            last = place
        source.append(last)
    return source


def _gaps(smalls: list[np.ndarray], interval: int) -> np.ndarray:
    gaps = np.full((len(smalls), interval), np.inf)
    for place, small in enumerate(smalls):
        for lag in range(1, min(interval, place + 1)):
            gaps[place, lag] = change(small, smalls[place - lag])
    return gaps


def _candidates(gaps: np.ndarray) -> list[float]:
    """Rising thresholds between which the re-used frames differ, thinned out evenly."""
    levels = np.unique(gaps[np.isfinite(gaps)])
    places = np.linspace(0, len(levels) - 1, min(CANDIDATES, len(levels))).astype(int)
    return [float(level) for level in levels[places]]
