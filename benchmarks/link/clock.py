"""How long does decide() take? Sixteen options of eight bins, a changing link, a frame in flight.

python -m benchmarks.link.clock
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from splitrt.core import control
from splitrt.core.plan import Bin, Local, Option

FRAMES, PLANS, BINS = 20_000, 16, 8


def main() -> None:
    """Median, 95th and 99th percentile in microseconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write them there, too")
    options = parser.parse_args()
    draw, took = random.Random(0), []
    plans = [option(i) for i in range(PLANS)]
    state = control.start(plans)
    for frame in range(FRAMES):
        now, chance = 0.1 * frame, draw.random()
        begin = time.perf_counter()
        decision, state = control.decide(
            state, plans, Local(0.6), left=0.25, now=now, chance=chance
        )
        took.append(time.perf_counter() - begin)
        if frame:
            state = control.answered(state, frame - 1, now + 0.01, server=0.012)
        if decision.option is not None:
            late = decision.option.bytes / draw.lognormvariate(12, 0.6)
            state = control.sent(state, frame, decision.option.bytes, now + 0.03 - min(late, 0.03))
    took.sort()
    found = {f"p{100 * s:.0f}_us": 1e6 * took[int(s * FRAMES)] for s in (0.5, 0.95, 0.99)}
    print(*(f"{name} {value:.0f}" for name, value in found.items()), sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


def option(place: int) -> Option:
    """The richer the better, most of all where the exit is unsure."""
    accuracy = 0.7 + 0.01 * place
    gains = [2 * (accuracy - 0.6) * (1 - (i + 0.5) / BINS) for i in range(BINS)]
    bins = tuple(Bin(1 / BINS, 0.3 + 0.08 * i, 0.3 + 0.08 * i + g) for i, g in enumerate(gains))
    edges = tuple((i + 1) / BINS for i in range(BINS - 1))
    return Option(f"{place}", 500 * (place + 1) ** 1.5, 0.03, accuracy, bins=bins, edges=edges)


if __name__ == "__main__":
    main()
