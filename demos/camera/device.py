"""The device: a source's frames through the head, for ever, and every end onto the board."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import splitrt
from splitrt import Camera, Edge, Frame, Pan, Pictures, SplitrtError, source

PHOTOGRAPHS = Path(splitrt.__file__).parent / "pictures"
LEAVING = 5.0  # seconds for the last frame
FASTEST = 1000.0  # frames a second


def opened(text: str | None, rate: float) -> Pan | Camera | Film:
    """A camera, or what can stand for one: photographs are panned over, videos are shown again.

    rate: frames a second of those.
    """
    if not 0 < rate <= FASTEST:
        raise SplitrtError(f"rate = {rate}\nhelp: frames a second, more than 0, at most 1000")
    if text is None or text.startswith("pan:"):
        return Pan(PHOTOGRAPHS if text is None else text.removeprefix("pan:"), rate=rate)
    found = source(text, patience=None)
    if isinstance(found, Pictures):
        return Pan(text, rate=rate)
    if found.live:
        return found
    found.close()
    return Film(text, rate)


class Film:
    """A video again and again, in its own order, so many frames a second."""

    def __init__(self, text: str, rate: float) -> None:
        self.text, self.rate = text, rate
        self._closed = threading.Event()

    def close(self) -> None:
        """Stop; an iteration in progress ends."""
        self._closed.set()

    def __iter__(self) -> Iterator[Frame]:
        due = time.monotonic()
        for index, frame in zip(itertools.count(), self._again(), strict=False):
            if self._closed.wait(max(0.0, due - time.monotonic())):
                return
            yield replace(frame, index=index, captured=time.monotonic())
            due = max(due + 1 / self.rate, time.monotonic())

    def _again(self) -> Iterator[Frame]:
        while not self._closed.is_set():
            with source(self.text) as film:
                frames = iter(film)
                first = next(frames, None)
                if first is None:
                    raise SplitrtError(f"{self.text} has no frame\nhelp: does a player show it?")
                yield first
                yield from frames


class Device:
    """Streams until it is left; `failure`: what ended it before, and then `page` ends too."""

    def __init__(self, edge: Edge, frames: Iterable[Frame], board, page) -> None:
        self.failure: SplitrtError | None = None
        self._edge, self._frames, self._board, self._page = edge, frames, board, page
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def __enter__(self) -> Device:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._frames.close()
        self._thread.join(LEAVING)

    def _run(self) -> None:
        try:
            for frame, result in self._edge.stream(self._frames):
                if self._over.is_set():
                    return
                self._board.put(frame, result)
        except SplitrtError as error:
            self.failure = error
        finally:
            self._page.should_exit = True
