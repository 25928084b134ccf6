"""This device measured with one model: milliseconds of every head, exit, tail and codec; watts."""

from __future__ import annotations

import itertools
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from splitrt.core.codec import codecs
from splitrt.core.manifest import TAIL, Manifest, Plan, Width
from splitrt.core.profile import Figure, Figures, Profile, Timing, profiles
from splitrt.edge.capture import Pictures, fit
from splitrt.edge.head import Head, LocalTail
from splitrt.edge.power import Run, command, mean, sensor
from splitrt.errors import ProfileError

PICTURES = Path(__file__).parent.parent / "pictures"
ROUNDS = 50
WARM_UPS = 5  # beyond those of a head's own
WATCHED = 2.0  # seconds of idling, and of running a head, while watts are read
LEAST = 1e-4  # milliseconds


def measure(
    folder: str | Path,
    *,
    threads: Sequence[int] = (),
    rounds: int = ROUNDS,
    seconds: float = WATCHED,
    root: Path = Path("/"),
    run: Run = command,
) -> Profile:
    """The profile of this device, with a timing for each part of the model directory.

    threads: numbers to try; by default 1, 2, 4 and what an Edge takes.  rounds: of each part, after
    warm-up, one at a time.  seconds: how long watts are read, twice.  root, run: where the device's
    sensors are, and what runs a command.  A board that a shipped profile knows keeps that profile's
    figures beside what is measured.

        measure("models/cifar10-resnet").save("here.toml")
    """
    folder = Path(folder)
    counts = _counts(threads)
    if not 1 <= rounds <= 100_000 or not 0 < seconds <= 60:
        raise ProfileError(f"{rounds} rounds, {seconds} s\nhelp: 1 to 100000, more than 0 to 60")
    manifest = Manifest.load(folder)
    bench = Bench(folder, manifest, rounds)
    measured = [timing for count in counts for timing in bench.times(count)]
    measured += bench.codecs()
    fields = _here(root)
    fields |= _watts(fields, bench, seconds, root, run)
    memory = f"peak of the process that measured {manifest.name}, every head at once"
    fields["peak_memory_mb"] = _figure(_peak(), memory)
    return Profile.model_validate({**fields, "measured": tuple(measured)})


class Bench:
    """One model's parts on this device: all heads resident, as in an Edge."""

    def __init__(self, folder: Path, manifest: Manifest, rounds: int) -> None:
        self.folder, self.manifest, self.rounds = folder, manifest, rounds
        self.frames = _frames(manifest)
        self.heads: dict[str, Head] = {}

    def times(self, threads: int) -> list[Timing]:
        """Every head, exit and tail with so many threads."""
        widths = self.manifest.widths
        self.heads = {}  # the last ones go before others come
        self.heads = {
            width.name: Head(self.folder, self.manifest, width, threads=threads) for width in widths
        }
        found = []
        for width in widths:
            head = self.heads[width.name]
            for part, names in self._outputs(width).items():
                spent = _spent(partial(head, names=names), self.frames, self.rounds)
                found.append(self._timing(part, width.name, threads, spent, width.head_macs))
        if TAIL in self.manifest.files:
            found.append(self._tail(threads))
        return found

    def codecs(self) -> list[Timing]:
        """What each plan's codec takes for what a head makes of the frames."""
        found = []
        coders = codecs(self.folder, self.manifest)
        for plan in self.manifest.plans:
            if plan.place != "cloud":
                continue
            head = self.heads[self.manifest.width(plan).name]
            codes = self.frames
            if not self.manifest.pictured(plan):
                name = self._crossing(plan)
                codes = [head(frame, [name])[name] for frame in self.frames]
            codec = coders[plan.name].sized(codes[0].shape)
            spent = _spent(codec.encode, codes, self.rounds)
            found.append(self._timing("codec", plan.name, 1, spent))
        return found

    def work(self) -> None:
        """The widest head once, for the default plan."""
        width = self.manifest.widths[-1]
        names = next(iter(self._outputs(width).values()))
        self.heads[width.name](self.frames[0], names)

    def _tail(self, threads: int) -> Timing:
        width = self.manifest.widths[-1]
        tail = LocalTail(self.folder, self.manifest, threads=threads)
        head = self.heads[width.name]
        features = [head(frame, ["features"])["features"] for frame in self.frames]
        size = self.frames[0].shape[:2] if self.manifest.input.kind == "pixels" else (1, 1)
        sides = [
            np.array(size if side.picture else np.ones(side.shape), side.dtype)
            for side in self.manifest.side
        ]
        spent = _spent(lambda one: tail(one, sides), features, self.rounds)
        return self._timing("tail", width.name, threads, spent)

    def _outputs(self, width: Width) -> dict[str, list[str]]:
        """By part, what an Edge asks of that head for a frame."""
        plans = [plan for plan in self.manifest.plans if self.manifest.width(plan) == width]
        sent = [plan for plan in plans if plan.place == "cloud"]
        chosen = [plan for plan in sent if plan.name == self.manifest.default_plan] or sent
        exits = ["exit"] if width.exit is not None else []
        found = {}
        if chosen or not exits:
            crossing = self._crossing(chosen[0]) if chosen else "features"
            found["head"] = [crossing, *exits]
        if exits:
            found["exit"] = exits
        return found

    def _crossing(self, plan: Plan) -> str:
        """The head's output that the plan's codec takes."""
        codec = plan.codec or ""
        return "features" if self.manifest.codecs[codec].bits > 8 else codec

    def _timing(
        self, part: str, name: str, threads: int, spent: np.ndarray, macs: int = 0
    ) -> Timing:
        middle, high = (max(LEAST, round(float(np.percentile(spent, q)), 4)) for q in (50, 95))
        return Timing.model_validate(
            {
                "model": self.manifest.name,
                "digest": self.manifest.digest.hex(),
                "part": part,
                "name": name,
                "threads": threads,
                "macs": macs,
                "p50_ms": middle,
                "p95_ms": high,
                "rounds": self.rounds,
                "source": "measured",
                "estimated": False,
            }
        )


