"""How each row of the table comes up: its model's files, its processes, its links."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crew import Crew, Failed, free
from router import Net
from rows import Row

import splitrt
from models import SIZES

HERE = Path(__file__).parent
ROOT = Path(splitrt.__file__).parent
LONGEST = 256  # positions
SPOKE = ["-m", "splitrt.cli", "star"]
Within = Callable[[int], list[str]]


def split(row: Row, options: argparse.Namespace) -> Path:
    """A star's directory; what making it took lies beside it. Kept as long as what makes it."""
    to = options.work / f"{row.model}-in-{row.devices}-{row.weights}"
    record, by = to.with_name(f"{to.name}.json"), maker()
    if to.exists() and record.exists() and json.loads(record.read_text()).get("by") == by:
        return to
    shutil.rmtree(to, ignore_errors=True)
    words: list[object] = ["-m", "splitrt.cli", "split", options.work / row.model, "--to", to]
    words += ["--star", row.devices, "--weights", row.weights, "--longest", LONGEST]
    started = time.monotonic()
    with Crew() as crew:
        process = crew.start([sys.executable, *words])
        process.communicate()
        if process.returncode:
            raise Failed(crew.words())
        told = {"of": to.name, "by": by, "seconds": round(time.monotonic() - started, 1)}
        told |= {"peak_mb": round(crew.peak / 1e6)}
    told |= {"wanted_mb": round(2 * SIZES[row.model].layer / 1e6 + 300)}
    record.write_text(json.dumps(told) + "\n")
    return to


def maker() -> str:
    """The code that a split depends on, as a hash."""
    files = [*(ROOT / "train").glob("*.py"), ROOT / "core" / "shards.py"]
    said = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files)))
    return said.hexdigest()[:16]


def whole(crew: Crew, row: Row, options: argparse.Namespace) -> None:
    """transformers or accelerate, which come up in a process of their own."""
    kind = {"fp32": "float32", "bf16": "bfloat16"}[row.weights]
    words = [options.work / row.model, "--kind", row.name, "--dtype", kind]
    process = crew.python(HERE / "whole.py", *words)
    ready(crew, process)


def star(crew: Crew, row: Row, options: argparse.Namespace, net: Net | None) -> None:
    """A hub, and `splitrt star --join` for each spoke; what they fetch is kept for later rows."""
    folder, (hosts, within) = split(row, options), reached(row, net)
    words = [folder, "--devices", row.devices, "--listen", f"{hosts[0]}:{free()}"]
    hub = crew.python(HERE / "hub.py", *words, *given(row, "{:g}"), within=within(0))
    address = crew.heard(hub)
    store = kept(row, options)
    for device in range(1, row.devices):
        words = [*SPOKE, "--join", address, "--store", store]
        words += ["--name", f"spoke-{device}", *given(row, "{:g}MB")]
        crew.python(*words, within=within(device))
    ready(crew, hub)


def given(row: Row, memory: str) -> list[object]:
    """The options by which a device is told its room."""
    if row.room.startswith("window"):
        return ["--window", row.room.split()[1]]
    return ["--memory", memory.format(float(row.room.removesuffix("MB")))] if row.room else []


def kept(row: Row, options: argparse.Namespace) -> Path:
    """Where spokes keep their shards: of one star at a time, else the disk would hold all twice."""
    store = options.work / f"store-{row.model}-in-{row.devices}-{row.weights}"
    for other in options.work.glob("store-*"):
        if other != store:
            shutil.rmtree(other)
    return store


def gloo(crew: Crew, row: Row, options: argparse.Namespace, net: Net | None) -> None:
    """A process a device, with gloo's sums of the same shards."""
    folder, (hosts, within) = split(row, options), reached(row, net)
    words = [folder, "--devices", row.devices, "--hub", f"{hosts[0]}:{free()}"]
    running = [
        crew.python(HERE / "with_gloo.py", *words, "--device", device, within=within(device))
        for device in range(row.devices)
    ]
    ready(crew, running[0])


def reached(row: Row, net: Net | None) -> tuple[list[str], Within]:
    """The devices' addresses, and the words that start a program on each."""
    if net is None:
        return ["127.0.0.1"] * row.devices, lambda _: []
    return [net.address(device) for device in range(row.devices)], net.within


def ready(crew: Crew, process: Any) -> None:
    """Until it says so."""
    while crew.heard(process) != "ready":
        pass
