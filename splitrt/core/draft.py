"""How many tokens to draft before the server is asked: as many as make the most tokens a second.

SmartSpec's goodput (Liu et al. 2024) carried over the network: tokens that a round is expected to
bring over the seconds that it takes, the link's among them. Seconds of one clock, bytes a second.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from splitrt.core.language import Exit

MOST = 16  # drafts of a round
PROBE = 64  # rounds, one of which drafts one more
EDGES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)  # of confidence, between its buckets
MIDDLES = (0.1, 0.28, 0.43, 0.58, 0.73, 0.85, 0.94, 0.99)
MEMORY = 64.0  # drafts after which an old one counts little
BELIEF = 8.0  # drafts that what is believed beforehand counts as
ACCEPTED = 0.6  # of an exit that nobody measured
FORGET = 0.98  # of what is known of the server, a round
STEPPED = 0.1  # step of the device's time towards the last


@dataclass(frozen=True, slots=True)
class Mean:
    """A moving mean. weight: values that it stands for; 0: unknown."""

    value: float = 0.0
    weight: float = 0.0

    def moved(self, seen: float) -> Mean:
        """After another value."""
        weight = min(self.weight + 1, MEMORY)
        return Mean(self.value + (seen - self.value) / weight, weight)

    def beside(self, believed: float) -> float:
        """The mean, mixed with what is believed as far as little is known."""
        return (self.value * self.weight + believed * BELIEF) / (self.weight + BELIEF)


@dataclass(frozen=True, slots=True)
class Cost:
    """The server's seconds over the rows of a step: a line through the last ones (moments)."""

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def seen(self, rows: float, seconds: float) -> Cost:
        """After a step of so many rows took so long."""
        return Cost(
            self.weight * FORGET + 1,
            self.rows * FORGET + rows,
            self.seconds * FORGET + seconds,
            self.squares * FORGET + rows * rows,
            self.products * FORGET + rows * seconds,
        )

    def of(self, rows: float) -> float:
        """Seconds that a step of so many rows takes: never fewer for more rows, nor below 0."""
        if self.weight == 0:
            return 0.0
        mean, seconds = self.rows / self.weight, self.seconds / self.weight
        slope = 0.0
        if self.uneven and mean > 0:
            slope = (self.products / self.weight - mean * seconds) / self._spread
            slope = min(max(slope, 0.0), seconds / mean)
        return seconds + slope * (rows - mean)

    @property
    def uneven(self) -> bool:
        """Whether the last steps had rows different enough for what one row takes."""
        return self._spread > 0.25

    @property
    def _spread(self) -> float:
        """The variance of rows."""
        if self.weight == 0:
            return 0.0
        mean = self.rows / self.weight
        return self.squares / self.weight - mean * mean


@dataclass(frozen=True, slots=True)
class Way:
    """The link of a round: round trip, bytes a second towards the server, bytes of a row."""

    rtt: float
    rate: float
    row: float


@dataclass(frozen=True, slots=True)
class Drafting:
    """What is known of drafts; new knowledge is a new value.

    Acceptance is that of a draft whose forerunners were all accepted.  cells: by position in the
    round and bucket of confidence.  buckets: at any position.  places: by position, whatever the
    confidence.  overall: of all.  step: the device's seconds a row.  cost: the server's step.
    queue: seconds before it.  others: rows of other sessions in it.
    """

    buckets: tuple[Mean, ...]
    overall: Mean
    step: float
    cells: tuple[tuple[Mean, ...], ...] = ((Mean(),) * (len(EDGES) + 1),) * MOST
    places: tuple[Mean, ...] = (Mean(),) * MOST
    cost: Cost = Cost()
    queue: float = 0.0
    others: float = 0.0
    rounds: int = 0


def start(at: Exit, *, step: float = 0.02, server: float = 0.015) -> Drafting:
    """Before the first round: the manifest's record of the exit, and guesses in seconds."""
    share = sum(one.share for one in at.bins)
    overall = at.accepted
    if overall is None and share > 0:
        overall = sum(one.share * one.accepted for one in at.bins) / share
    buckets = tuple(Mean(_believed(at, middle), BELIEF) for middle in MIDDLES)
    whole = Mean(ACCEPTED if overall is None else overall, BELIEF)
    return Drafting(buckets, whole, step, cost=Cost().seen(1, server))


