"""Fleets of simulated devices on real servers: when is one full, and what does it do past that?

python -m benchmarks.fleet [--only full kill herd idle talk] [--runs 3] [--quick] [--json FILE]

Each server is `splitrt serve` on a core of its own, the devices are two processes on other cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.fleet import bare, fail, full, herd, talk
from benchmarks.fleet.crowd import Crowd
from benchmarks.fleet.full import Series
from benchmarks.fleet.tails import ceiling, heavy

ROOT = Path(__file__).parents[2]
SHIPPED = (str(ROOT / "models" / "cifar10-resnet"), "w32-r125")
STORIES = str(ROOT / "models" / "stories")
CHANNELS = 128  # of the heavy tail
STEPS = (1, 4, 16, 60, 200)
PARTS = ("full", "bare", "kill", "herd", "idle", "talk")
KEYS = ("series", "servers", "devices", "way", "guard", "sessions", "positions", "chats", "drafts")


@dataclass(frozen=True, slots=True)
class Bench:
    """What every part needs. cores: of the servers; those that are left are the devices'."""

    crowd: Crowd
    cores: tuple[int, ...]
    work: Path
    quick: bool
    seconds: float

    @property
    def heavy(self) -> tuple[str, str]:
        """The model whose tail has most of the work, made at its first use."""
        folder = self.work / "heavy"
        if not folder.exists():
            alone(heavy, folder, 16 if self.quick else CHANNELS)
        return str(folder), "q4"


def main() -> None:
    """Every part, several times; a line each, then the medians, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="that count, of each fleet")
    parser.add_argument("--quick", action="store_true", help="one small run of each part")
    parser.add_argument("--json", type=Path, help="write every run there, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up
    free = sorted(os.sched_getaffinity(0))
    if len(free) < 4:
        sys.exit(f"error: {len(free)} cores\nhelp: two for servers and two for devices are needed")
    found: dict[str, list[Any]] = {part: [] for part in options.only}
    with tempfile.TemporaryDirectory() as work, Crowd(2, free[2:4]) as crowd:
        seconds = 1.0 if options.quick else options.seconds
        bench = Bench(crowd, tuple(free[:2]), Path(work), options.quick, seconds)
        for _ in range(1 if options.quick else options.runs):
            for part in options.only:
                found[part] += PLAYED[part](bench)
                written(options.json, found)
    print(
        f"\n{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians:"
    )
    for part, rows in found.items():
        for row in medians(rows):
            print(f"{part}: {shown(row)}")


def written(path: Path | None, found: dict[str, list[Any]]) -> None:
    """Every run until now."""
    if path is not None:
        runs = {part: [asdict(row) for row in rows] for part, rows in found.items()}
        path.write_text(json.dumps(runs, indent=1) + "\n")


def alone(way: Callable[..., Any], *words: Any) -> Any:
    """What a function gives in a process of its own, which ends with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(way, *words).result()


def fleets(bench: Bench) -> list[full.Row]:
    """Every series: two models on one core, on two servers, one server on two cores, guarded."""
    one, both = (bench.cores[:1],), tuple((core,) for core in bench.cores)
    steps = tuple((devices, "steered") for devices in STEPS)
    past = ((100, "steered"), (400, "steered"), (200, "eager"), (200, "deaf"))
    guard = herd.guards(bench.work, max(STEPS), 1000)[2]
    shipped, weighty = Series("shipped", *SHIPPED, one, steps + past), bench.heavy
    several = [
        shipped,
        replace(shipped, cores=both, fleets=(*steps[3:], past[1])),
        replace(shipped, name="shipped, 2 cores", cores=(bench.cores,), fleets=(steps[4], past[1])),
        replace(
            shipped, name="shipped, TLS", fleets=steps[3:], options=guard.options, ca=guard.ca,
            tokens=guard.tokens,
        ),
        Series("heavy", *weighty, one, steps + past[1:]),
        Series("heavy", *weighty, both, (*steps[3:], past[1])),
    ]  # fmt: skip
    if bench.quick:
        several = [replace(several[0], fleets=((4, "steered"), (16, "deaf")))]
    found, tops = [], {}
    for series in several:
        if series.folder not in tops:
            tops[series.folder] = alone(ceiling, series.folder, series.plan, bench.cores[:1])
            print(f"{series.name}, the tail alone: {tops[series.folder]}", flush=True)
        found += full.rows(series, tops[series.folder], bench.crowd, bench.seconds)
    return found


