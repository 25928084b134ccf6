"""What the answers say of the link: its round trip, its rate and spread, the server's time.

Time on the way is taken as R + (bytes + bytes ahead) / rate, with ln(rate) normal about a mean that
drifts. Times are seconds of one clock, rates bytes a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

WINDOW = 12  # residuals kept
HALF_LIFE = 0.5  # seconds between answers after which the old mean counts half
STEPS = (0.04, 0.6)  # least and largest step towards an answer
FLOORS, FLOOR_WINDOW, FLOOR_QUANTILE = 256, 15.0, 0.15  # at most so many, over so many seconds
FEW = 5  # floors, or server times, below which the first guess stands
FASTEST = 0.003  # seconds on the way that can still be told from the round trip
HIGHEST = 2.5e7  # bytes a second: what is faster needs no estimate
TELLING = 400  # bytes: a smaller message can only say that the rate is higher
HALF_TOLD = 2000  # bytes that count half as much as a very large message
PATIENCE = 0.02  # seconds that an answer may be overdue before it counts as a slow link
LEAST_BYTES = 200  # what even the smallest message and its headers take
SERVERS, SERVER_QUANTILE, SERVER_HALF_LIFE = 64, 0.05, 1.0
KAPPA = (0.1, 10.0)  # how far a measured head may be from its profile
CAUTIOUS = 0.5  # least variance after an outage


@dataclass(frozen=True, slots=True)
class Observation:
    """One answer.

    bytes: of the message.  ahead: those before it in the queue when it was sent.  took: seconds
    from sending to the answer.  server: seconds of it in the server's queue and tail.
    """

    bytes: float
    ahead: float
    took: float
    server: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is believed of the way and the server; new beliefs are new values.

    mu, var: of ln(rate).  residuals: the last `WINDOW` surprises, in ln(rate).  rtt: seconds.
    server: seconds, smoothed; quiet: when it is idle.  kappa: measured over profiled head seconds.
    at: time of the last answer.
    """

    mu: float
    rtt: float
    server: float
    quiet: float
    var: float = 1.0
    kappa: float = 1.0
    residuals: tuple[float, ...] = ()
    floors: tuple[tuple[float, float], ...] = ()  # (when, seconds without the bytes' share)
    servers: tuple[float, ...] = ()
    at: float = -math.inf


def prior(mbps: float, rtt: float, server: float) -> Estimate:
    """Before the first answer: a rate in Mbit/s, a round trip and the server's seconds."""
    return Estimate(math.log(mbps * 1e6 / 8), rtt, server, server)


def learned(old: Estimate, seen: Observation, now: float) -> Estimate:
    """The estimate after one answer of the server."""
    kept = (*old.servers, seen.server)[-SERVERS:]
    quiet = quantile(kept, SERVER_QUANTILE) if len(kept) >= FEW else min(old.quiet, seen.server)
    served = replace(old, server=0.7 * old.server + 0.3 * seen.server, quiet=quiet, servers=kept)
    net = max(seen.took - seen.server, 1e-6)
    crossed = _floored(served, seen.bytes + seen.ahead, net, now)
    rate = min((seen.bytes + seen.ahead) / max(net - crossed.rtt, FASTEST), HIGHEST)
    if seen.bytes < TELLING and math.log(rate) <= old.mu:
        return replace(crossed, at=now)
    return replace(_rated(crossed, seen.bytes, math.log(rate) - old.mu, now), at=now)


def ponged(old: Estimate, took: float, now: float) -> Estimate:
    """The estimate after a heartbeat: too small for the rate, good for the round trip."""
    return replace(_floored(old, 0.0, max(took, 1e-6), now), at=now)


def ran(old: Estimate, measured: float, profiled: float) -> Estimate:
    """After a head took `measured` seconds and its profile had said `profiled`."""
    ratio = min(max(measured / max(profiled, 1e-6), KAPPA[0]), KAPPA[1])
    return replace(old, kappa=0.8 * old.kappa + 0.2 * ratio)


def cautious(old: Estimate, rate: float) -> Estimate:
    """After an outage: at most that rate (bytes a second), widely spread, surprises forgotten."""
    return replace(old, mu=min(old.mu, math.log(rate)), var=max(old.var, CAUTIOUS), residuals=())


def censored(estimate: Estimate, bytes: float, age: float, patience: float = PATIENCE) -> float:
    """ln(rate) given that so many bytes, sent `age` seconds ago, are not answered yet.

    Only once the answer is `patience` seconds overdue: until then it is the round trip's noise.
    """
    over = age - estimate.rtt - estimate.server
    if over <= patience:
        return estimate.mu
    return min(estimate.mu, math.log(max(bytes, LEAST_BYTES) / over))


def serving(estimate: Estimate, idle: float) -> float:
    """Seconds the server will take, `idle` seconds after it was last asked."""
    fade = 2.0 ** (-max(idle, 0.0) / SERVER_HALF_LIFE)
    return estimate.quiet + (estimate.server - estimate.quiet) * fade


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which about that share lies."""
    return sorted(values)[int(share * (len(values) - 1))]


def _floored(old: Estimate, bytes: float, net: float, now: float) -> Estimate:
    """A low quantile of the times without their bytes: queues lengthen a time, nothing shortens."""
    floor = net - min(bytes / (2 * math.exp(old.mu)), net / 2)
    recent = (*(pair for pair in old.floors if pair[0] >= now - FLOOR_WINDOW), (now, floor))
    recent = recent[-FLOORS:]
    if len(recent) < FEW:
        return replace(old, floors=recent)
    return replace(old, floors=recent, rtt=quantile([pair[1] for pair in recent], FLOOR_QUANTILE))


def _rated(old: Estimate, bytes: float, surprise: float, now: float) -> Estimate:
    """The mean and the spread take a step: larger after a pause, and for a larger message."""
    faded = 1 - 2 ** (-min(now - old.at, 2.0) / HALF_LIFE)
    step = faded * (0.5 + bytes / (bytes + HALF_TOLD))
    step = min(max(step, STEPS[0]), STEPS[1])
    return replace(
        old,
        mu=old.mu + step * surprise,
        var=(1 - step) * (old.var + step * surprise * surprise),
        residuals=(*old.residuals, surprise)[-WINDOW:],
    )
