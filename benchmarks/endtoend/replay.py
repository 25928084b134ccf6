"""One policy on one device and one link, event by event on a virtual clock."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.endtoend.policies import Policy, Step
from benchmarks.endtoend.table import Table
from benchmarks.link.replay import BEAT, TICKS
from benchmarks.link.scene import HEADERS, PERIOD, Scene, Uplink
from splitrt.core import forecast
from splitrt.core.forecast import ENVELOPE

MARGIN = 0.002  # seconds before the deadline at which the exit stands in
PATIENCE = 10.0  # seconds: an answer that comes later, or never, counts as this late
WIRE = HEADERS - ENVELOPE  # bytes of gRPC, TCP and IP around a message


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a device reached, over all frames of a scene.

    p50_ms, p95_ms: from capture to the answer that is used, at most `PATIENCE`.  hit: share of
    frames with an answer by the deadline, whoever gave it.  cloud: share that the server answered
    by then.  accuracy: right by the deadline, of all frames; None without a model.  bytes: up the
    link, a frame.  mj: millijoules of computing and sending, a frame.
    """

    p50_ms: float
    p95_ms: float
    hit: float
    cloud: float
    accuracy: float | None
    bytes: float
    mj: float


@dataclass(slots=True)
class End:
    """How a frame ended: seconds after capture, and the plan that answered."""

    after: float = PATIENCE
    plan: str | None = None
    cloud: bool = False


@dataclass(slots=True)
class Device:
    """What the device is at: whether it computes, and the newest frame that waits for it."""

    busy: bool = False
    waiting: int | None = None
    seconds: float = 0.0  # of computing so far
    ends: list[End] = field(default_factory=list)


def replay(scene: Scene, table: Table, policy: Policy, *, seed: int = 0) -> Outcome:
    """Every frame of the scene, ten a second; the device computes one at a time.

    A frame that is captured while the device computes waits; the next one takes its place.
    """
    run = _Run(scene, table, policy, seed)
    for tick in range(TICKS * scene.frames):
        now, frame = tick * PERIOD / TICKS, tick // TICKS
        run.tick(now, frame)
        if tick % TICKS == 0:
            run.capture(now, frame)
    run.events_until(math.inf)
    return run.outcome()


class _Run:
    """The uplink, what is still to happen, and how each frame ended."""

    def __init__(self, scene: Scene, table: Table, policy: Policy, seed: int) -> None:
        self.scene, self.table, self.policy = scene, table, policy
        self.uplink, self.random = Uplink(scene.trace, lossy=scene.lossy), random.Random(seed)
        self.order = itertools.count()
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.device = Device(ends=[End() for _ in range(scene.frames)])
        self.bytes, self.connection = 0.0, 0

    def tick(self, now: float, frame: int) -> None:
        """All that has happened up to now; then the link's timer."""
        self.events_until(now)
        if self.policy.broke(now):
            self.uplink.reopen(now)
            self.connection += 1
        if self.policy.beat(now, self.random.random()):
            self.bytes += BEAT
            back = self.uplink.put(now, BEAT) + float(self.scene.rtts[frame])
            self._later(back, lambda at: self.policy.ponged(at - now, at))

    def events_until(self, now: float) -> None:
        while self.events and self.events[0][0] <= now:
            at, _, happen = heapq.heappop(self.events)
            happen(at)

    def capture(self, now: float, frame: int) -> None:
        self.device.waiting = frame
        if not self.device.busy:
            self._begin(now)

    def outcome(self) -> Outcome:
        """The ends as shares and quantiles."""
        ends, deadline = self.device.ends, self.scene.deadline
        after = np.array([end.after for end in ends])
        hits = after <= deadline
        right = [
            end.plan is not None and self.table.right(end.plan, frame)
            for frame, end in enumerate(ends)
        ]
        radio = forecast.sending(self.table.device, self.scene.trace)
        joules = self.table.watts * self.device.seconds + 1e-6 * radio * self.bytes
        return Outcome(
            p50_ms=1000 * float(np.percentile(after, 50, method="inverted_cdf")),
            p95_ms=1000 * float(np.percentile(after, 95, method="inverted_cdf")),
            hit=float(hits.mean()),
            cloud=float((hits & [end.cloud for end in ends]).mean()),
            accuracy=None if self.table.records is None else float((hits & right).mean()),
            bytes=self.bytes / len(ends),
            mj=1000 * joules / len(ends),
        )

    def _begin(self, now: float) -> None:
        """The newest frame is decided; what it needs first begins to run."""
        frame, self.device.waiting = self.device.waiting, None
        if frame is None:
            return
        left = frame * PERIOD + self.scene.deadline - now
        step = self.policy.begin(frame, left, now, self.random.random())
        if step.option is None and step.exit is None:
            return
        self.device.busy = True
        self.device.seconds += step.seconds
        self._later(now + step.seconds, lambda at: self._ran(frame, step, at))

    def _ran(self, frame: int, step: Step, now: float) -> None:
        """The head has run: answered here, or on its way; the next may begin."""
        self.device.busy = False
        stays, option = self.policy.stays(frame, step), step.option
        stand = frame * PERIOD + self.scene.deadline - MARGIN
        if stays:
            self._end(frame, step.exit, now)
        if option is not None and now < stand and self.policy.ready() and (step.probe or not stays):
            self._send(frame, step, now)
            if step.exit is not None:
                self._later(stand, lambda at: self._end(frame, step.exit, at))
        elif step.exit is not None:
            self._end(frame, step.exit, now)
        self._begin(now)

    def _send(self, frame: int, step: Step, now: float) -> None:
        size, server = self.table.sent(step.option, frame), float(self.scene.servers[frame])
        self.policy.sent(frame, size, now)
        self.bytes += size + WIRE
        back = self.uplink.put(now, size + WIRE) + float(self.scene.rtts[frame]) + server
        connection = self.connection

        def answered(at: float) -> None:
            if connection == self.connection:
                self.policy.answered(frame, at, server)
                self._end(frame, step.option.name, at, cloud=True)

        self._later(back, answered)

    def _end(self, frame: int, plan: str | None, now: float, *, cloud: bool = False) -> None:
        """The first answer is the frame's."""
        end = self.device.ends[frame]
        if end.plan is None:
            end.after, end.plan, end.cloud = min(PATIENCE, now - frame * PERIOD), plan, cloud

    def _later(self, at: float, happen: Callable[[float], None]) -> None:
        if at < math.inf:
            heapq.heappush(self.events, (at, next(self.order), happen))
