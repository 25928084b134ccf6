"""Some of many blocks at a time: a thread loads those that are needed next, and drops those behind.

TPI-LLM's sliding window over weights (Li et al. 2024), over a circle: after the last block comes
the first one of the next token. Since every block is needed once a token, most of a large window
stays loaded for good, and only the others come and go.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Set
from typing import Generic, TypeVar

T = TypeVar("T")
PASSING = 3  # of a window's blocks: one runs, one is ready, one is loaded
GOLDEN = 0.6180339887498949


def staying(count: int, size: int) -> set[int]:
    """Which of `count` places a window of `size` never drops: spread evenly, a larger one's more.

    By multiples of the golden ratio, whose fractions lie evenly however many they are (Knuth 1973).
    """
    order = sorted(range(count), key=lambda place: place * GOLDEN % 1)
    return set(order[: count if size >= count else max(0, size - PASSING)])


class Window(Generic[T]):
    """`load(place)` for places 0 to count - 1, at most `size` of them at any time.

    take(place) gives what was loaded there, and waits for it if it must; done(place) says that the
    next place comes. What `load` raises is raised by take(), once; the next take() tries anew.
    loaders: threads that load.  loading: seconds that take() waited so far.

        with Window(44, load, 6) as window:
            block = window.take(0)
    """

    def __init__(
        self, count: int, load: Callable[[int], T], size: int, *, loaders: int = 1
    ) -> None:
        self.loading = 0.0
        self._count, self._load, self._size = count, load, min(size, count)
        self._stay = staying(count, size)
        self._wanted = _wanted(count, self._stay, self._size - len(self._stay))
        self._coming: set[int] = set()  # being loaded
        self._leaving = 0  # being dropped
        self._loaded: dict[int, T] = {}
        self._place, self._closed = 0, False
        self._error: tuple[int, Exception] | None = None  # and the place that it is of
        self._change = threading.Condition()
        self._loaders = [
            threading.Thread(target=self._work, name="window", daemon=True) for _ in range(loaders)
        ]
        for one in self._loaders:
            one.start()

    def take(self, place: int) -> T:
        """What was loaded there; what lies behind it may go."""
        with self._change:
            self._place = place
            self._change.notify_all()
            if place not in self._loaded:
                start = time.perf_counter()
                self._change.wait_for(lambda: place in self._loaded or self._failed(place))
                self.loading += time.perf_counter() - start
            if place in self._loaded:
                return self._loaded[place]
            assert self._error is not None
            (_, error), self._error = self._error, None
            raise error

    def done(self, place: int) -> None:
        """That place will be needed last: the next one comes."""
        with self._change:
            self._place = (place + 1) % self._count
            self._change.notify_all()

    def close(self) -> None:
        """End the threads and drop everything; take() is not called any more."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        for one in self._loaders:
            one.join()
        self._loaded.clear()

    def __enter__(self) -> Window[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or self._next() is not None)
                place, behind = self._next(), self._behind()
                if self._closed or place is None:
                    return
                self._coming.add(place)
                self._leaving += len(behind)
            gone = len(behind)
            behind.clear()  # before the next one is loaded, and not on the caller's time
            self._loads(place, gone)

    def _loads(self, place: int, gone: int) -> None:
        """Load one, after so many were dropped."""
        with self._change:
            self._leaving -= gone
            self._change.notify_all()
        try:
            block = self._load(place)
        except Exception as error:  # whatever it is, take() raises it
            with self._change:
                self._error = place, error
                self._coming.discard(place)
                self._change.notify_all()
            return
        with self._change:
            self._loaded[place] = block
            self._coming.discard(place)
            self._change.notify_all()

    def _failed(self, place: int) -> bool:
        """Whether that place's error waits to be told; another's gives way to it."""
        if self._error is not None and self._error[0] != place:
            self._error = None
            self._change.notify_all()
        return self._error is not None

    def _next(self) -> int | None:
        """The nearest place that is wanted and not there, if there is room for it.

        None while an error waits to be told.
        """
        wanted = self._wanted[self._place]
        kept = sum(place in self._stay or place in wanted for place in self._loaded)
        if self._error is not None or kept + len(self._coming) + self._leaving >= self._size:
            return None
        there = self._coming.union(self._loaded)
        return next((place for place in wanted if place not in there), None)

    def _behind(self) -> list[T]:
        """What is loaded and not wanted any more, taken out."""
        wanted = self._stay.union(self._wanted[self._place])
        return [self._loaded.pop(place) for place in list(self._loaded) if place not in wanted]


def _wanted(count: int, stay: Set[int], most: int) -> list[list[int]]:
    """By the place that is needed now, which ones to have: it and what follows, the nearest first.

    `most` of them pass; what stays is loaded as it comes.
    """
    found = []
    for now in range(count):
        wanted, left = [], most
        for place in (*range(now, count), *range(now)):
            left -= place not in stay
            if left < 0:
                break
            wanted.append(place)
        found.append(wanted)
    return found
