"""The controller: by which plan each frame goes, and what every answer or silence changes.

Pure: a state and what happened give the next state. Clocks and randomness are passed in: `now` in
seconds of one clock, `chance` in [0, 1), fresh for each call. A shell calls

    decision, state = decide(state, options, local, left=left, now=now, chance=chance)
    confirms(state, option, hit, verdict)             # once its exit has answered, if it has one
    state = sent(state, seq, bytes, now)              # once the frame is on its way
    state = answered(state, seq, now, server=server)  # in time or late
    state = refused(state, seq, retry_after, now, chance)
    state = gone(state, seq)                          # ended with no word on the link

and from a timer `silent` and, while `state.up` is false, `beat` and `ponged`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from splitrt.core import estimate
from splitrt.core.estimate import Estimate, Observation
from splitrt.core.gate import Verdict
from splitrt.core.plan import MARGIN, Local, Option, Outlook, Price, choose, confirmed, worth
from splitrt.errors import SplitrtError

FREE = Price()
LATE = "too late for any head"
CREDIT = 20.0  # probes that can be saved up
SPREAD = 0.15  # least deviation of ln(rate)
FAIR = 0.3  # probability from which a richer probe is worth its bytes
ANY = 1e-6  # accuracy: more than nothing, where frames that gain too little will stay
RICHER = 0.03  # of the most that sending could gain: what a richer plan must add to the last
AFRESH = 10.0  # bytes a second after an outage, in smallest options
FIRST_BEAT, LAST_BEAT, GROWTH = 0.2, 1.0, 1.6  # seconds between heartbeats
REFUSED, ACCEPTED, LEAST_SHARE = 0.85, 0.01, 0.02  # of the frames that are still sent


@dataclass(frozen=True, slots=True)
class Rules:
    """What can be set; the defaults are what was replayed.

    threshold: accuracy that sending must gain.  inflight: frames without an answer.  probes: share
    of all frames, 0 for none.  idle: seconds without a frame sent before a probe.  stale: seconds
    without an answer to `rich` bytes before a richer probe.  silence: seconds, and silence_rtts
    round trips, without an answer before the link is down.  patience: seconds overdue before a
    frame in flight counts as a slow link.  spread: least deviation of ln(rate).
    """

    threshold: float = 0.004
    inflight: int = 4
    probes: float = 0.05
    idle: float = 0.4
    stale: float = 1.5
    rich: float = 3000.0
    silence: float = 1.5
    silence_rtts: float = 6.0
    patience: float = estimate.PATIENCE
    spread: float = SPREAD


@dataclass(frozen=True, slots=True)
class Flight:
    """A frame without an answer: sent at `at`, with `ahead` bytes before it in the queue."""

    seq: int
    at: float
    bytes: float
    ahead: float


@dataclass(frozen=True, slots=True)
class State:
    """All that is remembered between frames.

    up: frames may be sent.  plan: the last one chosen, None for the device.  active, rich_at: times
    of the last frame sent and of the last one of `rich` bytes answered or tried.  credit: probes
    still free.  jitter: of the waits before probes.  share: of the frames a busy server is sent.
    hold: until then it is sent none.  beat_at, beat_wait: the next heartbeat, and the wait after.
    """

    link: Estimate
    least: float  # bytes of the smallest option
    rich: float  # bytes that tell the rate well
    rules: Rules = Rules()
    up: bool = True
    flights: tuple[Flight, ...] = ()
    plan: str | None = None
    active: float = -math.inf
    rich_at: float = -math.inf
    credit: float = 1.0
    jitter: float = 1.0
    share: float = 1.0
    hold: float = -math.inf
    beat_at: float = math.inf
    beat_wait: float = FIRST_BEAT


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one frame.

    action: "send" by `option`, answer "local"ly, or "drop".  hit: probability that the answer comes
    in time.  value: accuracy gained by sending.  probe: sent to learn something; the device answers
    too, whether it hedges or not.
    """

    action: Literal["send", "local", "drop"]
    reason: str
    option: Option | None = None
    hit: float = 0.0
    value: float = 0.0
    probe: bool = False


