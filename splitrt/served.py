"""A server in a process of its own, for the demos."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from splitrt.errors import LinkDown

PATIENCE = 60.0  # seconds for the server to come up


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Callable[[], str]]:
    """Serve a model directory on a free port; yields what waits for the address."""
    command = [sys.executable, "-m", "splitrt.cli", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.PIPE, text=True)
    alarm = threading.Timer(PATIENCE, process.kill)
    alarm.start()

    def address() -> str:
        assert process.stdout is not None  # it is a pipe
        found = (re.search(r" at (\S+:\d+)$", line.strip()) for line in process.stdout)
        there = next(filter(None, found), None)
        alarm.cancel()
        if there is None:
            raise LinkDown("the server did not start\nhelp: try `splitrt serve` by itself")
        return there.group(1)

    try:
        yield address
    finally:
        alarm.cancel()
        process.terminate()
        process.wait()
