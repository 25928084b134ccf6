"""Links as they are in the field: generators of uplink rates, recorded traces, bytes over time.

The parameters were fitted to logs of moving LTE, UMTS and EVDO modems, in steps of 250 ms: the
logarithm of the rate is autoregressive, outages come on top.
"""

from __future__ import annotations

import csv
import difflib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitrt.errors import SplitrtError

STEP = 0.25  # seconds
LAP = 600.0  # seconds of a generated link that is to go on and on
OUTAGE = 0.75  # seconds: gaps below are part of the fitted rate
LEAST = 1e-3  # Mbit/s
LARGEST = 64 << 20  # bytes of a recorded trace
TRACES = (".csv", ".txt", ".log", ".dat", ".tsv")  # what a path of one ends with


@dataclass(frozen=True, slots=True)
class LinkModel:
    """One kind of uplink. sigma: deviation of ln(rate).  ar1: its correlation over 250 ms."""

    name: str
    median_mbps: float
    sigma: float = 0.0
    ar1: float = 0.0
    outages_per_minute: float = 0.0
    outage_s: float = 0.0
    rtt_ms: float = 70.0


LINKS = {
    link.name: link
    for link in (
        LinkModel("lte-poor", 1.06, 0.62, 0.77, 1.66, 4.4, 84),
        LinkModel("lte-fair", 1.63, 0.89, 0.39, 4.5, 1.5, 84),
        LinkModel("lte-good", 5.5, 0.80, 0.79, 0.43, 1.7, 69),
        LinkModel("lte-best", 11.4, 0.81, 0.89, 0.0, 0.0, 68),
        LinkModel("umts", 1.15, 0.62, 0.78, 2.26, 1.7, 100),
        LinkModel("evdo", 0.96, 0.66, 0.70, 1.97, 1.8, 100),
        LinkModel("bluetooth", 0.8, 0.3, 0.5, 0.0, 0.0, 40),
        LinkModel("wifi", 40.0, 0.4, 0.7, 0.0, 0.0, 6),
        LinkModel("ethernet", 900.0, 0.0, 0.0, 0.0, 0.0, 0.5),
    )
}


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What an uplink carried: Mbit/s in each step of `STEP` seconds, and the round trip."""

    name: str
    mbps: np.ndarray  # float64 [steps]
    rtt: float = 0.07  # seconds

    def __post_init__(self) -> None:
        if not len(self.mbps) or not np.isfinite(self.mbps).all() or (self.mbps < 0).any():
            raise SplitrtError(f"trace {self.name}: rates should be finite and 0 or more")

    @property
    def seconds(self) -> float:
        """How long the trace is."""
        return STEP * len(self.mbps)

    def carried(self) -> np.ndarray:
        """Bytes that had crossed at the end of each step, with 0 in front: [steps + 1]."""
        return np.concatenate([[0.0], np.cumsum(self.mbps * STEP * 1e6 / 8)])

    def at(self, seconds: float) -> float:
        """Mbit/s at that time; the trace begins again after its end."""
        return float(self.mbps[int(seconds / STEP) % len(self.mbps)])


def link(name: str) -> LinkModel:
    """A link by its name, or `4mbps`: a constant one. SplitrtError with the nearest if unknown."""
    if name in LINKS:
        return LINKS[name]
    rate = name.removesuffix("mbps")
    try:
        if rate != name and 0 < float(rate) < 1e6:
            return LinkModel(name, float(rate), rtt_ms=20)
    except ValueError:
        pass
    near = difflib.get_close_matches(name, LINKS, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(LINKS)}, or 4mbps"
    raise SplitrtError(f"no link {name!r}\nhelp: {hint}")


def generate(model: LinkModel, seconds: float, seed: int = 0) -> Trace:
    """A trace of that kind; the same for the same seed."""
    random = np.random.default_rng(seed)
    steps = max(1, round(seconds / STEP))
    logs = np.empty(steps)
    fresh = model.sigma * math.sqrt(1 - model.ar1**2)
    last = model.sigma * random.standard_normal()
    for place, noise in enumerate(random.standard_normal(steps)):
        last = model.ar1 * last + fresh * noise
        logs[place] = last
    mbps = np.maximum(model.median_mbps * np.exp(logs), LEAST)
    for begin, end in _outages(model, seconds, random):
        mbps[round(begin / STEP) : round(end / STEP)] = 0.0
    return Trace(model.name, mbps, model.rtt_ms / 1000)


def broken(trace: Trace, begin: float, end: float) -> Trace:
    """The trace with an outage of its own, in seconds."""
    mbps = trace.mbps.copy()
    mbps[round(begin / STEP) : round(end / STEP)] = 0.0
    return Trace(f"{trace.name}-cut", mbps, trace.rtt)


def read(path: str | Path, rtt: float = 0.07) -> Trace:
    """A recorded trace: two columns, seconds and Mbit/s from then on, with commas or spaces.

    SplitrtError if it is anything else.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, _beside(path), 1)
        hint = f"did you mean {near[0]!r}?" if near else "two numbers a line, seconds and Mbit/s"
        raise SplitrtError(f"no trace at {path}\nhelp: {hint}")
    if path.stat().st_size > LARGEST:
        raise SplitrtError(f"{path} is too large\nhelp: at most {LARGEST >> 20} MiB of text")
    times, rates = [], []
    with path.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            cells = row if len(row) > 1 else " ".join(row).split()
            if not cells or cells[0].lstrip().startswith("#"):
                continue
            try:
                times.append(float(cells[0]))
                rates.append(float(cells[1]))
            except (ValueError, IndexError):
                if times:
                    raise SplitrtError(
                        f"{path}:{number}: {row}\nhelp: two numbers a line, seconds and Mbit/s"
                    ) from None  # a first line may be a heading
    clock, found = np.array(times), np.array(rates)
    if len(clock) < 2 or not np.isfinite(clock).all() or (np.diff(clock) <= 0).any():
        raise SplitrtError(f"{path}: times should ascend, two lines at least")
    if clock[-1] - clock[0] > 1e6:
        raise SplitrtError(f"{path}: {clock[-1] - clock[0]:.0f} s\nhelp: at most a million seconds")
    grid = np.arange(clock[0], clock[-1], STEP)
    return Trace(path.stem, found[np.searchsorted(clock, grid, side="right") - 1], rtt)


def find(source: str, *, seconds: float = 300.0, seed: int = 0) -> Trace:
    """A recorded trace by its path, or one generated of that kind of link."""
    path = Path(source)
    if path.is_file() or len(path.parts) > 1 or path.suffix in TRACES:
        return read(path)
    return generate(link(source), seconds, seed)


def _beside(path: Path) -> list[str]:
    """The names of the files in its folder."""
    folder = path.parent
    return [one.name for one in folder.iterdir() if one.is_file()] if folder.is_dir() else []


def _outages(
    model: LinkModel, seconds: float, random: np.random.Generator
) -> list[tuple[float, float]]:
    """(begin, end) of each: as many a minute as the model says, exponential beyond OUTAGE."""
    if not model.outages_per_minute:
        return []
    count = random.poisson(model.outages_per_minute * seconds / 60)
    begins = np.sort(random.uniform(0, seconds, count))
    lengths = OUTAGE + random.exponential(max(model.outage_s - OUTAGE, 0.01), count)
    return list(zip(begins.tolist(), (begins + lengths).tolist(), strict=True))
