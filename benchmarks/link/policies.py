"""Who decides in a replay: the controller, and the simpler rules it is compared with."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from benchmarks.link.scene import SERVER, Scene, within
from splitrt.core import control
from splitrt.core.control import Decision, Rules
from splitrt.core.gate import Verdict
from splitrt.core.plan import Option


class Policy:
    """Answers everything on the device; the others change what they must."""

    def __init__(self, scene: Scene) -> None:
        self.options, self.local = scene.table.options, scene.table.local
        self.deadline, self.rtt = scene.deadline, scene.trace.rtt

    def decide(self, now: float, chance: float) -> Decision:
        option = self.pick()
        return Decision("send", "", option) if option else Decision("local", "")

    def pick(self) -> Option | None:
        return None

    def stays(self, option: Option, decision: Decision, sureness: float) -> bool:
        """Whether the exit's answer is good enough, now that it is there; see `Scene.sureness`."""
        return False

    def sent(self, seq: int, option: Option, now: float) -> None: ...

    def answered(self, seq: int, option: Option, now: float, took: float, server: float) -> None:
        """`took`: from sending to the answer."""

    def broke(self, now: float) -> bool:
        """Whether the channel is thrown away now, with all that waits in it."""
        return False

    def beat(self, now: float, chance: float) -> bool:
        """Whether a heartbeat goes out now."""
        return False

    def ponged(self, took: float, now: float) -> None: ...


class Static(Policy):
    """One plan whatever happens."""

    def __init__(self, scene: Scene, option: Option) -> None:
        super().__init__(scene)
        self._option = option

    def pick(self) -> Option | None:
        return self._option


class Neurosurgeon(Policy):
    """The most accurate plan whose mean latency meets the deadline, by a smoothed rate.

    After Kang et al. 2017, with a try every two seconds: otherwise it would never come back.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._rate, self._server, self._frames = 0.5e6 / 8, SERVER, 0

    def answered(self, seq: int, option: Option, now: float, took: float, server: float) -> None:
        rate = min(option.bytes / max(took - self.rtt - server, 1e-3), 1e8)
        self._rate = 0.7 * self._rate + 0.3 * rate
        self._server = 0.8 * self._server + 0.2 * server

    def pick(self) -> Option | None:
        self._frames += 1
        fixed = self.rtt + self._server
        fit = [o for o in self.options if o.head + o.bytes / self._rate + fixed <= self.deadline]
        fit = [option for option in fit if option.accuracy > self.local.accuracy]
        if fit:
            return max(fit, key=lambda option: option.accuracy)
        return min(self.options, key=lambda o: o.bytes) if self._frames % 20 == 1 else None


class Bandit(Policy):
    """Delay as a linear function of bytes, optimistic by its uncertainty, with forced tries.

    After Zhang et al. 2021 (ANS, muLinUCB), choosing by accuracy within the deadline.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._a, self._b = np.eye(2), np.zeros(2)
        self._frames, self._epoch = 0, 200

    def answered(self, seq: int, option: Option, now: float, took: float, server: float) -> None:
        x = self._x(option)
        self._a += np.outer(x, x)
        self._b += x * min(took, 2.0)

    def pick(self) -> Option | None:
        self._frames += 1
        if self._frames > self._epoch:
            self._epoch, self._frames = 2 * self._epoch, 0
        inverse = np.linalg.inv(self._a)
        theta = inverse @ self._b
        delays = [self._low(option, theta, inverse) for option in self.options]
        fit = [o for o, delay in zip(self.options, delays, strict=True) if delay <= self.deadline]
        if fit:
            return max(fit, key=lambda option: option.accuracy)
        forced = self._frames % math.ceil(self._epoch**0.25) == 0
        return self.options[int(np.argmin(delays))] if forced else None

    def _low(self, option: Option, theta: np.ndarray, inverse: np.ndarray) -> float:
        x = self._x(option)
        return option.head + float(x @ theta) - 0.05 * math.sqrt(float(x @ inverse @ x))

    @staticmethod
    def _x(option: Option) -> np.ndarray:
        return np.array([1.0, option.bytes / 1e4])


class Controlled(Policy):
    """The controller. risk: without it the mean rate decides, as if it were certain."""

    def __init__(
        self, scene: Scene, *, rules: Rules = Rules(), risk: bool = True, hedged: bool = True
    ) -> None:
        super().__init__(scene)
        self.local = replace(self.local, hedged=hedged)
        self._risk = risk
        self.state = control.start(self.options, rules=rules, rtt=self.rtt, server=SERVER)
        self._up = True

    def decide(self, now: float, chance: float) -> Decision:
        decision, self.state = control.decide(
            self.state, self.options, self.local, left=self.deadline, now=now, chance=chance
        )
        return decision

    def stays(self, option: Option, decision: Decision, sureness: float) -> bool:
        if not option.bins or not self.local.hedged:
            return False
        begin = (0.0, *option.edges)[within(option.bins, sureness)]
        return not control.confirms(self.state, option, decision.hit, Verdict(False, begin))

    def sent(self, seq: int, option: Option, now: float) -> None:
        if self.state.up:
            self.state = control.sent(self.state, seq, option.bytes, now)

    def answered(self, seq: int, option: Option, now: float, took: float, server: float) -> None:
        self.state = control.answered(self.state, seq, now, server=server)
        if not self._risk:
            link = replace(self.state.link, var=0.0, residuals=())
            self.state = replace(self.state, link=link)

    def broke(self, now: float) -> bool:
        self.state = control.silent(self.state, now)
        fell, self._up = self._up and not self.state.up, self.state.up
        return fell

    def beat(self, now: float, chance: float) -> bool:
        due, self.state = control.beat(self.state, now, chance)
        return due

    def ponged(self, took: float, now: float) -> None:
        self.state = control.ponged(self.state, took, now)
        self._up = True
