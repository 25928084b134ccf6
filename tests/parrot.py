"""A speaker that says what it was taught: a Chat's interface, and no model behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from splitrt.core.sample import Sampling
from splitrt.core.spoken import Tally, Token

PLACES = ("cloud", "draft", "draft", "edge")


class Parrot:
    """taught: what it says after the ids of a session; given: what each answer was given."""

    def __init__(self, taught: Callable[[tuple[int, ...]], Sequence[int]], longest: int = 256):
        self.taught, self.longest = taught, longest
        self.sampling, self.tally = Sampling(), Tally()
        self.difference = None
        self.ids: tuple[int, ...] = ()
        self.given: list[list[int]] = []
        self.samplings: list[Sampling] = []
        self.cancelled = threading.Event()
        self.may = threading.Semaphore(1 << 30)  # tokens that it may say

    def truncate(self, n: int) -> None:
        self.ids = self.ids[:n]

    def answer(self, ids: Sequence[int], *, most: int = 200) -> Generator[Token, None, None]:
        assert len(ids) > 0
        self.cancelled.clear()
        self.given.append(list(ids))
        self.samplings.append(self.sampling)
        self.ids += tuple(ids)
        said, places = self.taught(self.ids), dict.fromkeys(PLACES, 0)
        self.tally = Tally()
        for place, token in enumerate(said[:most]):
            while not self.may.acquire(timeout=0.01):
                if self.cancelled.is_set():
                    return
            if self.cancelled.is_set():
                return
            where = PLACES[place % len(PLACES)]
            places[where] += 1
            self.ids += (token,)
            asked = places["cloud"]
            self.tally = replace(Tally(**places), requests=asked, up=100 * asked, seconds=1.0)
            yield Token(token, "", where, len(self.ids) - 1)

    def cancel(self) -> None:
        self.cancelled.set()
