"""A camera that pans over photographs: for demos and tests, where there is no other."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from splitrt.edge.capture import Frame, Pictures
from splitrt.errors import SplitrtError

SIDE_PERIOD, DOWN_PERIOD = 9.0, 7.0  # seconds there and back: the path takes 63 s to repeat
LONGEST = 1e9  # seconds; what is more is no number to pan by


class Pan:
    """A part of a photograph that moves over it; of a folder's photographs one after the other.

    rate: pictures a second. share: of the photograph's height and width that is seen.
    seconds: on each photograph of several. What nobody takes in time is dropped, as by a camera;
    picture `index` shows the same in every run.

        with Pan("photo.jpg") as camera:
            for frame in camera: ...
    """

    live = True

    def __init__(
        self,
        path: str | Path,
        *,
        rate: float = 10.0,
        share: float = 0.7,
        seconds: float = 6.0,
    ) -> None:
        for name, value, most in (
            ("rate", rate, 1000.0),
            ("share", share, 1.0),
            ("seconds", seconds, LONGEST),
        ):
            if not 0 < value <= most:
                raise SplitrtError(
                    f"{name} = {value}\nhelp: more than 0, and not more than {most:g}"
                )
        self.rate, self.share, self.seconds = rate, share, seconds
        self.dropped = 0
        self._pictures = Pictures(path)
        self._closed = threading.Event()

    def __enter__(self) -> Pan:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; an iteration in progress ends."""
        self._closed.set()

    def __iter__(self) -> Iterator[Frame]:
        """For ever, until it is closed."""
        begun, index = time.monotonic(), 0
        photographs, since = self._photographs(), 0.0
        photograph = next(photographs)
        while not self._closed.wait(max(0.0, begun + index / self.rate - time.monotonic())):
            at = index / self.rate
            if at >= since + self.seconds:
                photograph, since = next(photographs), at
            height, width, _ = photograph.image.shape
            rows, columns = window(at, height, width, self.share)
            image = np.ascontiguousarray(photograph.image[rows, columns])
            yield Frame(image, index, time.monotonic(), f"{photograph.name}-{index}")
            due = math.ceil((time.monotonic() - begun) * self.rate)
            self.dropped += max(0, due - index - 1)
            index = max(index + 1, due)

    def _photographs(self) -> Iterator[Frame]:
        """Each in turn, again and again. SplitrtError if none of them can be read."""
        while True:
            found = False
            for photograph in self._pictures:
                found = True
                yield photograph
            if not found:
                raise SplitrtError(
                    f"no picture of {len(self._pictures)} can be read: "
                    f"{', '.join(self._pictures.skipped[:3])}\nhelp: wanted is a photograph"
                )


def window(seconds: float, height: int, width: int, share: float) -> tuple[slice, slice]:
    """Rows and columns that are seen after so many seconds: to and fro, slow at the edges."""
    rows, columns = max(1, round(share * height)), max(1, round(share * width))
    down = (1 - math.cos(2 * math.pi * seconds / DOWN_PERIOD)) / 2
    right = (1 - math.cos(2 * math.pi * seconds / SIDE_PERIOD)) / 2
    top, left = round(down * (height - rows)), round(right * (width - columns))
    return slice(top, top + rows), slice(left, left + columns)
