"""The models of the benchmark: one with a heavy tail, made here; and a tail alone, the ceiling."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.fleet.crowd import payloads

TRIAL = 0.15  # seconds of one size
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What a tail alone does on one core, frames a second, by batches of the size that is best.

    tail: of packed bytes.  opened: payloads opened first, as a server must.
    """

    size: int
    tail: float
    opened: float


def heavy(folder: Path, channels: int) -> None:
    """A model directory whose tail has most of the work; its weights are random."""
    import torch
    from torch import nn

    from splitrt.train import Frames, cut, export

    torch.set_num_threads(1)
    torch.manual_seed(0)
    wide = [nn.Conv2d(8, channels, 3, 1, 1), nn.ReLU()]
    for _ in range(3):
        wide += [nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU()]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
    whole = nn.Sequential(stem, nn.Sequential(*wide), nn.Sequential(*last)).eval()
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    split = cut(whole, after="0", channels=4, shape=(1, 3, 32, 32))
    export(split, folder, frames=Frames(images), pareto=False)


def ceiling(folder: str, plan: str, cores: Sequence[int]) -> Ceiling:
    """The tail in this process, without a network. Pins the process: give it one of its own."""
    from splitrt.cloud.tail import Tail
    from splitrt.core.manifest import Manifest

    if cores:
        os.sched_setaffinity(0, cores)
    tail = Tail(folder, Manifest.load(folder), threads=1)
    bodies = payloads(folder, plan)
    found = []
    for size in (1, 2, 4, 8, 16, 32):
        batch = [bodies[place % len(bodies)] for place in range(size)]
        packed = [(plan, tail.open(plan, body)) for body in batch]
        alone = _rate(size, lambda packed=packed: tail(packed))
        opened = _rate(size, lambda batch=batch: tail([(plan, tail.open(plan, b)) for b in batch]))
        found.append(Ceiling(size, alone, opened))
    return max(found, key=lambda one: one.tail)


def _rate(size: int, run) -> float:
    """Frames a second, the median of some rounds."""
    rates = []
    run()
    for _ in range(ROUNDS):
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < TRIAL:
            run()
            count += size
        rates.append(count / (time.perf_counter() - begun))
    return statistics.median(rates)
