"""Streams in which little happens: a picture like the last answered one gets its answer again."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from splitrt.core.manifest import Manifest, Similar
from splitrt.core.result import Result, Timings
from splitrt.core.similar import blocks, change
from splitrt.edge.capture import Frame
from splitrt.errors import SplitrtError

PLAN = "similar"


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """An answered picture: its name, when it was taken, its blocks, its answer."""

    name: str
    captured: float
    small: np.ndarray
    outputs: dict[str, np.ndarray]
    confidence: float | None
    revision: int


class Still:
    """One stream's last answered picture. `like` each frame, then `landed` each that was asked.

    Both in order of capture; they may be called from different threads.
    """

    def __init__(self, rule: Similar) -> None:
        self.rule = rule
        self._last: Seen | None = None
        self._reused = 0  # frames in a row
        self._asked: deque[np.ndarray | None] = deque()  # the blocks of frames on their way

    def like(self, frame: Frame) -> Result | None:
        """The last answer, for a frame that hardly changed; None for one that has to be asked."""
        started = time.monotonic()
        small = blocks(frame.image) if _picture(frame.image) else None
        last = self._last
        if small is not None and last is not None and self._reused + 1 < self.rule.interval:
            gap = change(small, last.small)
            if gap <= self.rule.threshold:
                self._reused += 1
                return _again(last, frame, started, f"{gap:.2f} <= {self.rule.threshold:.2f}")
        self._reused = 0
        self._asked.append(small)
        return None

    def landed(self, frame: Frame, result: Result) -> None:
        """How a frame that was asked ended; without an answer the next is asked, too."""
        small = self._asked.popleft()
        if small is None or not result.outputs or result.reason is not None:
            self._last = None
            return
        outputs = _copied(result.outputs)
        self._last = Seen(
            frame.name, frame.captured, small, outputs, result.confidence, result.revision
        )


def rule(similar: Similar | float | bool, manifest: Manifest) -> Similar | None:
    """What Edge's `similar` means: a rule, a threshold, or True for the manifest's own."""
    if similar is False:
        return None
    if manifest.input.kind != "pixels":
        raise SplitrtError("this model takes no pictures to compare\nhelp: leave out similar")
    if similar is True:
        if manifest.similar is None:
            raise SplitrtError(
                "the model has no threshold of its own\nhelp: similar=2.0, or train.similar()"
            )
        return manifest.similar
    if isinstance(similar, Similar):
        return similar
    if not 0 <= similar < float("inf"):
        raise SplitrtError(f"similar = {similar}\nhelp: grey levels, 0 or more")
    return Similar(threshold=similar)


def _again(last: Seen, frame: Frame, started: float, why: str) -> Result:
    now = time.monotonic()
    age = frame.captured - last.captured
    return Result(
        outputs=_copied(last.outputs),
        where="edge",
        plan=PLAN,
        reason=f"hardly changed since {last.name}, {age:.1f} s before: {why}",
        confidence=last.confidence,
        revision=last.revision,
        timings=Timings(
            capture=1000 * (started - frame.captured),
            gate=1000 * (now - started),
            total=1000 * (now - frame.captured),
        ),
    )


def _copied(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Whoever got an answer may write into it."""
    return {name: array.copy() for name, array in outputs.items()}


def _picture(image: np.ndarray) -> bool:
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0