def stepped(state: Drafting, seconds: float) -> Drafting:
    """After the device took so long for one row."""
    return replace(state, step=state.step + STEPPED * (seconds - state.step))


def answered(state: Drafting, sure: Sequence[float], accepted: int) -> Drafting:
    """After a round: the confidence of each draft, and how many the server agreed with.

    Nothing is known of the drafts behind the first that was wrong.
    """
    cells, places = list(state.cells), list(state.places)
    buckets, overall = list(state.buckets), state.overall
    for place, confidence in enumerate(sure[: min(accepted + 1, MOST)]):
        right, bucket = float(place < accepted), bisect_right(EDGES, confidence)
        row = cells[place]
        cells[place] = (*row[:bucket], row[bucket].moved(right), *row[bucket + 1 :])
        places[place] = places[place].moved(right)
        buckets[bucket], overall = buckets[bucket].moved(right), overall.moved(right)
    return replace(
        state,
        cells=tuple(cells),
        places=tuple(places),
        buckets=tuple(buckets),
        overall=overall,
        rounds=state.rounds + 1,
    )


def served(state: Drafting, *, rows: int, batch: int, verify: float, queue: float) -> Drafting:
    """After the server's step: our rows, all its rows, its seconds and those in the queue."""
    others = max(0, batch - rows)
    return replace(
        state,
        cost=state.cost.seen(max(batch, rows), verify),
        queue=0.7 * state.queue + 0.3 * queue,
        others=0.7 * state.others + 0.3 * others,
    )


def chances(state: Drafting, sure: Sequence[float], most: int) -> list[float]:
    """For 1 to `most` drafts: that all of them are accepted.

    sure: confidences of the first ones, as far as they are known.
    """
    chance, found = 1.0, []
    for place in range(most):
        cell = min(place, MOST - 1)
        if place < len(sure):
            bucket = bisect_right(EDGES, sure[place])
            share = state.cells[cell][bucket].beside(state.buckets[bucket].value)
        else:
            share = state.places[cell].beside(state.overall.value)
        chance *= share
        found.append(chance)
    return found


def seconds(state: Drafting, drafts: int, way: Way, pending: int = 0) -> float:
    """What a round of so many drafts takes, `pending` rows waiting to be sent before it.

    Rows travel while the device drafts; the last one follows it.
    """
    rows, drafting = drafts + 1, state.step * drafts
    crossing = max(0.0, way.row * (rows + pending) / way.rate - drafting)
    verifying = state.queue + state.cost.of(state.others + pending + rows)
    return state.step + drafting + way.rtt + crossing + verifying


def goodput(
    state: Drafting, drafts: int, way: Way, sure: Sequence[float] = (), pending: int = 0
) -> float:
    """Tokens a second that rounds of so many drafts are expected to bring."""
    tokens = 1 + sum(chances(state, sure, drafts))
    return tokens / max(seconds(state, drafts, way, pending), 1e-9)


def length(
    state: Drafting, way: Way, sure: Sequence[float] = (), *, most: int = MOST, pending: int = 0
) -> int:
    """Drafts of this round, 0 to `most`; the fewest of those that are equally good.

    sure: confidences of the drafts that are made already, and of the next one: it is worth making
    if the length is more than theirs. Once in `PROBE` rounds it is one more.
    """
    best, found, tokens = -math.inf, 0, 1.0
    shares = chances(state, sure, most)
    for drafts in range(most + 1):
        tokens += shares[drafts - 1] if drafts else 0.0
        good = tokens / max(seconds(state, drafts, way, pending), 1e-9)
        if good > best * (1 + 1e-9) or drafts == 0:
            best, found = good, drafts
    probing = state.rounds % PROBE == PROBE - 1
    return min(found + probing, most)


def _believed(at: Exit, confidence: float) -> float:
    """Acceptance at a confidence, by the manifest's bins; without any, the confidence itself."""
    below = [one for one in at.bins if one.low <= confidence and one.share > 0]
    if not below:
        return confidence
    return max(below, key=lambda one: one.low).accepted
