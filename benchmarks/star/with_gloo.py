"""The same shards, added by torch.distributed's gloo: one device in a process.

python benchmarks/star/with_gloo.py DIR --devices N --device K --hub HOST:PORT
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from speak import speak
from torch import distributed

from splitrt.core.shards import Shards
from splitrt.star.ends import Ends
from splitrt.star.run import STEP, Spent, follow, lead
from splitrt.star.shard import Stack

TIMEOUT = 60.0  # seconds that a step expects its rows in


class Party:
    """What `lead` and `follow` ask of a hub and of a spoke: each word is a collective of gloo's."""

    def __init__(self, where: str, device: int, devices: int, hidden: int) -> None:
        self.terms, self._hidden, self._count = SimpleNamespace(timeout=TIMEOUT), hidden, 0
        distributed.init_process_group(
            "gloo", init_method=f"tcp://{where}", rank=device, world_size=devices
        )

    def reduce(self, array: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """The sum of one part [1, T, hidden] of each device, in the part's own memory."""
        distributed.all_reduce(torch.from_numpy(array))
        return array[0]

    def tell(self, words: bytes) -> None:
        """The hub says what comes."""
        distributed.broadcast(torch.frombuffer(bytearray(words), dtype=torch.uint8), 0)

    def hear(self) -> bytes:
        """A spoke hears it, and how many rows will follow."""
        words = torch.zeros(STEP.size, dtype=torch.uint8)
        distributed.broadcast(words, 0)
        said = bytes(words.tolist())
        self._count = STEP.unpack(said)[1]
        return said

    def broadcast(
        self, array: np.ndarray | None = None, *, timeout: float | None = None
    ) -> np.ndarray:
        """The hub gives rows, and a spoke gets them."""
        rows = np.empty((self._count, self._hidden), np.float32) if array is None else array
        distributed.broadcast(torch.from_numpy(rows), 0)
        return rows


class Leader:
    """The hub: greedy tokens, and what the last text took by kind."""

    def __init__(self, party: Party, layers: Stack, ends: Ends) -> None:
        self._party, self._layers, self._ends = party, layers, ends
        self._spent = Spent()

    def answer(self, ids: list[int], most: int) -> Iterator[int]:
        """A fresh text."""
        n, new, self._spent = 0, list(ids), Spent()
        for _ in range(most):
            rows = lead(self._party, self._layers, self._ends.embed(new), n, self._spent)
            n, new = n + len(new), [int(self._ends.say(rows[-1:])[0].argmax())]
            yield new[0]

    def told(self) -> dict[str, dict[str, float]]:
        """Milliseconds a step; what others were waited for is in the sums."""
        steps = max(1, self._spent.steps)
        kinds = ("compute", "reduce", "load")
        return {"shares": {one: 1000 * getattr(self._spent, one) / steps for one in kinds}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name in ("devices", "device"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--hub", required=True, help="HOST:PORT")
    options = parser.parse_args()
    torch.set_num_threads(1)
    manifest = Shards.load(options.folder)
    layers = Stack(options.folder, manifest, [options.device])
    party = Party(options.hub, options.device, options.devices, manifest.shape.hidden)
    if options.device:
        follow(party, layers, Spent())
    leader = Leader(party, layers, Ends(options.folder, manifest))
    speak(leader.answer, leader.told)


if __name__ == "__main__":
    main()
