"""A camera, a stream or a video: the latest frame of what is live, opened anew where it falls."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from splitrt.edge.capture import Frame
from splitrt.edge.lens import LIVE, READ, Lens, bare, opener
from splitrt.errors import SplitrtError

logger = logging.getLogger(__name__)

RETRIES = 3  # reads in a row that fail before a camera is opened anew
PAUSE = 0.2  # seconds after a read that failed, and before it is opened anew
LONGEST_PAUSE = 10.0  # seconds between two tries to open it
PATIENCE = 20.0  # seconds without a frame before a camera is given up
LEAVING = READ + 1.0  # seconds for a read in progress to end


class Camera:
    """A camera, a stream or a video file. A file gives every frame, a live source the latest.

    source: /dev/video0, rtsp://…, csi://0 or a video file.
    width, height: asked of a local camera, in pixels; its driver may give the nearest it has.
    patience: seconds without a frame of a live source until SplitrtError; None: never, and it may
    be away at the beginning too. Meanwhile it is opened anew, after pauses that grow to 10 s.

        with Camera("rtsp://door/stream") as camera:
            for frame in camera: ...
    """

    def __init__(
        self,
        source: str,
        *,
        width: int | None = None,
        height: int | None = None,
        patience: float | None = PATIENCE,
    ) -> None:
        if patience is not None and not patience > 0:
            raise SplitrtError(f"patience = {patience}\nhelp: seconds, more than 0, or None")
        self.source, self.patience = source, patience
        self.live = source.startswith(LIVE)
        self.dropped = self.opened = 0
        self._open = opener(source, _size(source, width, height))
        self._lens: Lens | None = None
        if not self.live or patience is not None:
            self._lens = self._new()
        self._closed = threading.Event()
        self._fresh = threading.Condition()
        self._newest: list[tuple[int, np.ndarray, float]] = []  # none or one
        self._failure: Exception | None = None  # what no camera does
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; an iteration in progress ends."""
        self._closed.set()
        with self._fresh:
            self._fresh.notify_all()
        if self._watcher is not None:
            self._watcher.join(LEAVING)  # it releases: not under a read in progress
        elif self.live:
            self._release()

    def __iter__(self) -> Iterator[Frame]:
        return self._latest() if self.live else self._all()

    def _all(self) -> Iterator[Frame]:
        index = 0
        while not self._closed.is_set() and self._lens is not None:
            image = self._lens.read()
            if image is None:
                break
            yield Frame(image, index, time.monotonic(), f"frame-{index}")
            index += 1
        self._release()

    def _latest(self) -> Iterator[Frame]:
        """Whatever was read last; a thread reads, so that nothing waits in a driver's queue."""
        if self._watcher is None and not self._closed.is_set():
            self._watcher = threading.Thread(target=self._watch, name="camera", daemon=True)
            self._watcher.start()
        while True:
            with self._fresh:
                self._fresh.wait_for(self._heard, self.patience)
                if self._closed.is_set():
                    return
                if self._failure is not None:
                    raise self._failure
                if not self._newest:
                    raise SplitrtError(
                        f"{bare(self.source)} gave no frame for {self.patience:.0f} s\n"
                        "help: is it plugged in, switched on, within reach?"
                    )
                index, image, captured = self._newest.pop()
            yield Frame(image, index, captured, f"frame-{index}")

    def _heard(self) -> Any:
        return self._newest or self._failure or self._closed.is_set()

    def _watch(self) -> None:
        try:
            self._read_all()
        except Exception as error:  # whatever a driver raises is the consumer's
            with self._fresh:
                self._failure = error
                self._fresh.notify_all()
        finally:
            self._release()

    def _read_all(self) -> None:
        count = failed = 0
        pause = PAUSE
        while not self._closed.is_set():
            image = None if self._lens is None else self._lens.read()
            if image is not None:
                failed, pause = 0, PAUSE
                self._put(count, image)
                count += 1
                continue
            failed += 1
            self._closed.wait(PAUSE)
            if self._lens is None or failed >= RETRIES:
                failed = 0
                self._closed.wait(pause * random.uniform(0.5, 1.0))  # not all cameras at once
                pause = min(2 * pause, LONGEST_PAUSE)
                self._reopen()

    def _put(self, count: int, image: np.ndarray) -> None:
        with self._fresh:
            self.dropped += len(self._newest)
            self._newest[:] = [(count, image, time.monotonic())]
            self._fresh.notify()

    def _reopen(self) -> None:
        if self._closed.is_set():
            return
        logger.warning("%s gives no frames; opening it anew", bare(self.source))
        self._release()
        try:
            self._lens = self._new()
        except SplitrtError as error:  # not back yet: it is tried again
            logger.warning("%s", error)

    def _new(self) -> Lens:
        lens = self._open()
        self.opened += 1
        return lens

    def _release(self) -> None:
        lens, self._lens = self._lens, None
        if lens is not None:
            lens.release()


def _size(source: str, width: int | None, height: int | None) -> tuple[int, int] | None:
    if width is None and height is None:
        return None
    if width is None or height is None or width < 1 or height < 1:
        raise SplitrtError(
            f"width {width}, height {height}\nhelp: give both, in pixels, or neither"
        )
    if source.startswith("rtsp://") or not source.startswith(LIVE):
        raise SplitrtError(
            f"{bare(source)} comes in the size that it has, not {width} x {height}\n"
            "help: only local cameras can be asked for a size; fit(image, height, width) resizes"
        )
    return width, height