def start(
    options: Sequence[Option],
    *,
    rules: Rules = Rules(),
    mbps: float = 0.5,
    rtt: float = 0.07,
    server: float = 0.012,
) -> State:
    """The state before the first frame; the rate, round trip and server's seconds are guesses."""
    if not options or min(option.bytes for option in options) <= 0:
        raise SplitrtError("no options, or one of no bytes\nhelp: plans of the cloud, with bytes")
    sizes = [option.bytes for option in options]
    rich = min(rules.rich, max(sizes))
    credit = 1.0 if rules.probes > 0 else 0.0
    return State(estimate.prior(mbps, rtt, server), min(sizes), rich, rules, credit=credit)


def decide(
    state: State,
    options: Sequence[Option],
    local: Local,
    *,
    left: float,
    now: float,
    chance: float,
    price: Price = FREE,
) -> tuple[Decision, State]:
    """What to do with a frame that has `left` seconds, and the state after it.

    options: with the head seconds that are still to run for this frame. The device's answer stands
    in wherever nothing is sent; a frame is dropped where there is none, or no time for any.
    """
    credit = min(state.credit + state.rules.probes, CREDIT)
    state = replace(silent(state, now), credit=credit)
    if local.empty:
        return Decision("drop", "nothing of interest"), state
    soonest = min([option.head for option in options] + [local.seconds] * (local.accuracy > 0))
    if left <= state.link.kappa * soonest:
        return Decision("drop", LATE), state
    if not state.up:
        return _here(local, "the link is down"), state
    if len(state.flights) >= state.rules.inflight:
        return _here(local, f"{len(state.flights)} frames in flight"), state
    if now < state.hold or chance >= state.share:
        return _here(local, "the server is busy"), state
    return _chosen(state, options, local, left, now, chance / state.share, price)


def confirms(
    state: State, option: Option, hit: float, verdict: Verdict, price: Price = FREE
) -> bool:
    """Whether a frame still goes by the option it was to go by, now that its exit has answered.

    Without bins a frame stays of which the gate is sure: the option's accuracy is then that over
    all frames, which says too little of the sure ones to be compared with the exit's on them.
    """
    if verdict.sure and not option.bins:
        return False
    return confirmed(option, hit, verdict.confidence, price) >= state.rules.threshold


def sent(state: State, seq: int, bytes: float, now: float) -> State:
    """A frame of so many bytes went on its way."""
    ahead = outlook(state, now).queue() if state.flights else 0.0
    flight = Flight(seq, now, bytes, ahead)
    return replace(state, flights=(*state.flights, flight), active=now)


def answered(state: State, seq: int, now: float, *, server: float = 0.0) -> State:
    """The server answered, in time or late; `server`: seconds in its queue and tail, by its word.

    A frame that is not in flight (lost in an outage) changes nothing.
    """
    flight = _flight(state, seq)
    if flight is None:
        return state
    took = now - flight.at
    seen = Observation(flight.bytes, flight.ahead, took, min(server, took))
    return replace(
        gone(state, seq),
        link=estimate.learned(state.link, seen, now),
        rich_at=now if flight.bytes >= state.rich else state.rich_at,
        share=min(1.0, state.share + ACCEPTED),
    )


def refused(state: State, seq: int, retry_after: float, now: float, chance: float) -> State:
    """The server is busy: fewer frames, none for a while. It says nothing about the link."""
    hold = max(state.hold, now + retry_after * (1 + chance))
    share = max(LEAST_SHARE, REFUSED * state.share)
    return replace(gone(state, seq), share=share, hold=hold)


def gone(state: State, seq: int) -> State:
    """A frame ended with no word on the link."""
    return replace(state, flights=tuple(one for one in state.flights if one.seq != seq))


def ran(state: State, measured: float, profiled: float) -> State:
    """A head took `measured` seconds where its option said `profiled`."""
    return replace(state, link=estimate.ran(state.link, measured, profiled))


def silent(state: State, now: float) -> State:
    """Down if the oldest frame has waited too long; else the same.

    The shell then throws the channel away: what is in flight is forgotten, and never sent again.
    """
    rules = state.rules
    if not state.up or not state.flights:
        return state
    patience = max(rules.silence, rules.silence_rtts * state.link.rtt)
    return broken(state, now) if now - state.flights[0].at > patience else state


