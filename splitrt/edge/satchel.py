"""Samples on their way to a server that learns of them: few wait, fewer leave, none is missed.

No thread and no lock; times are seconds of one clock, given by whoever calls.
"""

from __future__ import annotations

from collections import deque

import numpy as np

KEPT = 16  # samples that wait; a newer one takes the place of the oldest
FASTEST = 20.0  # samples a second, whatever the server would take: frames share the link
SILENCE = 10.0  # seconds without a Taken, after which a call is given up


class Satchel:
    """Codes [C, …] and logits [K] that wait, and how many more the server takes when.

    sent, lost: samples that left, and whose place newer ones took, in all calls.
    """

    def __init__(self) -> None:
        self.sent = self.lost = 0
        self._waiting: deque[tuple[np.ndarray, np.ndarray]] = deque()
        self._seq = self._taken = 0  # of this call
        self._gap, self._room = 1.0, 0
        self._soonest = self._heard = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def open(self, rate: int, unread: int) -> None:
        """A call begins; the server said what it takes."""
        self._gap, self._room = 1 / min(FASTEST, max(1, rate)), max(1, unread)
        self._seq = self._taken = 0

    def put(self, codes: np.ndarray, logits: np.ndarray) -> None:
        """One more; the arrays stay as they are."""
        if len(self._waiting) >= KEPT:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append((codes, logits))

    def taken(self, seq: int, now: float) -> None:
        """The server has all up to that one; a number that was not sent says no more than that."""
        self._taken, self._heard = max(self._taken, min(seq, self._seq)), now

    def next(self, now: float) -> tuple[int, np.ndarray, np.ndarray] | None:
        """Number, codes and logits of what leaves now, if anything may."""
        if not self._waiting or self._full or now < self._soonest:
            return None
        if self._seq == self._taken:
            self._heard = now
        self._seq += 1
        self.sent += 1
        self._soonest = now + self._gap
        return self._seq, *self._waiting.popleft()

    def silent(self, now: float) -> bool:
        """Whether the server has owed a Taken for too long."""
        return self._seq > self._taken and now - self._heard > SILENCE

    def wait(self, now: float) -> float | None:
        """Seconds after which to look again; None: not before something comes."""
        times = [self._heard + SILENCE] if self._seq > self._taken else []
        times += [self._soonest] if self._waiting and not self._full else []
        return max(0.001, min(times) - now) if times else None

    @property
    def _full(self) -> bool:
        return self._seq - self._taken >= self._room
