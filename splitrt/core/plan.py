"""Which plan is best for this frame: what each costs here, and what it is worth by the deadline."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

MARGIN = 0.005  # seconds for what is not accounted for
ENOUGH = 8  # residuals from which on they are believed
NORMAL = 0.3  # share of the normal distribution in the mix; the residuals have the rest


@dataclass(frozen=True, slots=True)
class Bin:
    """Frames of which an exit is about equally sure: their share of all, and who is right on them.

    exit, sent: accuracy, 0 to 1, of the exit and of the plan that it stands in for.
    """

    share: float
    exit: float
    sent: float


@dataclass(frozen=True, slots=True)
class Option:
    """A plan of the manifest with what it costs on this device.

    bytes: of the whole message.  head: seconds from the picture to the payload.  accuracy: of the
    answer if it comes in time, 0 to 1.  joules: of the device, for the head and for sending.
    bins: that accuracy beside that of the exit which stands in, by its confidence, the surest last;
    edges: between them.
    """

    name: str
    bytes: float
    head: float
    accuracy: float
    joules: float = 0.0
    bins: tuple[Bin, ...] = ()
    edges: tuple[float, ...] = ()

    @property
    def instead(self) -> float:
        """Accuracy of the exit that stands in, over all frames; 0 where nobody recorded it."""
        return sum(one.share * one.exit for one in self.bins)

    def seen(self, confidence: float) -> Bin | None:
        """The bin of a frame of which the exit is so sure; None without bins."""
        return self.bins[bisect_right(self.edges, confidence)] if self.bins else None


@dataclass(frozen=True, slots=True)
class Local:
    """What the device can answer itself.

    accuracy: of that answer, at this frame's confidence; 0: there is none.  seconds: still to run
    for it.  hedged: it answers a sent frame too, if nothing comes in time.  empty: the filter found
    nothing of interest.
    """

    accuracy: float
    seconds: float = 0.0
    hedged: bool = True
    empty: bool = False


@dataclass(frozen=True, slots=True)
class Price:
    """What a byte and a joule cost, in accuracy of a frame; see `budget`."""

    byte: float = 0.0
    joule: float = 0.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """The link as a frame that is sent now would meet it.

    mu, spread: of ln(bytes a second).  residuals: ascending.  fixed: seconds whatever the size.
    ahead: bytes in flight.  drained: seconds for which they have been leaving.  kappa: of the head.
    """

    mu: float
    spread: float
    residuals: tuple[float, ...]
    fixed: float
    ahead: float = 0.0
    drained: float = 0.0
    kappa: float = 1.0

    def queue(self, later: float = 0.0) -> float:
        """Bytes that will still be ahead in `later` seconds."""
        return max(0.0, self.ahead - max(0.0, self.drained + later) * math.exp(self.mu))

    def hit(self, option: Option, left: float) -> float:
        """Probability that the answer comes within `left` seconds.

        A normal distribution of ln(rate) mixed with the latest surprises: its tail is too thin.
        """
        head = self.kappa * option.head
        slack = left - head - self.fixed
        if slack <= 0:
            return 0.0
        wanted = math.log(max(option.bytes + self.queue(head), 1.0) / slack) - self.mu
        normal = 0.5 * math.erfc(wanted / (self.spread * math.sqrt(2)))
        if len(self.residuals) < ENOUGH:
            return normal
        seen = 1 - bisect_left(self.residuals, wanted) / len(self.residuals)
        return NORMAL * normal + (1 - NORMAL) * seen


def worth(option: Option, hit: float, local: Local, price: Price, *, least: float = 0.0) -> float:
    """Accuracy that sending by this option adds to the device's own answer, less its price.

    Before the exit has answered: with bins, the mean over them. Frames of a bin in which sending
    gains nothing, or less than the least, will stay; what they, and those that miss, are left with
    is the exit of this option's own head, which need not be the device's best.
    """
    cost = price.joule * option.joules + price.byte * option.bytes
    if option.bins and local.hedged:
        mean = 0.0
        for one in option.bins:
            gain = hit * (one.sent - one.exit) - cost
            mean += one.share * (one.exit + gain if gain > least else one.exit)
        return mean - local.accuracy
    kept = local.accuracy * (1 - hit) if local.hedged else 0.0
    return option.accuracy * hit + kept - local.accuracy - cost


def confirmed(option: Option, hit: float, confidence: float, price: Price) -> float:
    """What sending is worth once its head's exit is that sure of an answer of its own."""
    seen = option.seen(confidence)
    if seen is None:
        return worth(option, hit, Local(confidence), price)
    return worth(replace(option, accuracy=seen.sent, bins=()), hit, Local(seen.exit), price)


def alike(options: Sequence[Option]) -> list[Option]:
    """The options without their bins, unless all have some: else they could not be compared."""
    if all(option.bins for option in options):
        return list(options)
    return [replace(option, bins=(), edges=()) for option in options]


def choose(
    options: Sequence[Option],
    values: Sequence[float],
    last: str | None,
    *,
    least: float,
    step: float,
) -> Option | None:
    """The option of the highest value, or None if none reaches the least.

    A richer one than the last must be better by a step; a leaner one is taken at once.
    """
    best = max(range(len(options)), key=values.__getitem__, default=None)
    if best is None or values[best] < least:
        return None
    for option, value in zip(options, values, strict=True):
        if option.name == last and least <= value and values[best] < value + step:
            return option if options[best].bytes > option.bytes else options[best]
    return options[best]
