"""What each device of a star spends on a step, and who is slow."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from splitrt.star.guest import Beat

SLOW = 1.5  # times the others' median


@dataclass(frozen=True, slots=True)
class Figures:
    """What one device spent on each step so far, in milliseconds, and its peak memory in bytes.

    reduce: what the sums themselves take.  wait: for other devices.  load: for weights.
    """

    name: str
    shards: tuple[int, ...]
    compute: float
    reduce: float
    wait: float
    load: float
    peak: int


def slow(points: Sequence[Figures]) -> list[Figures]:
    """Devices that compute for SLOW times as long as the others' median."""
    found = []
    for one in points:
        others = [other.compute for other in points if other is not one]
        if others and one.compute > SLOW * statistics.median(others):
            found.append(one)
    return found


def figures(name: str, held: Sequence[int], beat: Beat) -> Figures:
    """Of seconds so far, milliseconds a step."""
    each = 1000 / max(1, beat.steps)
    return Figures(
        name=name,
        shards=tuple(held),
        compute=each * beat.compute,
        reduce=each * beat.reduce,
        wait=each * beat.wait,
        load=each * beat.load,
        peak=beat.peak,
    )
