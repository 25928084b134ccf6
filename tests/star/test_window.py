"""A window over blocks: the next ones are there, never too many, and errors are told where due."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrt.errors import ModelError
from splitrt.star.window import Window, staying

PATIENCE = 20.0  # seconds


class Library:
    """Loads blocks that count themselves."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.most = 0
        self.there: list[int] = []
        self.loaded: list[int] = []
        self.broken: set[int] = set()

    def load(self, place: int) -> Book:
        with self.lock:
            self.loaded.append(place)
        if place in self.broken:
            raise ModelError(f"block {place} is broken")
        return Book(self, place)


class Book:
    def __init__(self, library: Library, place: int) -> None:
        self.library, self.place = library, place
        with library.lock:
            library.there.append(place)
            library.most = max(library.most, len(library.there))

    def __del__(self) -> None:
        with self.library.lock:
            self.library.there.remove(self.place)


def read(window: Window[Book], place: int) -> None:
    assert window.take(place).place == place
    window.done(place)


def until(true) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("loaders", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, 10, 40])
def test_blocks_come_round_after_round_and_never_more_than_the_window(size, loaders):
    library = Library()
    with Window(10, library.load, size, loaders=loaders) as window:
        for place in [*range(10)] * 4:
            read(window, place)
    assert library.most <= min(size, 10) and library.there == []
    assert size < 10 or sorted(library.loaded) == [*range(10)]


def test_what_comes_next_is_loaded_while_nobody_asks():
    library = Library()
    with Window(10, library.load, 3) as window:
        read(window, 8)
        until(lambda: sorted(library.there) == [0, 1, 9])
        waited = window.loading
        read(window, 9)
        read(window, 0)
        assert window.loading == waited


def test_most_of_a_large_window_stays():
    library = Library()
    with Window(10, library.load, 7) as window:
        for place in [*range(10)] * 5:
            read(window, place)
        until(lambda: len(library.there) == 7)
        stay = staying(10, 7)
        assert len(stay) == 4 and all(library.loaded.count(place) == 1 for place in stay)
        assert all(library.loaded.count(place) >= 5 for place in set(range(10)) - stay)


@pytest.mark.parametrize("loaders", [1, 3])
def test_a_text_that_ends_early_begins_anew(loaders):
    library = Library()
    with Window(10, library.load, 4, loaders=loaders) as window:
        for place in (0, 1, 2, 7, 0, 1, 5, 5, 4, 9, 0):
            read(window, place)
    assert library.most <= 4


def test_an_error_is_told_to_who_needs_that_block_and_tried_again():
    library = Library()
    library.broken = {2}
    with Window(5, library.load, 3) as window:
        until(lambda: 2 in library.loaded)
        read(window, 0)
        read(window, 1)
        for _ in range(2):
            with pytest.raises(ModelError, match="block 2 is broken"):
                window.take(2)
        library.broken = set()
        until(lambda: not isinstance(taken(window, 2), ModelError))
        window.done(2)
        read(window, 3)


def taken(window: Window[Book], place: int) -> Book | ModelError:
    try:
        return window.take(place)
    except ModelError as error:
        return error


def test_closing_does_not_wait_for_a_reader():
    library = Library()
    Window(5, library.load, 2).close()
    assert library.there == []


@given(st.integers(1, 200), st.data())
@settings(deadline=None)
def test_a_larger_window_keeps_what_a_smaller_one_does(count, data):
    size = data.draw(st.integers(1, count))
    small, large = staying(count, size), staying(count, size + 1)
    assert small <= large <= set(range(count))
    assert len(large) == count or len(small) == max(0, size - 3)