def kills(bench: Bench) -> list[fail.Kill]:
    """One of two servers that are full."""
    several = [("shipped", *SHIPPED), ("heavy", *bench.heavy)][: 1 if bench.quick else 2]
    devices, seconds = (16, 8.0) if bench.quick else (400, 12.0)
    return said(fail.kill(series, devices, bench.crowd, bench.cores, seconds) for series in several)


def herds(bench: Bench) -> list[herd.Herd | herd.Again]:
    """Connecting by every guard; more devices, plain; and after a restart."""
    many = 20 if bench.quick else 200
    guards = herd.guards(bench.work, many, 10_000)
    pairs = [(guard, many) for guard in guards]
    if not bench.quick:
        pairs += [(guards[0], 1000), (guards[1], 1000)]
    found: list[herd.Herd | herd.Again] = said(
        herd.herd(*SHIPPED, guard, devices, bench.crowd, bench.cores[0]) for guard, devices in pairs
    )
    counts = (many,) if bench.quick else (many, 1000)
    return found + said(
        herd.again(*SHIPPED, devices, bench.crowd, bench.cores[0], 20.0) for devices in counts
    )


def idles(bench: Bench) -> list[herd.Idle]:
    """Devices that only ping."""
    counts = (20,) if bench.quick else (200, 1000, 2000)
    seconds = 2.0 if bench.quick else 8.0
    return said(herd.idle(*SHIPPED, counts, bench.crowd, bench.cores[0], seconds))


def talks(bench: Bench) -> list[talk.Held | talk.Spoken]:
    """Sessions of the story model, and what they ask."""
    core, chats = bench.cores[0], (1, 4) if bench.quick else (1, 16, 60)
    found: list[talk.Held | talk.Spoken] = said(
        talk.held(STORIES, (4,) if bench.quick else (60, 200), 1000, core)
    )
    return found + said(
        talk.spoken(STORIES, count, drafts, core, bench.seconds)
        for drafts in (0, 8)
        for count in chats
    )


def floors(bench: Bench) -> list[bare.Floor]:
    """What a bare stream costs for each message."""
    counts = (20,) if bench.quick else (60, 200, 400)
    return said(bare.floor(*SHIPPED, counts, bench.crowd, bench.cores[0], bench.seconds))


PLAYED = {
    "full": fleets, "bare": floors, "kill": kills, "herd": herds, "idle": idles, "talk": talks,
}  # fmt: skip


def said(rows: Any) -> list[Any]:
    """All rows, each of which is printed as it comes."""
    found = []
    for row in rows:
        print(shown(asdict(row)), flush=True)
        found.append(row)
    return found


def shown(row: dict[str, Any]) -> str:
    """A row for a reader: without curves."""
    plain = {key: value for key, value in row.items() if not isinstance(value, list | tuple)}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in plain.items()
    )


def medians(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """A line for each setting: the medians of its runs; whole only if all were."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        names = {one.name for one in fields(row)}
        key = (type(row).__name__, *(getattr(row, name) for name in KEYS if name in names))
        groups.setdefault(key, []).append(row)
    lines = []
    for alike in groups.values():
        line = {"runs": len(alike)}
        for one in fields(alike[0]):
            values = [getattr(row, one.name) for row in alike]
            if isinstance(values[0], bool):
                line[one.name] = all(values)
            elif isinstance(values[0], int | float):
                line[one.name] = statistics.median(values)
            else:
                line[one.name] = values[0]
        lines.append(line)
    return lines


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
