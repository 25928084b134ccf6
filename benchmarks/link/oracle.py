"""What somebody who knew the link's future would reach: an upper bound for every policy."""

from __future__ import annotations

import numpy as np

from benchmarks.link.scene import PERIOD, Scene
from splitrt.core.links import STEP
from splitrt.core.plan import Bin

BIN, BINS = 250.0, 321  # bytes of backlog


def oracle(scene: Scene) -> float:
    """Mean accuracy of the best sequence of plans, by dynamic programming over the backlog.

    Backlogs are rounded down to the bin, so this is never less than what can be reached. A miss
    counts as the device's answer, which favours the oracle where frames are not hedged. How sure an
    exit will be it learns when its head has run, as the controller does: a bound on the average.
    """
    carried, local = scene.trace.carried(), scene.table.local.accuracy
    clock = STEP * np.arange(len(carried))
    backlog = BIN * np.arange(BINS)
    ahead = np.zeros(BINS)  # accuracy still to be had, by backlog
    for frame in range(scene.frames - 1, -1, -1):
        now = frame * PERIOD
        begin, end = np.interp([now, now + PERIOD], clock, carried)
        kept = ahead[_bins(np.maximum(begin + backlog - end, 0))]
        best = local + kept
        for option in scene.table.options:
            ready = np.interp(now + option.head, clock, carried)
            total = np.maximum(begin + backlog, ready) + option.bytes
            took = _when(carried, total) - now + scene.rtts[frame] + scene.servers[frame]
            left = np.maximum(total - end, 0)
            room, later = left < BIN * BINS, ahead[_bins(left)]
            reached = np.zeros(BINS)
            for one in option.bins or (Bin(1.0, local, option.accuracy),):
                gained = np.where(took <= scene.deadline, one.sent, one.exit)
                sent = np.where(room, gained + later, 0.0)
                reached += one.share * np.maximum(sent, one.exit + kept)
            best = np.maximum(best, reached)
        ahead = best
    return float(ahead[0]) / scene.frames


def _bins(backlog: np.ndarray) -> np.ndarray:
    return np.minimum((backlog / BIN).astype(int), BINS - 1)


def _when(carried: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Seconds after which so many bytes have crossed; infinite if never."""
    place = np.searchsorted(carried, total)
    inside = np.clip(place, 1, len(carried) - 1)
    before, after = carried[inside - 1], carried[inside]
    seconds = STEP * (inside - 1 + (total - before) / np.maximum(after - before, 1e-12))
    return np.where(place < len(carried), np.where(place > 0, seconds, 0.0), np.inf)
