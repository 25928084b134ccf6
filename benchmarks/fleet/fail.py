"""One of two full servers is killed: how long does the fleet answer less than the other can?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from benchmarks.fleet.crowd import Crowd
from benchmarks.fleet.load import Load
from benchmarks.fleet.serve import Served

STEP = 0.25  # seconds, of the answers' curve
NEARLY = 0.9  # of what the other server can
BEFORE, SOON = 3.0, 3.0  # seconds that count before the kill; of which the worst is told


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill. before, after: answers in time a second with both, and with one, once it has them.

    one: capacity of the server that stays, alone.  back: seconds from the kill until a second's
    answers in time are nearly that.  least: of the curve's first seconds.  whole: every frame is
    accounted for.
    """

    series: str
    devices: int
    before: float
    one: float
    after: float
    back: float
    least: float
    frames: int
    broken: int
    lost: int
    whole: bool
    curve: tuple[float, ...]


def kill(
    series: tuple[str, str, str], devices: int, crowd: Crowd, cores: Sequence[int], seconds: float
) -> Kill:
    """series: name, folder, plan. cores: of the two servers."""
    name, folder, plan = series
    times: list[float] = []
    with ExitStack() as stack:
        first, other = (stack.enter_context(Served(folder, cores=(core,))) for core in cores)
        load = Load(folder, plan, (other.address,), 8, 0.0, seconds, warm=2.0, steered=True)
        one = crowd.capacity(load, seconds=3.0, depths=(48,))

        def strike(begun: Load) -> None:
            time.sleep(max(0.0, begun.begin + begun.warm + BEFORE - time.monotonic()))
            times.append(time.monotonic())
            first.kill()

        fleet = replace(load, devices=devices, addresses=(first.address, other.address))
        seen = crowd.drive(fleet, meanwhile=strike)
    [struck] = times
    stamps = [at for count in seen.counts for at in count.stamps]
    curve = rates(stamps, struck, seconds - BEFORE)
    return Kill(
        series=name,
        devices=devices,
        before=sum(struck - 2 <= at < struck for at in stamps) / 2,
        one=one,
        after=sum(struck + 2 <= at < struck + 5 for at in stamps) / 3,
        back=recovered(curve, NEARLY * one),
        least=min(curve[: int(SOON / STEP)]),
        frames=seen.total("frames"),
        broken=seen.total("broken"),
        lost=seen.total("lost"),
        whole=all(count.whole for count in seen.counts),
        curve=tuple(curve),
    )


def rates(stamps: Sequence[float], since: float, seconds: float) -> list[float]:
    """Answers a second in steps from a moment on."""
    counts = [0] * int(seconds / STEP)
    for at in stamps:
        place = int((at - since) // STEP)
        if 0 <= place < len(counts):
            counts[place] += 1
    return [count / STEP for count in counts]


def recovered(curve: Sequence[float], wanted: float) -> float:
    """Seconds until the first whole second of at least that rate begins; infinite if none does."""
    each = int(1 / STEP)
    means = [sum(curve[place : place + each]) / each for place in range(len(curve) - each + 1)]
    return next((STEP * place for place, mean in enumerate(means) if mean >= wanted), float("inf"))
