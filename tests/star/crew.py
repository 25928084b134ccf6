"""Spokes for a star's tests: in threads of this process, or as processes that can be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from splitrt.star import Point, Seal, Star
from tests.conftest import ROOT

PATIENCE = 60.0  # seconds for spokes to come


@contextlib.contextmanager
def threads(star: Star, count: int, store: Path, seal: Seal | None = None) -> Iterator[list[Point]]:
    """So many spokes in this process, gathered."""
    with contextlib.ExitStack() as stack:
        points = [
            stack.enter_context(
                Point(join=star.address, store=store / str(i), seal=seal, name=f"pi{i}")
            )
            for i in range(1, count + 1)
        ]
        assert len(star.gather(count, PATIENCE)) == count
        yield points


class Process:
    """`splitrt star --join` as a process of its own."""

    def __init__(self, address: str, store: Path, name: str) -> None:
        command = [sys.executable, "-m", "splitrt.cli", "star", "--join", address]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.name = name
        self._process = subprocess.Popen(
            [*command, "--store", str(store), "--name", name],
            env=environment,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.send(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def send(self, which: signal.Signals) -> None:
        """A signal, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(which)