def default_threads() -> tuple[int, ...]:
    """1, 2, 4 as far as there are cores, and as many as an Edge takes."""
    cores = os.cpu_count() or 1
    return tuple(sorted({n for n in (1, 2, 4) if n <= cores} | {max(1, cores - 1)}))


def _counts(threads: Sequence[int]) -> tuple[int, ...]:
    cores = os.cpu_count() or 1
    for count in threads:
        if not 1 <= count <= cores:
            raise ProfileError(f"{count} threads on {cores} cores\nhelp: 1 to {cores}")
    return tuple(sorted(set(threads))) or default_threads()


def _frames(manifest: Manifest) -> list[np.ndarray]:
    """The demo's photographs at the model's (largest) size; noise where it takes no pictures."""
    shape, random = manifest.input.shape, np.random.default_rng(0)
    if manifest.input.kind == "pixels":
        return [fit(frame.image, shape[0], shape[1]) for frame in Pictures(PICTURES)]
    if manifest.input.dtype == "float32":
        return [random.standard_normal(shape, np.float32) for _ in range(10)]
    return [np.zeros(shape, manifest.input.dtype)]


def _spent(work: Callable[[Any], object], items: Sequence[Any], rounds: int) -> np.ndarray:
    """Milliseconds of each round, the items in turn, after warm-up: [rounds]."""
    turn = itertools.cycle(items)
    for _ in range(WARM_UPS):
        work(next(turn))
    spent = np.empty(rounds)
    for place in range(rounds):
        item = next(turn)
        began = time.perf_counter()
        work(item)
        spent[place] = 1000 * (time.perf_counter() - began)
    return spent


def _here(root: Path) -> dict[str, Any]:
    """What this device is; the figures of a shipped profile if it is such a board."""
    board = _read(root / "proc/device-tree/model")
    shipped = (one for one in profiles().values() if one.board and one.board in board)
    known = next(shipped, None)
    fields = {} if known is None else dict(known)
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    memory = Figures(values=(round(gigabytes, 2),), source="the operating system", estimated=False)
    return fields | {
        "name": board or platform.machine() or "unknown",
        "cpu": fields.get("cpu") or _cpu(root) or platform.machine() or "unknown",
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "runtime": f"ONNX Runtime {ort.__version__} on the CPU",
        "memory_gb": memory,
    }


def _watts(
    fields: dict[str, Any], bench: Bench, seconds: float, root: Path, run: Run
) -> dict[str, Figure]:
    """Idle and with a head running: read, or estimated from the board's figures, or nothing."""
    found = sensor(root, run)
    if found is not None:
        idle = mean(found, seconds)
        busy = mean(found, seconds, bench.work)
        return {"idle_w": _figure(idle, found.source), "head_w": _figure(busy, found.source)}
    low, high = fields.get("idle_w"), fields.get("load_w")
    if low is None or high is None:
        return {}
    share = _busy(bench, seconds)
    told = f"no sensor: idle + {share:.0%} of (load - idle), by the cores' use"
    return {"head_w": _figure(low.value + share * (high.value - low.value), told, True)}


def _busy(bench: Bench, seconds: float) -> float:
    """The share of all cores that a head keeps busy when it runs again and again, 0 to 1."""
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() - began < seconds:
        bench.work()
    wall = time.monotonic() - began
    return min(1.0, (time.process_time() - used) / (wall * (os.cpu_count() or 1)))


def _figure(value: float, source: str, estimated: bool = False) -> Figure:
    return Figure(value=round(value, 4), source=source, estimated=estimated)


def _peak() -> float:
    """MiB that this process held at most."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _cpu(root: Path) -> str:
    lines = _read(root / "proc/cpuinfo").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else ""


def _read(path: Path) -> str:
    """A file's printable words; nothing if it cannot be read."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    return "".join(letter for letter in text if letter.isprintable() or letter == "\n").strip()
