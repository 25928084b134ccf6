"""Servers as `splitrt serve` processes on cores of their own; what each costs, by /proc."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
START = 120.0  # seconds for a server to come up


@dataclass(frozen=True, slots=True)
class Figures:
    """A process until now. cpu: seconds of all threads.  threads: of each, by its number.

    resident: bytes.  descriptors: open files and connections.
    """

    cpu: float
    threads: dict[int, float]
    resident: int
    descriptors: int


class Served:
    """One server, started and killed; starts again on its port."""

    def __init__(self, folder: str, *, cores: Sequence[int] = (), options: Sequence[str] = ()):
        self.folder, self.cores, self.options, self.port = folder, cores, options, 0
        self.start()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def start(self) -> None:
        """Until it says its address."""
        words = ["-m", "splitrt.cli", "serve", self.folder, "--port", str(self.port)]
        pinned = ["taskset", "-c", ",".join(map(str, self.cores))] if self.cores else []
        command = [*pinned, sys.executable, *words, "--threads", "1", *self.options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        alarm = threading.Timer(START, self.process.kill)
        alarm.start()
        line = self.process.stdout.readline().strip()
        alarm.cancel()
        found = re.search(r" at (\S+:(\d+))$", line)
        if found is None:
            sys.exit(f"error: {' '.join(command)} did not start; it said {line!r}")
        self.address, self.port = found[1], int(found[2])

    def kill(self) -> None:
        """As a power cut does it."""
        self.process.kill()
        self.process.wait()

    def figures(self) -> Figures:
        """Of its process, now."""
        there = Path(f"/proc/{self.process.pid}")
        return Figures(
            cpu=cpu_seconds(there),
            threads=_threads(there),
            resident=int((there / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            descriptors=len(list((there / "fd").iterdir())),
        )


def cpu_seconds(there: Path) -> float:
    """User and system seconds of a process or thread so far."""
    fields = (there / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _threads(there: Path) -> dict[int, float]:
    """Seconds of each thread; one that ends just now has none."""
    found = {}
    for one in (there / "task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[int(one.name)] = cpu_seconds(one)
    return found
