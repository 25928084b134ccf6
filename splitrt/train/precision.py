"""Average precision of boxes, as COCO reckons it: over recalls, labels and overlaps.

(Lin et al. 2014: 101 recalls, the best score first, each wanted box found once.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splitrt.core.boxes import Boxes, iou
from splitrt.errors import PacketError

OVERLAPS = tuple(np.arange(50, 100, 5) / 100)
RECALLS = np.linspace(0, 1, 101)


def precision(
    found: Sequence[Boxes],
    wanted: Sequence[Boxes],
    *,
    overlaps: Sequence[float] = OVERLAPS,
    label: int | None = None,
) -> float:
    """Mean average precision of what was found in pictures against what is wanted there, 0 to 1.

    Over all labels that are wanted anywhere, or of one. AP50 has overlaps=[0.5]. nan: none is
    wanted. Whoever asks hands over boxes down to a low score: a threshold cuts recalls off.
    """
    if len(found) != len(wanted):
        raise PacketError(f"boxes of {len(found)} pictures, {len(wanted)} wanted")
    asked = {int(one) for boxes in wanted for one in boxes.label}
    asked = asked if label is None else asked & {label}
    if not asked:
        return float("nan")
    return float(np.mean([_of_label(found, wanted, overlaps, one) for one in sorted(asked)]))


def _of_label(
    found: Sequence[Boxes], wanted: Sequence[Boxes], overlaps: Sequence[float], label: int
) -> float:
    """One label's, averaged over the overlaps."""
    scores, hits, count = [], [], 0
    for here, there in zip(found, wanted, strict=True):
        here, there = here[here.label == label], there[there.label == label]
        count += len(there)
        scores.append(here.score)
        hits.append(_matched(here, there, overlaps))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right = np.concatenate(hits)[order]  # [boxes, overlaps]
    return float(np.mean([_area(column, count) for column in right.T]))


def _matched(here: Boxes, there: Boxes, overlaps: Sequence[float]) -> np.ndarray:
    """Which boxes, best first, find one that no better box found: bool [n, overlaps]."""
    shared = iou(here.xyxy, there.xyxy)
    right = np.zeros((len(here), len(overlaps)), bool)
    for column, least in enumerate(overlaps):
        free = np.ones(len(there), bool)
        for row in np.argsort(-here.score, kind="stable"):
            open_ = np.where(free, shared[row], 0)
            if len(there) and open_.max() >= least:
                right[row, column] = True
                free[open_.argmax()] = False
    return right


def _area(right: np.ndarray, count: int) -> float:
    """Under precision by recall, each precision the best at that recall or a higher one."""
    hits = np.cumsum(right)
    recall, exact = hits / count, hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(exact[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS)
    return float(np.append(best, 0.0)[np.minimum(places, len(best))].mean())
