"""A star of threads on loopback, and what each of its devices says."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from splitrt.star import Hub, Seal, Spoke, Terms

T = TypeVar("T")
PATIENCE = 20.0  # seconds


def terms(devices: int, hidden: int = 96, **more: object) -> Terms:
    return Terms(devices=devices, hidden=hidden, **{"timeout": PATIENCE, **more})


def together(
    agreed: Terms,
    work: Callable[[Hub | Spoke], T],
    *,
    seal: Seal | None = None,
    **spoke: object,
) -> list[T | BaseException]:
    """What `work` returns or raises on each device, the hub's first."""
    with Hub("127.0.0.1:0", agreed, seal=seal) as hub, ThreadPoolExecutor(agreed.devices) as pool:

        def on(device: int) -> T:
            if device == 0:
                hub.gather(PATIENCE)
                return work(hub)
            with Spoke(
                hub.address, agreed, device=device, seal=seal, timeout=PATIENCE, **spoke
            ) as one:
                return work(one)

        futures = [pool.submit(on, device) for device in range(agreed.devices)]
        return [one.exception() or one.result() for one in futures]


def part(device: int, rows: int, hidden: int = 96, seed: int = 0) -> np.ndarray:
    """A device's part: numbers of all sizes, so that the order of adding shows."""
    random = np.random.default_rng(1000 * seed + device)
    scale = 10.0 ** random.integers(-3, 4, (rows, hidden))
    return (random.standard_normal((rows, hidden)) * scale).astype(np.float32)


def added(devices: int, rows: int, hidden: int = 96, seed: int = 0) -> np.ndarray:
    """The parts' sum in the devices' order."""
    total = part(0, rows, hidden, seed)
    for device in range(1, devices):
        total = total + part(device, rows, hidden, seed)
    return total
