"""How fast this device is, and what it has: what a spoke tells its hub of itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from splitrt.core import shards
from splitrt.core.shards import Device
from splitrt.edge.head import session
from splitrt.errors import ModelError

WARM, RUNS = 3, 30  # that do not count, that do
SHORTEST, LONGEST = 0.1, 2.0  # seconds: so long it takes, and then fewer runs will do


def needed(one: Device) -> list[str]:
    """The files of a device's first feed-forward graph."""
    graph = shards.feed(0)
    return [graph, *({Path(graph).with_suffix(".bin").name} & set(one.files))]


def seconds(folder: Path, one: Device, hidden: int, threads: int | None) -> float:
    """Of one row through that graph; its files are proved already."""
    graph, *weights = needed(one)
    found = session(folder / graph, threads, "CPU", weights=weights[0] if weights else None)
    rows = np.linspace(-1, 1, hidden, dtype=np.float32)[None]
    try:
        return least(lambda: found.run(["part"], {"rows": rows}))
    except Exception as error:  # ONNX Runtime's own tree starts at RuntimeError and Exception
        raise ModelError(f"{graph} does not run: {error}") from error


def least(call: Callable[[], object]) -> float:
    """Seconds of a call, the fewest of some: what else runs here just now is not to count."""
    for _ in range(WARM):
        call()
    times: list[float] = []
    began = time.perf_counter()
    took = 0.0
    while took < SHORTEST or (len(times) < RUNS and took < LONGEST):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        took = time.perf_counter() - began
    return min(times)
