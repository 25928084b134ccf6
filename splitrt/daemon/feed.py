"""Frames of one source, one at a time as they are wanted; a change of the model loses none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from splitrt.edge.capture import Frame

LOOK = 0.2  # seconds between two looks at whether the frames are to go elsewhere


class Feed:
    """Draws from `frames` in a thread of its own, and only when somebody waits.

    The thread may block in a camera; `until` does not wait for it longer than it should.
    """

    def __init__(self, frames: Iterator[Frame], name: str) -> None:
        self._frames = frames
        self._changed = threading.Condition()
        self._held: Frame | None = None
        self._wanted = self._ended = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._draw, name=f"feed-{name}", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether there is no further frame."""
        return self._held is None and (self._ended or self._closed)

    def until(self, retired: Callable[[], bool]) -> Iterator[Frame]:
        """The next frames, as long as `retired` is false; what the source raised is raised here."""
        while not retired():
            frame = self._next(retired)
            if frame is None:
                return
            yield frame

    def close(self) -> None:
        """Want no more; a frame that was drawn already is still given."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait for the source to end."""
        self._thread.join(seconds)

    def _next(self, retired: Callable[[], bool]) -> Frame | None:
        with self._changed:
            while self._held is None:
                if self._error is not None:
                    raise self._error
                if self._ended or self._closed or retired():
                    return None
                self._wanted = True
                self._changed.notify_all()
                self._changed.wait(LOOK)
            frame, self._held = self._held, None
            return frame

    def _draw(self) -> None:
        error: BaseException | None = None
        try:
            while self._awaited():
                frame = next(self._frames, None)
                if frame is None:
                    break
                with self._changed:
                    self._held, self._wanted = frame, False
                    self._changed.notify_all()
        except BaseException as raised:  # whatever it is, it is the consumer's
            error = raised
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def _awaited(self) -> bool:
        """Wait until a frame is wanted; False if none ever will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or self._closed)
            return not self._closed
