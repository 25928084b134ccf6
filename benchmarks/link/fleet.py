"""How many answers come in time when a fleet asks for more than the server can do?

python benchmarks/link/fleet.py --devices 20 60 --json FILE

Devices are asyncio tasks in a few processes and speak the wire; the server is `splitrt serve`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

from benchmarks.fleet.crowd import Crowd, Seen, took
from benchmarks.fleet.load import Load
from benchmarks.fleet.serve import Served
from benchmarks.fleet.tails import heavy

LEAD = 4.0  # seconds until every process has connected
PLAN = "q4"
WAYS = {"steered": (True, True), "eager": (False, True), "eager, no slack sent": (False, False)}


@dataclass(frozen=True, slots=True)
class Found:
    """One fleet. Rates are a second; capacity is that of a closed loop, before and after.

    share: goodput, of what was asked or of the capacity, whichever is less.
    late: share of the answers that the server computed and that came after the deadline.
    """

    way: str
    devices: int
    asked: float
    capacity: float
    capacities: tuple[float, float]
    goodput: float
    share: float
    late: float
    sent: int
    busy: int
    expired: int
    lost: int
    p50_ms: float
    p99_ms: float


def main() -> None:
    """Every fleet in every way; a line each, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--channels", type=int, default=128, help="of the tail: its weight")
    parser.add_argument("--json", type=Path, help="write the findings there, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up
    found = []
    with tempfile.TemporaryDirectory() as folder:
        heavy(Path(folder) / "heavy", options.channels)
        with Served(f"{folder}/heavy") as server, Crowd(options.processes) as crowd:
            load = Load(server.folder, PLAN, (server.address,), 8, 0.0, options.seconds)
            before = crowd.capacity(load)
            for devices in options.devices:
                for way in options.ways:
                    steered, slack = WAYS[way]
                    fleet = replace(load, devices=devices, steered=steered, slack=slack)
                    seen = crowd.drive(fleet, lead=LEAD)
                    after = crowd.capacity(load)
                    found.append(judged(way, fleet, seen, (before, after)))
                    before = after
                    print(readable(found[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")


def judged(way: str, load: Load, seen: Seen, around: tuple[float, float]) -> Found:
    times = took(seen) or [float("nan")]
    asked, goodput = seen.total("frames") / load.seconds, seen.total("in_time") / load.seconds
    return Found(
        way=way,
        devices=load.devices,
        asked=asked,
        capacity=mean(around),
        capacities=around,
        goodput=goodput,
        share=goodput / min(asked, mean(around)),
        late=seen.total("late") / max(1, seen.total("in_time") + seen.total("late")),
        sent=seen.total("sent"),
        busy=seen.total("busy"),
        expired=seen.total("expired"),
        lost=seen.total("lost") + seen.total("broken"),
        p50_ms=times[len(times) // 2],
        p99_ms=times[int(0.99 * (len(times) - 1))],
    )


def readable(one: Found) -> str:
    return (
        f"{one.devices:3} devices, {one.way:22} asked {one.asked:5.0f}/s of "
        f"{one.capacities[0]:4.0f}–{one.capacities[1]:4.0f}/s: in time {one.goodput:5.1f}/s = "
        f"{one.share:.2f}, late work {100 * one.late:5.2f} %, p50 {one.p50_ms:4.0f} "
        f"p99 {one.p99_ms:5.0f} ms; of {one.sent} sent {one.busy} busy, "
        f"{one.expired} expired, {one.lost} lost"
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
