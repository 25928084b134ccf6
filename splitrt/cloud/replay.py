"""What a device sent lately, to learn from and to judge by: codes and the exit's logits, bounded.

Every fourth sample or so, drawn by a seed, is held out: nothing is learnt from it.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

import numpy as np

HELD = 0.25  # share that is held out
LARGEST = 1 << 20  # bytes of one device's samples


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """codes: uint8 [C, …] as they crossed.  logits: float32 [K] of the exit, without a revision."""

    codes: np.ndarray
    logits: np.ndarray

    @property
    def bytes(self) -> int:
        return self.codes.nbytes + self.logits.nbytes


class Replay:
    """The latest samples of one stream, at most `largest` bytes, in two parts.

    Part by part, as the oldest leave when new ones come: held out is a quarter of the room.
    """

    def __init__(self, *, largest: int = LARGEST, seed: int = 0) -> None:
        self.largest, self._random = largest, random.Random(seed)
        self.taught: deque[Sample] = deque()
        self.held: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        """Take a sample; the oldest ones of its part leave for it."""
        apart = self._random.random() < HELD
        part, room = (self.held, HELD) if apart else (self.taught, 1 - HELD)
        part.append(sample)
        while len(part) * sample.bytes > room * self.largest:
            part.popleft()

    def clear(self) -> None:
        """Forget: the stream is another now."""
        self.taught.clear()
        self.held.clear()

    @property
    def bytes(self) -> int:
        """That the samples take."""
        return sum(one.bytes for part in (self.taught, self.held) for one in part)

    def __len__(self) -> int:
        return len(self.taught) + len(self.held)
