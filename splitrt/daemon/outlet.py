"""Where a camera's answers go: a JSON object a line, to a file or to standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from splitrt.daemon.config import STDOUT
from splitrt.daemon.seen import Seen

logger = logging.getLogger(__name__)

NUMBERS = 1024  # of an output that a line holds; larger ones are given by their shape
MODE = 0o640
_standard = threading.Lock()


class Outlet:
    """Appends; a line that cannot be written is counted, and the file is opened anew."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.failed = 0  # lines
        self._lock = threading.Lock()
        self._file: int | None = None

    def write(self, line: str) -> None:
        """One line."""
        data = line.encode() + b"\n"
        try:
            if self.target == STDOUT:
                with _standard:
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()
                return
            with self._lock:
                self._append(data)
        except OSError as error:
            if not self.failed:
                logger.error("%s: %s", self.target, error.strerror)
            self.failed += 1
            self.close()

    def close(self) -> None:
        """Close the file; the next line opens it anew, so that it can be moved away meanwhile."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _append(self, data: bytes) -> None:
        if self._file is None:
            Path(self.target).parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(self.target, flags, MODE)
        while data:
            data = data[os.write(self._file, data) :]


def line(seen: Seen) -> str:
    """A frame's end, for programs.

    `answer` is the label of the first output's largest number; of a detector the best box, and
    `boxes` has them all, in the picture's pixels.
    """
    result, manifest, boxes = seen.result, seen.manifest, seen.boxes
    labels = None if manifest is None else manifest.labels
    further = {} if boxes is None else {"boxes": boxes.entries(labels)}
    answer = _label(result.outputs, labels)
    if boxes is not None and result.outputs:
        answer = boxes.words(labels)
    return json.dumps(
        {
            "camera": seen.camera,
            "index": seen.index,
            "frame": seen.frame,
            "at": round(seen.at, 6),
            "model": seen.model,
            "where": result.where,
            "plan": result.plan,
            "cause": seen.cause,
            "reason": result.reason,
            "confidence": _number(result.confidence),
            "sent_bytes": result.sent_bytes,
            "revision": result.revision,
            "ms": round(result.timings.total, 3),
            "answer": answer,
            "outputs": {name: _numbers(array) for name, array in result.outputs.items()},
        }
        | further,
        allow_nan=False,
    )


def _label(outputs: dict[str, np.ndarray], labels: list[str] | None) -> str | None:
    first = next(iter(outputs.values()), None)
    if labels is None or first is None or first.shape != (len(labels),):
        return None
    return labels[int(first.argmax())]


def _numbers(array: np.ndarray) -> Any:
    """Nested lists; the shape alone of what is too large for a line."""
    if array.size > NUMBERS:
        return {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.dtype.kind in "iub":
        return array.tolist()
    flat = [_number(value) for value in array.ravel().tolist()]
    shaped = np.empty(len(flat), object)
    shaped[:] = flat
    return shaped.reshape(array.shape).tolist()


def _number(value: float | None) -> float | None:
    """Six digits; JSON knows no infinity."""
    return float(f"{value:.6g}") if value is not None and np.isfinite(value) else None
