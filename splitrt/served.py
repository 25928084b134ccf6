"""A server, or a star's spokes, in processes of their own, and the shipped model, for the demos."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splitrt.errors import LinkDown, ModelError

if TYPE_CHECKING:
    from splitrt.star import Star

HERE = Path(__file__).parent
MODELS = (HERE / "model", HERE.parent / "models" / "cifar10-resnet")  # a wheel's, a clone's
PATIENCE = 60.0  # seconds for the server, or for all spokes, to come up
LAST = 5.0  # seconds for a spoke to end by itself
LOOK = 0.5  # seconds between two looks at whether all spokes still run
CLI = (sys.executable, "-m", "splitrt.cli")


def shipped() -> Path:
    """The model directory that comes with splitrt."""
    for folder in MODELS:
        if (folder / "model.toml").exists():
            return folder
    raise ModelError("the shipped model is missing\nhelp: run from a clone, or install the wheel")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Callable[[], str]]:
    """Serve a model directory on a free port; yields what waits for the address."""
    command = [*CLI, "serve", str(folder), "--port", "0"]
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


@contextlib.contextmanager
def joined(address: str, names: Sequence[str]) -> Iterator[Callable[[Star], None]]:
    """Start spokes that join a hub, their files in a temporary folder, one thread each.

    Yields what waits until all have joined. They end with the block, however it ends.
    """
    with _terminable(), tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        spokes = [stack.enter_context(_spoke(address, name, Path(folder))) for name in names]

        def ready(star: Star) -> None:
            until = time.monotonic() + PATIENCE
            while len(star.roster.wait(len(spokes), LOOK)) < len(spokes):
                over = [name for name, one in zip(names, spokes, strict=True) if one.poll()]
                if over or time.monotonic() > until:
                    raise LinkDown(_why(Path(folder), over or names))
            star.gather(len(spokes), PATIENCE)

        yield ready


@contextlib.contextmanager
def _spoke(address: str, name: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [*CLI, "star", "--join", address, "--name", name, "--store", str(folder / name)]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([*command, "--threads", "1"], stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(LAST)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _why(folder: Path, names: Sequence[str]) -> str:
    """What spokes that have not come said last."""
    lines = (folder / f"{names[0]}.log").read_text(errors="replace").splitlines()
    told = f": {lines[-1]}" if lines else ""
    return f"not every spoke has joined{told}\nhelp: try `splitrt star --join` by itself"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds the program, as Ctrl-C does, so that what it started ends with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
