"""A daemon in this process or in its own, with what it is told and what it answered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from PIL import Image

from splitrt.daemon.life import Daemon
from tests.conftest import ROOT, pictures

PATIENCE = 60.0  # seconds; generous, for a machine that is busy with other things


def folder_of(folder: Path, count: int, seed: int = 3) -> Path:
    """A folder with so many pictures: to the daemon, a camera."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(pictures(count, seed=seed).images):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return folder


def told(folder: Path, model: Path, cloud: str | None = None, **more: Any) -> dict[str, Any]:
    """A daemon.toml's tables: one model, one camera with 20 pictures at 50 a second, for ever."""
    folder_of(folder / "camera", 20)
    small: dict[str, Any] = {"path": str(model), "threads": 1}
    if cloud is not None:
        small |= {"cloud": cloud, "plan": "q4", "deadline": 5.0}
    camera = {
        "source": "camera", "model": "small", "fps": 50.0, "repeat": True, "output": "door.jsonl",
    }  # fmt: skip
    return {"socket": "s", "models": {"small": small}, "cameras": {"door": camera}, **more}


def write(folder: Path, tables: dict[str, Any]) -> Path:
    path = folder / "daemon.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


@contextmanager
def running(folder: Path, tables: dict[str, Any]) -> Iterator[Daemon]:
    with Daemon(write(folder, tables), {}) as daemon:
        yield daemon


@contextmanager
def process(folder: Path, *words: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """`splitrt daemon` on the folder's file, killed in the end if it still runs."""
    with (folder / "log").open("w") as log:
        done = subprocess.Popen(
            [sys.executable, "-m", "splitrt.cli", "daemon", "daemon.toml", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": ":".join([str(ROOT), *sys.path]), **environ},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield done
    finally:
        done.kill()
        done.communicate()


def until(what: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait until it is true."""
    end = time.monotonic() + patience
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines of a file of answers; none if it is not there yet."""
    if not file.exists():
        return []
    text = file.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def in_order(found: list[dict[str, Any]]) -> bool:
    """Whether each frame has one line, in order of capture."""
    return [line["index"] for line in found] == list(range(len(found)))


def copied(model: Path, to: Path) -> Path:
    """A model directory of its own."""
    shutil.copytree(model, to)
    return to


def picture(seed: int = 2) -> np.ndarray:
    return pictures(1, seed=seed).images[0]
