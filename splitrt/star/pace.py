"""Which way of adding is the fastest here: each is timed on the lines themselves."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np

from splitrt.errors import SplitrtError
from splitrt.star.meet import Hub, Spoke
from splitrt.star.part import WIRES
from splitrt.star.reduce import KINDS, MANY, Way

WAYS = tuple(Way(kind, wire) for kind in KINDS for wire in WIRES)
EXACT = tuple(way for way in WAYS if way.wire == "f32")  # those that change no bit of the sum
RUN, LEAD = 10, 2  # sums of one way that count, and that do not before them
WIDE = 16  # rows of a sum that stands for those of many
MARGIN = 0.1  # of the time, that another way than the first must save


def fastest(times: Mapping[Way, float], *, margin: float = MARGIN) -> Way:
    """The way with the least seconds; but the first unless that saves `margin` of its time."""
    if not times:
        raise SplitrtError("no way was measured\nhelp: name at least one")
    first, best = next(iter(times)), min(times, key=lambda way: times[way])
    return best if times[best] <= (1 - margin) * times[first] else first


def measure(
    party: Hub | Spoke, ways: Sequence[Way] = WAYS, *, rows: int = 1, rounds: int = 50
) -> dict[Way, float]:
    """Median seconds of a sum of [rows, hidden] by each way; all devices call it together.

    The mesh is left out where some device does not reach some other. Ways take turns, so that a
    moment's load hits all of them; in runs whose first sums do not count, for a device that was
    done early with another way has sent its part already. The party's own way stays.
    """
    able = [way for way in ways if way.kind == "star" or party.meshed]
    shape = party.parts[party.device], rows, party.hidden
    array = np.linspace(-1, 1, math.prod(shape), dtype=np.float32).reshape(shape)
    out = np.empty_like(array[0])
    found: dict[Way, list[float]] = {way: [] for way in able}
    before, wide = party.way, party.wide
    for _ in range(-(-rounds // RUN)):
        for way in able:
            party.way = way
            for turn in range(LEAD + RUN):
                start = time.perf_counter()
                party.reduce(array, out=out)
                if turn >= LEAD:
                    found[way].append(time.perf_counter() - start)
    party.way, party.wide = before, wide
    return {way: statistics.median(seconds) for way, seconds in found.items()}


def settle(
    party: Hub | Spoke, ways: Sequence[Way] = WAYS, *, rows: int = 1, rounds: int = RUN
) -> dict[Way, float]:
    """Measure, and take the hub's fastest way on all devices; all call it together.

    Sums of many rows may be made by the other kind, with the same wire: their bits are the same.

    With `EXACT` no bit of a sum changes. Returns this device's own times.
    """
    times = measure(party, ways, rows=rows, rounds=rounds)
    chosen = _agreed(party, times)
    alike = [way for way in times if way.wire == chosen.wire]
    wide = chosen
    if len(alike) > 1 and party.rows >= MANY:
        wide = _agreed(party, measure(party, alike, rows=min(WIDE, party.rows), rounds=rounds))
    party.way, party.wide = chosen, wide.kind
    return times


def _agreed(party: Hub | Spoke, times: Mapping[Way, float]) -> Way:
    """The hub's fastest."""
    able = list(times)
    if isinstance(party, Hub):
        chosen = fastest(times)
        party.tell(bytes([able.index(chosen)]))
        return chosen
    told = party.hear(timeout=party.terms.timeout)
    if len(told) != 1 or told[0] >= len(able):
        raise SplitrtError("the hub chose no way that is known here\nhelp: the same ways")
    return able[told[0]]
