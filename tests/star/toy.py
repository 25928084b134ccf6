"""Layers that weigh nothing, and a spoke of them in a process of its own.

python -m tests.star.toy join|wait ADDRESS STORE [NAME]
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from splitrt.core.manifest import verified
from splitrt.core.shards import Shards, feed
from splitrt.edge.head import session
from splitrt.star.point import serve
from splitrt.star.work import wanted

ROOT = Path(__file__).parent.parent.parent
LONG = 30.0  # seconds in which anything must happen


class Toy:
    """Each shard adds a hundredth of the rows, times one more than its number."""

    loading = 0.0

    def __init__(self, folder: Path, manifest: Shards, shards: Sequence[int], longest: int) -> None:
        self._folder, self._manifest = folder, manifest
        self.layers, self.longest = manifest.shape.layers, longest
        self.hold(shards)

    def hold(self, held: Sequence[int]) -> None:
        for shard in held:  # as real layers do: every file must be right, and load
            one = self._manifest.devices[shard]
            for name in wanted(self._manifest, shard):
                verified(self._folder / one.folder, one, name)
            path = self._folder / one.folder / feed(0)
            session(path, 1, "CPU", weights=path.with_suffix(".bin").name)
        self._parts = self.of(held)

    def attend(self, layer: int, rows: np.ndarray, n: int, alone: bool) -> np.ndarray:
        return self._parts(rows)

    def feed(self, layer: int, rows: np.ndarray) -> np.ndarray:
        return self._parts(rows)

    @staticmethod
    def of(shards: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
        """What such shards add to rows, each for itself."""
        weights = np.array([shard + 1 for shard in shards], np.float32) / 100
        return lambda rows: weights[:, None, None] * rows

    def close(self) -> None:
        pass


def until(ready: Callable[[], object], words: str, seconds: float = LONG) -> float:
    """Wait for it; the seconds that it took."""
    began = time.monotonic()
    while not ready():
        assert time.monotonic() - began < seconds, words
        time.sleep(0.005)
    return time.monotonic() - began


@contextlib.contextmanager
def process(*words: object) -> Iterator[subprocess.Popen[bytes]]:
    """A spoke, killed at the end if it is still there."""
    command = [sys.executable, "-m", "tests.star.toy", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.send_signal(signal.SIGCONT)
        running.kill()
        running.wait()


def main(how: str, address: str, store: str, name: str = "toy") -> None:
    serve(**{how: address}, layers=Toy, store=store, name=name)


if __name__ == "__main__":
    main(*sys.argv[1:])
