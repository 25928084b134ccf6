"""Devices of several processes at once, and what these processes cost."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fleet.device import Device
from benchmarks.fleet.load import Count, Load
from splitrt.core.codec import codecs
from splitrt.core.manifest import Manifest

LEAD = 2.0  # seconds until every process has connected
DEPTHS = (16, 48)  # frames in flight, to find a server's capacity


@dataclass(frozen=True, slots=True)
class Seen:
    """What the devices of all processes saw.

    cores: each process's CPU seconds a second while it counts.  before: its CPU seconds from the
    first connection until then.
    """

    counts: Sequence[Count]
    cores: tuple[float, ...]
    before: tuple[float, ...]

    def total(self, name: str) -> int:
        """The sum of one of the counts."""
        return sum(getattr(one, name) for one in self.counts)


class Crowd:
    """Processes that wait for loads, on cores of their own if these are named."""

    def __init__(self, processes: int, cores: Sequence[int] = ()) -> None:
        self.processes = processes
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(processes, context, settled, (tuple(cores),))

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def drive(
        self, load: Load, *, lead: float = LEAD, meanwhile: Callable[[Load], Any] = id
    ) -> Seen:
        """The load on all processes at once, its devices shared among them.

        lead: seconds from now until it begins, unless it says when.  meanwhile: runs here.
        """
        begin = load.begin or time.monotonic() + lead
        many, rest = divmod(load.devices, self.processes)
        shares = [many + (place < rest) for place in range(self.processes)]
        parts = [
            replace(load, devices=share, begin=begin, first=load.first + sum(shares[:place]))
            for place, share in enumerate(shares)
        ]
        running = [self._pool.submit(work, part) for part in parts if part.devices]
        meanwhile(replace(load, begin=begin))
        found = [one.result() for one in running]
        counts = [count for several, _, _ in found for count in several]
        return Seen(counts, tuple(one[1] for one in found), tuple(one[2] for one in found))

    def capacity(
        self,
        load: Load,
        *,
        devices: int = 8,
        seconds: float = 4.0,
        depths: Sequence[int] = DEPTHS,
    ) -> float:
        """Answers a second, the most of several depths of a closed loop without deadlines.

        devices: of each server.
        """
        rates, servers = [], len(load.addresses)
        for depth in depths:
            each = max(1, depth // devices)
            closed = replace(
                load,
                devices=devices * servers,
                seconds=seconds,
                closed=each,
                steered=False,
                warm=1.5,
            )
            rates.append(len(took(self.drive(closed))) / seconds)
        return max(rates)


def took(seen: Seen) -> list[float]:
    """Milliseconds of all answers, in order."""
    return sorted(ms for count in seen.counts for ms in count.took)


def settled(cores: Sequence[int]) -> None:
    """A process of the crowd: as many descriptors as it may have, on its cores."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if cores:
        os.sched_setaffinity(0, cores)


def work(load: Load) -> tuple[list[Count], float, float]:
    """The devices of one process, the cores that it kept busy while it counts, CPU before that."""
    cpu: list[float] = []

    async def watch() -> None:
        for moment in (load.connect, load.begin + load.warm, load.end):
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
            cpu.append(time.process_time())

    async def together() -> list[Count]:
        manifest = Manifest.load(load.folder)
        bodies = payloads(load.folder, load.plan)
        devices = [
            Device(load, one, manifest, bodies[one % len(bodies)]) for one in range(load.devices)
        ]
        watching = asyncio.create_task(watch())
        counts = await asyncio.gather(*(device.run() for device in devices))
        await watching
        return counts

    counts = asyncio.run(together())
    return counts, (cpu[2] - cpu[1]) / load.seconds, cpu[1] - cpu[0]


def payloads(folder: str, plan: str) -> list[bytes]:
    """What devices send: photographs' codes where the model has a head for them, else noise."""
    manifest = Manifest.load(folder)
    codec = codecs(Path(folder), manifest)[plan]
    if manifest.name == "cifar10-resnet":
        return [codec.encode(codes) for codes in _shown(folder, manifest, plan)]
    draw = np.random.default_rng(0)
    top, shape = 2**codec.bits, manifest.crossing(manifest.plan(plan))
    return [codec.encode(draw.integers(0, top, shape).astype(np.uint8)) for _ in range(8)]


def _shown(folder: str, manifest: Manifest, plan: str) -> list[np.ndarray]:
    """The head's codes of the photographs that come with splitrt."""
    from splitrt import Pictures
    from splitrt.edge.head import Head

    head = Head(Path(folder), manifest, manifest.width(manifest.plan(plan)), threads=1)
    name = manifest.plan(plan).codec
    photographs = Path(__file__).parents[2] / "splitrt" / "pictures"
    return [head(head.prepare(one.image), [name])[name] for one in Pictures(photographs)]
