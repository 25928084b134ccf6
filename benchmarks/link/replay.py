"""One policy on one scene, event by event: what it reached, what it sent."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.link.policies import Policy
from benchmarks.link.scene import PERIOD, Scene, Uplink
from splitrt.core.control import Decision
from splitrt.core.plan import Option

TICKS = 4  # looks at the clock a frame
BEAT = 80  # bytes of a heartbeat with its headers


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy reached: accuracy, the mean over all frames; bytes a second.

    sent, hit, probes: shares of all frames; what was sent and did not hit came late or never.
    switches: of the plan, a minute.
    """

    accuracy: float
    sent: float
    hit: float
    probes: float
    bytes: float
    switches: float


def replay(scene: Scene, policy: Policy, *, hedged: bool = True, seed: int = 0) -> Outcome:
    """Every frame of the scene; a late one counts as the device's answer if hedged, else as none.

    A probe is always hedged, and the better of its two answers counts.
    """
    run = _Run(scene, policy, hedged, seed)
    for tick in range(TICKS * scene.frames):
        run.tick(tick * PERIOD / TICKS, tick // TICKS)
        if tick % TICKS == 0:
            run.capture(tick * PERIOD / TICKS, tick // TICKS)
    return run.outcome()


class _Run:
    """The uplink, what is still to happen, and what was counted."""

    def __init__(self, scene: Scene, policy: Policy, hedged: bool, seed: int) -> None:
        self.scene, self.policy, self.hedged = scene, policy, hedged
        self.uplink, self.random = Uplink(scene.trace, lossy=scene.lossy), random.Random(seed)
        self.order = itertools.count()
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.right = self.bytes = 0.0
        self.sent = self.hit = self.probes = 0
        self.plans: list[str | None] = []

    def tick(self, now: float, frame: int) -> None:
        """Answers up to now, in order; then the timer's work."""
        while self.events and self.events[0][0] <= now:
            at, _, happen = heapq.heappop(self.events)
            happen(at)
        if self.policy.broke(now):
            self.uplink.reopen(now)
            self.events = []
        if self.policy.beat(now, self.random.random()):
            self.bytes += BEAT
            back = self.uplink.put(now, BEAT) + float(self.scene.rtts[frame])
            self._later(back, lambda at: self.policy.ponged(at - now, at))

    def capture(self, now: float, frame: int) -> None:
        """A frame is decided; its head begins."""
        decision = self.policy.decide(now, self.random.random())
        option, sureness = decision.option, float(self.scene.sureness[frame])
        self.plans.append(option.name if option else None)
        if option is None:
            self.right += self.scene.table.here(sureness)
            return
        if self.hedged or decision.probe:
            self.right += self.scene.table.here(sureness, option)
        self._later(now + option.head, lambda at: self._ran(frame, decision, option, at))

    def outcome(self) -> Outcome:
        """The counts as shares and rates."""
        frames = self.scene.frames
        seconds = frames * PERIOD
        changes = sum(a != b for a, b in itertools.pairwise(self.plans))
        return Outcome(
            accuracy=self.right / frames,
            sent=self.sent / frames,
            hit=self.hit / frames,
            probes=self.probes / frames,
            bytes=self.bytes / seconds,
            switches=changes / (seconds / 60),
        )

    def _ran(self, frame: int, decision: Decision, option: Option, now: float) -> None:
        """The head has run: the frame stays, or joins the queue."""
        scene, sureness = self.scene, float(self.scene.sureness[frame])
        if self.policy.stays(option, decision, sureness) and not decision.probe:
            return
        server = float(scene.servers[frame])
        self.sent += 1
        self.probes += decision.probe
        self.policy.sent(frame, option, now)
        self.bytes += option.bytes
        back = self.uplink.put(now, option.bytes) + float(scene.rtts[frame]) + server
        self._later(back, lambda at: self.policy.answered(frame, option, at, at - now, server))
        if back - frame * PERIOD > scene.deadline:
            return
        self.hit += 1
        there, stands = scene.table.there(sureness, option), self.hedged or decision.probe
        gain = there - (scene.table.here(sureness, option) if stands else 0.0)
        self.right += max(gain, 0.0) if decision.probe else gain

    def _later(self, at: float, happen: Callable[[float], None]) -> None:
        if at < math.inf:
            heapq.heappush(self.events, (at, next(self.order), happen))
