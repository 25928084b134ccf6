"""The controller at work: its clock, its dice and its lock; what the link hears goes in."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from splitrt.core import budget, control
from splitrt.core.budget import Budget
from splitrt.core.control import Decision
from splitrt.core.forecast import option
from splitrt.core.gate import Verdict, unsure
from splitrt.core.manifest import Manifest, Plan, Width
from splitrt.core.pareto import unbeaten
from splitrt.core.plan import Local, Option, Price, alike
from splitrt.errors import SplitrtError
from splitrt.wire import tail_pb2 as wire

LONGEST_HOLD = 10.0  # seconds for which a server's word keeps frames back


@dataclass(frozen=True, slots=True)
class Caps:
    """What a device may spend a second on average, beside its frames' deadlines; None: all.

    bytes: sent.  joules: by heads and by sending, as far as `watts` and `uj_per_byte` tell: the
    device's power while a head runs, above idle, and the radio's microjoules.
    """

    bytes: float | None = None
    joules: float | None = None
    watts: float = 0.0
    uj_per_byte: float = 0.0


class Pilot:
    """Chooses each frame's plan by what the link, the server and the head have lately taken.

    seconds: of each width's head, by its name. patience: of a frame; the link is not given up
    before that. The state is that of `core.control`; every call
    takes the lock, so that the link's threads can tell what they hear.
    """

    def __init__(
        self,
        manifest: Manifest,
        seconds: Mapping[str, float],
        *,
        caps: Caps = Caps(),
        patience: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.manifest = manifest
        self.options = options(manifest, seconds, caps)
        self._seconds, self._caps = dict(seconds), caps
        self._random, self._lock = random.Random(seed), threading.Lock()
        rules = replace(control.Rules(), silence=max(control.Rules().silence, patience))
        self._state = control.start(self.options, rules=rules)
        self._bytes = None if caps.bytes is None else Budget(caps.bytes)
        self._joules = None if caps.joules is None else Budget(caps.joules)
        self._widths = sorted(
            (width for width in manifest.widths if width.exit is not None),
            key=lambda width: -_accuracy(manifest.exit_plan(width)),
        )

    @property
    def state(self) -> control.State:
        """What is believed now."""
        with self._lock:
            return self._state

    def choose(self, left: float) -> Decision:
        """How a frame with so many seconds left should go, before its head has run."""
        local = self._local(left)
        now = time.monotonic()
        with self._lock:
            self._reprice(now)
            decision, self._state = control.decide(
                self._state,
                self.options,
                local,
                left=left,
                now=now,
                chance=self._random.random(),
                price=self.price,
            )
        return decision

    def here(self, left: float) -> Plan | None:
        """The best exit that there is time for; None without exits."""
        kappa = self.state.link.kappa
        fits = [w for w in self._widths if kappa * self._seconds[w.name] < left]
        chosen = fits[0] if fits else self._widths[-1] if self._widths else None
        return None if chosen is None else self.manifest.exit_plan(chosen)

    def confirms(self, decision: Decision, verdict: Verdict) -> bool:
        """Whether sending is still worth it, now that the exit is this sure of its own answer."""
        if decision.option is None:
            return False
        return control.confirms(self.state, decision.option, decision.hit, verdict, self.price)

    def _local(self, left: float) -> Local:
        """What the device would answer: comparable with what `options` say of the server."""
        soonest = min((self._seconds[one.name] for one in self._widths), default=0.0)
        here = self.here(left)
        if here is None:
            return Local(0.0, soonest, hedged=False)
        if self.options[0].bins:
            return Local(_accuracy(here), soonest)
        return Local(unsure(self._widths[0].exit), soonest)

    @property
    def price(self) -> Price:
        """What bytes and joules cost now."""
        return Price(
            0.0 if self._bytes is None else self._bytes.price,
            0.0 if self._joules is None else self._joules.price,
        )

    def sent(self, seq: int, size: int, at: float) -> None:
        """A frame is on its way."""
        with self._lock:
            self._state = control.sent(self._state, seq, size, at)
            if self._bytes is not None:
                self._bytes = budget.spent(self._bytes, size)
            if self._joules is not None:
                self._joules = budget.spent(self._joules, 1e-6 * self._caps.uj_per_byte * size)

    def ran(self, width: Width, seconds: float) -> None:
        """A head took so long."""
        with self._lock:
            self._state = control.ran(self._state, seconds, self._seconds[width.name])
            if self._joules is not None:
                self._joules = budget.spent(self._joules, self._caps.watts * seconds)

    def answered(self, seq: int, answer: wire.Answer, at: float) -> None:
        """An answer came, in time or late. Only one that says the server's time tells of the link.

        A frame that expired at the server is one too many, as where it was busy.
        """
        with self._lock:
            if answer.status in (wire.BUSY, wire.EXPIRED):
                wait = min(answer.retry_after_ms / 1000, LONGEST_HOLD)
                chance = self._random.random()
                self._state = control.refused(self._state, seq, wait, at, chance)
            elif answer.status == wire.OK:
                server = (answer.queue_us + answer.open_us + answer.compute_us) / 1e6
                self._state = control.answered(self._state, seq, at, server=server)
            else:
                self._state = control.gone(self._state, seq)

    def opened(self, took: float) -> None:
        """A connection is open, or a ping came back."""
        with self._lock:
            self._state = control.ponged(self._state, took, time.monotonic())

    def broke(self) -> None:
        """The connection is gone."""
        with self._lock:
            self._state = control.broken(self._state, time.monotonic())

    def silence(self) -> float:
        """Seconds without an answer after which the connection is given up."""
        rules, link = self._state.rules, self._state.link
        return max(rules.silence, rules.silence_rtts * link.rtt)

    def _reprice(self, now: float) -> None:
        if self._bytes is not None:
            self._bytes = budget.repriced(self._bytes, now)
        if self._joules is not None:
            self._joules = budget.repriced(self._joules, now)


def able(manifest: Manifest) -> bool:
    """Whether there is a record to choose by: bytes and accuracy of the default plan."""
    default = manifest.plan(manifest.default_plan)
    return default.place == "cloud" and None not in (default.bytes_mean, default.accuracy)


def _accuracy(plan: Plan | None) -> float:
    return 0.0 if plan is None else plan.accuracy or 0.0


def options(manifest: Manifest, seconds: Mapping[str, float], caps: Caps) -> list[Option]:
    """The cloud's plans that no other beats on this device, with bins if all of them have any."""
    found = [
        option(
            manifest,
            plan,
            seconds[manifest.width(plan).name],
            watts=caps.watts,
            uj_per_byte=caps.uj_per_byte,
        )
        for plan in manifest.plans
        if plan.place == "cloud" and None not in (plan.bytes_mean, plan.accuracy)
    ]
    if not found:
        raise SplitrtError(f"{manifest.name} has no record of its plans\nhelp: pin a plan")
    return alike(unbeaten(found))