def broken(state: State, now: float) -> State:
    """The connection broke: down at once."""
    if not state.up:
        return replace(state, flights=())
    return replace(
        state, up=False, flights=(), plan=None, beat_at=now, beat_wait=FIRST_BEAT, active=now
    )


def beat(state: State, now: float, chance: float) -> tuple[bool, State]:
    """Whether a heartbeat is due, and the state after it; none while the link is up."""
    if state.up or now < state.beat_at:
        return False, state
    wait = state.beat_wait
    following = min(GROWTH * wait, LAST_BEAT)
    return True, replace(state, beat_at=now + wait * _jitter(chance), beat_wait=following)


def ponged(state: State, took: float, now: float) -> State:
    """A heartbeat came back after `took` seconds: up, with caution if the link was down."""
    link = estimate.ponged(state.link, took, now)
    if state.up:
        return replace(state, link=link)
    link = estimate.cautious(link, AFRESH * state.least)
    return replace(state, link=link, up=True, beat_at=math.inf)


def outlook(state: State, now: float) -> Outlook:
    """The link as a frame that is sent now would meet it."""
    link, mu, drained = state.link, state.link.mu, 0.0
    if state.flights:
        oldest = state.flights[0]
        age = now - oldest.at
        mu = estimate.censored(link, oldest.bytes + oldest.ahead, age, state.rules.patience)
        drained = age - link.rtt / 2
    idle = 0.0 if state.flights else now - max(link.at, state.active)
    return Outlook(
        mu=mu,
        spread=max(math.sqrt(link.var), state.rules.spread),
        residuals=tuple(sorted(link.residuals)),
        fixed=link.rtt + estimate.serving(link, idle) + MARGIN,
        ahead=sum(flight.bytes for flight in state.flights),
        drained=drained,
        kappa=link.kappa,
    )


def _chosen(
    state: State,
    options: Sequence[Option],
    local: Local,
    left: float,
    now: float,
    chance: float,
    price: Price,
) -> tuple[Decision, State]:
    """The best option, or a probe in its stead."""
    ahead = outlook(state, now)
    hits = [ahead.hit(option, left) for option in options]
    least = state.rules.threshold
    values = [
        worth(one, hit, local, price, least=least) for one, hit in zip(options, hits, strict=True)
    ]
    most = max(option.accuracy for option in options) - local.accuracy
    step = min(least, RICHER * most)
    best = choose(options, values, state.plan, least=ANY if options[0].bins else least, step=step)
    state = replace(state, plan=best.name if best else None)
    probe = _probe(state, options, hits, best, now)
    if probe is not None:
        state = replace(
            state,
            credit=state.credit - 1,
            jitter=_jitter(chance),
            rich_at=now if best else state.rich_at,
            active=now,
        )
    option = probe or best
    if option is None:
        return _here(local, "no plan is worth it"), state
    place = options.index(option)
    reason = "to probe the link" if probe else "the best plan"
    return Decision("send", reason, option, hits[place], values[place], probe is not None), state


def _probe(
    state: State, options: Sequence[Option], hits: Sequence[float], best: Option | None, now: float
) -> Option | None:
    """The smallest option after a while without any; a rich one after a while of lean ones.

    The smallest of those whose head has the best exit: a probe is sent because it will hardly come
    back, and what stands in should then not be worse than the device's own answer.
    """
    if state.credit < 1:
        return None
    if best is None:
        idle = not state.flights and now - state.active >= state.rules.idle * state.jitter
        return min(options, key=lambda option: (-option.instead, option.bytes)) if idle else None
    if best.bytes >= state.rich or now - state.rich_at < state.rules.stale * state.jitter:
        return None
    rich = [
        (option.bytes, place) for place, option in enumerate(options) if option.bytes >= state.rich
    ]
    if not rich:
        return None
    place = min(rich)[1]
    return options[place] if hits[place] > FAIR else None


def _here(local: Local, reason: str) -> Decision:
    return Decision("local" if local.accuracy > 0 else "drop", reason)


def _flight(state: State, seq: int) -> Flight | None:
    return next((flight for flight in state.flights if flight.seq == seq), None)


def _jitter(chance: float) -> float:
    """± 20 %."""
    return 0.8 + 0.4 * chance
