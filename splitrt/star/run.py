"""One step of a star: new positions through all layers, on every device at once.

Each device holds the rows; it adds to them the sum of what all devices' shards give, twice a layer.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from splitrt.errors import PacketError
from splitrt.star.meet import Hub, Spoke
from splitrt.star.reduce import Party

STEP = struct.Struct("<II?")  # positions that are known already; new ones; each alone


class Layers(Protocol):
    """The shards that a device holds, and one text's K/V in them."""

    layers: int
    longest: int

    @property
    def loading(self) -> float:
        """Seconds spent waiting for weights, so far."""

    def attend(self, layer: int, rows: np.ndarray, n: int, alone: bool) -> np.ndarray:
        """What each adds to rows [T, hidden] at positions n on: [shards, T, hidden].

        K/V from n on is replaced.  alone: each row by itself, so that its bits are those of a step
        of one row.
        """

    def feed(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """What each adds to rows [T, hidden]: [shards, T, hidden]."""


@dataclass(slots=True)
class Spent:
    """Seconds of this device so far. reduce: sums, and what others were waited for in them."""

    steps: int = 0
    compute: float = 0.0
    reduce: float = 0.0
    load: float = 0.0


def lead(
    hub: Hub, layers: Layers, rows: np.ndarray, n: int, spent: Spent, *, alone: bool = False
) -> np.ndarray:
    """The hub's: rows [T, hidden] at positions n on -> the same after all layers.

    alone: attention to each by itself. Several rows at once differ from that in their last bits,
    of which sums in int8, behind rounded weights, may make more.
    """
    hub.tell(STEP.pack(n, len(rows), alone))
    return _through(hub, layers, hub.broadcast(rows).copy(), n, alone, spent)


def follow(spoke: Spoke, layers: Layers, spent: Spent) -> None:
    """A spoke's: step after step, until an error ends the star."""
    while True:
        told = spoke.hear()
        if len(told) != STEP.size:
            raise PacketError(f"a step of {len(told)} bytes\nhelp: the same splitrt on all devices")
        n, count, alone = STEP.unpack(told)
        rows = spoke.broadcast(timeout=spoke.terms.timeout)
        if len(rows) != count or n + count > layers.longest:
            raise PacketError(
                f"{len(rows)} rows at {n}, {count} were told, room is for {layers.longest}\n"
                "help: the same splitrt on all devices"
            )
        _through(spoke, layers, rows, n, alone, spent)


def _through(
    party: Party, layers: Layers, rows: np.ndarray, n: int, alone: bool, spent: Spent
) -> np.ndarray:
    out = np.empty_like(rows)
    clock = time.perf_counter
    loading = layers.loading
    for layer in range(layers.layers):
        start = clock()
        part = layers.attend(layer, rows, n, alone)
        ready = clock()
        rows += party.reduce(part, out=out)
        between = clock()
        part = layers.feed(layer, rows)
        done = clock()
        rows += party.reduce(part, out=out)
        spent.compute += ready - start + done - between
        spent.reduce += between - ready + clock() - done
    spent.compute -= layers.loading - loading
    spent.load += layers.loading - loading
    spent.steps += 1
    return rows
