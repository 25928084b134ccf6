"""How long a model's frames took and in what batches they ran, added up."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from splitrt.wire import tail_pb2 as wire

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(slots=True)
class Histogram:
    """How many values were at most each bound, and beyond the last; their sum."""

    bounds: Sequence[float] = SECONDS
    counts: list[float] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float, times: float = 1) -> None:
        """A value that was seen so often."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


@dataclass(slots=True)
class Batches:
    """What the frames of batches of one size took; each frame counts what its batch took."""

    frames: int = 0
    open_us: int = 0
    compute_us: int = 0


@dataclass(slots=True)
class Figures:
    """One model's frames since the server began.

    taken: bytes of payloads.  failed: frames whose status was not OK, and their seconds.  total:
    seconds from arrival to answer of the others, of which they waited in `queue`, and their batch
    took `open` to check and decompress and `compute` to run.  last: time.time().  codes: frames by
    their plan's codec, "" where the manifest has no such plan, and by their status.
    """

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    taken: int = 0
    failed: int = 0
    failed_s: float = 0.0
    last: float = 0.0
    total: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)
    open: Histogram = field(default_factory=Histogram)
    compute: Histogram = field(default_factory=Histogram)
    batches: dict[int, Batches] = field(default_factory=dict)

    def add(self, answer: wire.Answer, seconds: float, size: int, codec: str = "") -> None:
        """One frame's answer, that time after its payload of so many bytes came."""
        self.codes[codec, wire.Status.Name(answer.status)] += 1
        self.taken += size
        if answer.status != wire.OK:
            self.failed += 1
            self.failed_s += seconds
            return
        self.last = time.time()
        self.total.add(seconds)
        self.queue.add(answer.queue_us / 1e6)
        self.open.add(answer.open_us / 1e6)
        self.compute.add(answer.compute_us / 1e6)
        found = self.batches.setdefault(answer.batch, Batches())
        found.frames += 1
        found.open_us += answer.open_us
        found.compute_us += answer.compute_us

    @property
    def answered(self) -> int:
        """Frames whose status was OK."""
        return sum(found.frames for found in self.batches.values())

    @property
    def runs(self) -> int:
        """Batches that they ran in; one that several models shared counts for each by its part."""
        return round(sum(found.frames / size for size, found in self.batches.items()))

    @property
    def sizes(self) -> Histogram:
        """The batches by their frames."""
        found = Histogram(SIZES)
        for size, batches in self.batches.items():
            found.add(size, batches.frames / size)
        return found
