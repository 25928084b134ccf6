"""One direction of a link, on any clock: bytes wait, cross at the link's rate, and land later.

Time is passed in, so a minute of a link can be tried in a moment.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Generic, TypeVar

from splitrt.core.links import STEP, Trace

T = TypeVar("T")

GRAIN = 0.001  # seconds of the link that a piece should take
LEAST = 1400  # bytes of a piece, as a packet has
BREATH = 0.005  # seconds that a queue holds at least, for clocks that wake late
LARGEST = 16 << 20  # bytes inside, where neither rate nor queue set a limit
DRAW = 0.02  # seconds that a jitter holds: were it each piece's, the order would keep the worst
NOTHING = 1e-6  # bytes: rounding


class Way(Generic[T]):
    """A queue, a rate and a delay in a row; items come out in the order in which they went in.

    trace: Mbit/s over time, from its beginning when it is set, again and again; None: no limit.
    delay: seconds from crossing to landing.  jitter: seconds that come on top, 0 to so many.
    queue: bytes that wait before `full` says so; what is put in after that waits all the same.
    held: nothing crosses, nothing is lost.
    """

    def __init__(
        self, *, trace: Trace | None = None, delay: float = 0.0, jitter: float = 0.0, queue: int
    ) -> None:
        self.trace, self.delay, self.jitter, self.queue = trace, delay, jitter, queue
        self.waiting = self.flying = 0  # bytes before and after the crossing
        self._held = False
        self._queue: deque[tuple[int, T]] = deque()
        self._flight: deque[tuple[float, int, T]] = deque()
        self._clock = self._began = 0.0
        self._left = 0.0  # bytes of the first in the queue that have not crossed
        self._random = random.Random(0)
        self._drawn, self._extra, self._last = -math.inf, 0.0, 0.0

    @property
    def held(self) -> bool:
        """Whether nothing crosses now."""
        return self._held

    @property
    def room(self) -> int:
        """Bytes that may still be put in before it is full."""
        limit = self.queue
        if self.trace is not None:
            limit = max(limit, round(BREATH * self.mbps * 125_000))
        return max(0, min(limit - self.waiting, LARGEST - self.waiting - self.flying))

    @property
    def mbps(self) -> float:
        """The rate at the end of what has been carried so far."""
        if self._held:
            return 0.0
        return math.inf if self.trace is None else self._step(self.trace)[0]

    @property
    def grain(self) -> int:
        """Bytes that a piece should have: larger ones would land in lumps."""
        rate = self.mbps * 125_000
        return LARGEST if math.isinf(rate) else max(LEAST, round(GRAIN * rate))

    def hold(self, now: float, held: bool) -> None:
        """Stop crossing, or go on."""
        self._advance(now)
        self._held = held

    def reshape(self, now: float, trace: Trace | None) -> None:
        """Another rate from now on; what has crossed by then has crossed."""
        self._advance(now)
        self.trace, self._began = trace, now

    def put(self, now: float, item: T, size: int) -> None:
        """Join the queue. An item of no bytes keeps its place among the others."""
        self._advance(now)
        if not self._queue:
            self._left = size
        self._queue.append((size, item))
        self.waiting += size
        self._advance(now)

    def take(self, now: float) -> list[T]:
        """What has landed by now."""
        self._advance(now)
        landed = []
        while self._flight and self._flight[0][0] <= now:
            _, size, item = self._flight.popleft()
            self.flying -= size
            landed.append(item)
        return landed

    def due(self) -> float:
        """When it is worth to `take` again; infinity: not before something is put or set."""
        lands = self._flight[0][0] if self._flight else math.inf
        return min(lands, self._crosses())

    def _crosses(self) -> float:
        """When the first in the queue will have crossed, or the rate changes."""
        if not self._queue or self._held:
            return math.inf
        if self.trace is None or self._left <= 0:
            return self._clock
        mbps, end = self._step(self.trace)
        return min(end, self._clock + self._left / (mbps * 125_000)) if mbps else end

    def _advance(self, now: float) -> None:
        """Let the queue cross until now."""
        while self._queue and not self._held:
            self._carry(now)
            if self._left > 0:
                break
            size, item = self._queue.popleft()
            self.waiting -= size
            self.flying += size
            self._flight.append((self._landing(self._clock), size, item))
            self._left = self._queue[0][0] if self._queue else 0.0
        self._clock = max(self._clock, now)

    def _carry(self, now: float) -> None:
        """Carry the first in the queue until it has crossed or the clock says now."""
        if self.trace is None:
            self._left = 0.0
        while self._left > 0 and self._clock < now and self.trace is not None:
            mbps, end = self._step(self.trace)
            until = min(now, end)
            carried = mbps * 125_000 * (until - self._clock)
            if carried >= self._left - NOTHING:
                self._clock += min(self._left / (mbps * 125_000), until - self._clock)
                self._left = 0.0
            else:
                self._clock, self._left = until, self._left - carried

    def _step(self, trace: Trace) -> tuple[float, float]:
        """(Mbit/s at the clock, until when)."""
        index = int((self._clock - self._began) / STEP)
        end = self._began + (index + 1) * STEP
        if end - self._clock < 1e-9:  # rounding: the clock stands at the end of the step before
            index, end = index + 1, end + STEP
        return float(trace.mbps[index % len(trace.mbps)]), end

    def _landing(self, crossed: float) -> float:
        if self.jitter and crossed - self._drawn >= DRAW:
            self._drawn, self._extra = crossed, self._random.uniform(0, self.jitter)
        extra = self._extra if self.jitter else 0.0
        self._last = max(self._last, crossed + self.delay + extra)
        return self._last
