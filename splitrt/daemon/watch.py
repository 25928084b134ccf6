"""One camera, for ever: opened, run through its model, opened again when it dies."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from splitrt.daemon.config import CameraPart
from splitrt.daemon.feed import Feed
from splitrt.daemon.seen import Seen, cause
from splitrt.daemon.shelf import Shelf, answers
from splitrt.edge.capture import Frame
from splitrt.edge.source import Source, source
from splitrt.errors import SplitrtError

logger = logging.getLogger(__name__)

FIRST, LAST, GROWTH = 0.5, 30.0, 2.0  # seconds before a camera is opened again
State: TypeAlias = Literal["opening", "running", "lost", "done"]


class Watch:
    """Runs one camera in its own threads and gives each frame's end to `tell`.

    state: lost is a camera that is tried again; done is a folder or a video that ended.
    """

    def __init__(
        self, name: str, told: CameraPart, shelf: Shelf, tell: Callable[[Seen], None]
    ) -> None:
        self.name, self.told = name, told
        self.state: State = "opening"
        self.error: str | None = None  # why it was lost the last time
        self.opened, self.count = 0, 0  # times, frames that ended
        self.last: float | None = None  # time.monotonic() of the last frame
        self.wheres: Counter[str] = Counter()
        self._shelf, self._tell = shelf, tell
        self._over = threading.Event()
        self._source: Source | None = None
        self._drawn, self._due = 0, time.monotonic()
        self._feed = Feed(self._frames(), name)
        self._thread = threading.Thread(target=self._run, name=f"watch-{name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its threads run as they should."""
        return self._thread.is_alive() or self.state == "done"

    def stop(self) -> None:
        """Take no new frames; `join` waits for those that are on their way."""
        self._over.set()
        self._feed.close()
        opened = self._source
        if opened is not None:
            opened.close()

    def join(self, seconds: float) -> bool:
        """Wait for the last frame's end and the source's; whether both have come."""
        until = time.monotonic() + seconds
        self._thread.join(seconds)
        self._feed.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def status(self) -> dict[str, Any]:
        """For people and for /healthz."""
        silent = None if self.last is None else round(time.monotonic() - self.last, 3)
        return {
            "state": self.state,
            "model": self.told.model,
            "frames": self.count,
            "answered": dict(self.wheres),
            "opened": self.opened,
            "silent_s": silent,
            "error": self.error,
        }

    def _run(self) -> None:
        """Answer until the source is done; a fault of ours costs the frames in flight, no more."""
        while not self._feed.over:
            try:
                for frame, result, fault, model in answers(
                    self._shelf, self.told.model, self._feed, self.told.inflight
                ):
                    at = time.time() - (time.monotonic() - frame.captured)
                    why = cause(result, fault)
                    where = result.where or "none"
                    self.count, self.last = self.count + 1, time.monotonic()
                    self.wheres[where] += 1
                    told = self.name, model.name, frame.name, frame.index, at, result, why
                    height, width = frame.image.shape[:2]
                    self._tell(Seen(*told, model.edge.manifest, (height, width)))
            except Exception:  # a head that failed: the camera goes on with the next frame
                logger.exception("frames were lost", extra={"camera": self.name})
                self._over.wait(FIRST)

    def _frames(self) -> Iterator[Frame]:
        """The source's frames, numbered through; it is opened again and again."""
        wait = FIRST
        while not self._over.is_set():
            before = self._drawn
            try:
                for frame in self._once():
                    self.state, self.error, wait = "running", None, FIRST
                    yield replace(frame, index=self._drawn)
                    self._drawn += 1
                if self._drawn > before and not self.told.live:
                    if self.told.repeat:
                        continue
                    self.state = "done"
                    return
                self._lost("it ended" if self._drawn > before else "it has none")
            except SplitrtError as error:
                self._lost(str(error).splitlines()[0])
            except Exception as error:  # whatever a driver raises, the camera is tried again
                logger.exception("a camera failed", extra={"camera": self.name})
                self._lost(repr(error))
            self._over.wait(wait)
            wait = min(wait * GROWTH, LAST)

    def _once(self) -> Iterator[Frame]:
        """Open the source and go through it, no faster than fps."""
        with contextlib.ExitStack() as stack:
            opened: Source = source(self.told.source)
            self._source = stack.enter_context(opened)
            self.opened += 1
            stack.callback(setattr, self, "_source", None)
            frames = iter(opened)
            while self._paced():
                frame = next(frames, None)
                if frame is None:
                    self._due = time.monotonic()  # the end was no frame
                    return
                yield frame

    def _paced(self) -> bool:
        """Wait until the next frame is due; False at the end of all."""
        if self.told.fps is not None:
            self._over.wait(max(0.0, self._due - time.monotonic()))
            self._due = max(self._due + 1 / self.told.fps, time.monotonic())  # no bursts
        return not self._over.is_set()

    def _lost(self, why: str) -> None:
        if self._over.is_set():
            return
        if self.error != why:  # once, not at each attempt
            logger.warning("no frames: %s", why, extra={"camera": self.name})
        self.state, self.error = "lost", why
