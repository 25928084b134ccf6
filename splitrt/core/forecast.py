"""What each plan of a model would cost on a device and a link, and which is worth most there.

Arithmetic alone: a device's profile, a link's rates over time, the manifest's record. A frame has
the link for itself; frames that queue behind each other are the controller's matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from splitrt.core.links import STEP, Trace
from splitrt.core.manifest import Manifest, Plan
from splitrt.core.plan import Bin, Local, Option, Price
from splitrt.core.plan import worth as added
from splitrt.core.profile import Profile, head_ms
from splitrt.errors import ProfileError, SplitrtError

ENVELOPE = 16  # bytes of a message around the payload
SERVER = 0.005  # seconds from a message's arrival to its answer, unless told
PATIENCE = 10.0  # seconds; answers that come later, or never, count as this late
STARTS = 12_000  # moments of a trace at which a frame is sent
CELLULAR = {"lte": 3.5, "umts": 7.0, "evdo": 7.0}  # uJ per byte: 438 and 869 mW for each Mbit/s
HUANG = "Huang et al. 2012 (MobiSys): a phone's uplink, without its modem's base power and tail"


@dataclass(frozen=True, slots=True)
class Forecast:
    """One plan on one device and link.

    where: who answers if all goes well.  expected_ms: from the picture to that answer, on
    average.  bytes: of the message.  joules: of the device, beyond being idle; None if its profile
    knows no watts.  accuracy: of the answer; None without a record.  hit: chance that the answer
    comes by the deadline.  worth: accuracy of what is there by the deadline: the answer, or the
    exit where it stands in or, by its confidence, is known to be as good.  ms_estimated,
    joules_estimated: not measured on the device.
    """

    name: str
    where: str
    expected_ms: float
    bytes: float
    joules: float | None
    accuracy: float | None
    hit: float
    worth: float
    ms_estimated: bool
    joules_estimated: bool

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "name": self.name,
            "where": self.where,
            "expected_ms": round(self.expected_ms, 3),
            "bytes": round(self.bytes, 1),
            "joules": None if self.joules is None else round(self.joules, 6),
            "accuracy": self.accuracy,
            "hit": round(self.hit, 4),
        }


@dataclass(frozen=True, slots=True)
class Outlook:
    """Every plan's forecast, the name of the best; the link, and each thing estimated, in words."""

    plans: list[Forecast]
    best: str
    link: str
    estimated: list[str]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        plans = [plan.as_dict() for plan in self.plans]
        told = {"link": self.link, "estimated": self.estimated}
        return {"plans": plans, "best": self.best, **told}


@dataclass(frozen=True, slots=True)
class Piece:
    """What a plan runs on the device: a part as a profile names it; MACs where they are known."""

    digest: bytes
    part: str
    name: str
    macs: int | None = None


def options(
    manifest: Manifest, profile: Profile, *, uj_per_byte: float | None = None
) -> list[Option]:
    """The manifest's plans with what they cost on that device, in the manifest's order.

    Head, exit, tail and codec take what the profile measured of this very model. What it did not
    measure is computed from MACs, at the slower of the profile's two rates: a head's first layers
    are thin; a tail's MACs are what the head leaves of the whole model's, which for a small head
    of another make is too many. A codec that was not measured counts nothing.
    bytes: the record's mean and the envelope, or without a record the largest message. accuracy:
    without a record 1 for answers of the whole tail, 0 for an exit. uj_per_byte: of sending; the
    profile's unless given.

    ProfileError if a part was not measured and the manifest does not know its MACs.
    """
    if uj_per_byte is None:
        uj_per_byte = profile.send_uj_per_byte.value if profile.send_uj_per_byte else 0.0
    watts, found = profile.working_w or 0.0, []
    for plan in manifest.plans:
        head = sum(_seconds(profile, part) for part in _parts(manifest, plan))
        found.append(option(manifest, plan, head, watts=watts, uj_per_byte=uj_per_byte))
    return found


def option(
    manifest: Manifest, plan: Plan, head: float, *, watts: float, uj_per_byte: float
) -> Option:
    """One plan of the manifest where what runs on the device takes so many seconds."""
    size, record = _bytes(manifest, plan), manifest.width(plan).exit
    joules = watts * head + 1e-6 * uj_per_byte * size
    made = Option(plan.name, size, head, _accuracy(manifest, plan), joules)
    if record is None or not plan.bins:
        return made
    bins = tuple(map(Bin, record.shares, record.bins, plan.bins))
    return replace(made, bins=bins, edges=tuple(record.edges))


def sending(profile: Profile, trace: Trace) -> float:
    """Microjoules of the device per byte on that link: of its own radio, or a cellular modem.

    A figure that was measured on the device is taken for every link.
    """
    own = profile.send_uj_per_byte
    if own is not None and not own.estimated:
        return own.value
    return CELLULAR.get(_kind(trace), own.value if own is not None else 0.0)


def crossing(trace: Trace, size: float, starts: int = STARTS) -> np.ndarray:
    """Seconds that so many bytes take when sent at evenly spread moments, float64 [starts].

    The trace begins again after its end; inf if it carries nothing at all.
    """
    begin = np.linspace(0, trace.seconds, starts, endpoint=False)
    carried = trace.carried()
    clock = STEP * np.arange(len(carried))
    whole = carried[-1]
    if whole <= 0:
        return np.full(starts, np.inf if size > 0 else 0.0)
    wanted = np.interp(begin, clock, carried) + size
    laps = np.maximum(np.ceil(wanted / whole) - 1, 0)
    rest = wanted - laps * whole
    step = np.clip(np.searchsorted(carried, rest, side="left"), 1, len(carried) - 1)
    room = np.maximum(carried[step] - carried[step - 1], 1e-300)
    end = clock[step - 1] + STEP * np.clip((rest - carried[step - 1]) / room, 0, 1)
    return np.maximum(laps * trace.seconds + end - begin, 0.0) if size > 0 else np.zeros(starts)


def outlook(
    manifest: Manifest,
    profile: Profile,
    trace: Trace,
    *,
    deadline: float | None = None,
    server: float = SERVER,
) -> Outlook:
    """Every plan on that device and link. deadline, server: seconds; no deadline is PATIENCE.

    The best is the one worth most; of equals, the one that answers soonest.
    """
    if deadline is not None and not 0 < deadline < math.inf:
        raise SplitrtError(f"deadline = {deadline}\nhelp: seconds, more than 0")
    if not 0 <= server <= PATIENCE:
        raise SplitrtError(f"the server takes {server} s\nhelp: 0 to {PATIENCE:.0f} seconds")
    until = PATIENCE if deadline is None else deadline
    costs = options(manifest, profile, uj_per_byte=sending(profile, trace))
    plans = [
        _forecast(manifest, profile, plan, option, trace, server, until)
        for plan, option in zip(manifest.plans, costs, strict=True)
    ]
    best = max(plans, key=lambda plan: (plan.worth, -plan.expected_ms))
    way = (
        f"{trace.name}, {trace.seconds:.0f} s, mean {trace.mbps.mean():.2f} Mbit/s, "
        f"{(trace.mbps == 0).mean():.0%} of the time none, round trip {1000 * trace.rtt:.0f} ms; "
        f"server {1000 * server:.0f} ms; one frame at a time"
    )
    return Outlook(plans, best.name, way, _guesses(manifest, profile, trace, plans))


def _forecast(
    manifest: Manifest,
    profile: Profile,
    plan: Plan,
    option: Option,
    trace: Trace,
    server: float,
    until: float,
) -> Forecast:
    times = np.array([option.head])
    instead = 0.0
    if plan.place == "cloud":
        times = option.head + crossing(trace, option.bytes) + trace.rtt + server
        exits = manifest.exit_plan(manifest.width(plan))
        if exits is not None and option.head <= until:
            instead = _accuracy(manifest, exits)
    hit = float((times <= until + 1e-9).mean())
    guess = any(not _measured(profile, piece) for piece in _parts(manifest, plan))
    return Forecast(
        name=plan.name,
        where=plan.place,
        expected_ms=1000 * float(np.minimum(times, max(PATIENCE, until)).mean()),
        bytes=option.bytes,
        joules=None if profile.working_w is None else option.joules,
        accuracy=plan.accuracy,
        hit=hit,
        worth=instead + added(option, hit, Local(instead), Price()),
        ms_estimated=guess,
        joules_estimated=guess or _guessed(profile, plan),
    )


def _parts(manifest: Manifest, plan: Plan) -> Iterator[Piece]:
    """What runs on the device before the plan's answer, or its message, is there."""
    width = manifest.width(plan)
    macs = width.head_macs or plan.head_macs
    if not manifest.pictured(plan) or width.exit is not None:
        alone = plan.exits or manifest.pictured(plan)
        yield Piece(manifest.digest, "exit" if alone else "head", width.name, macs)
    if plan.place == "cloud":
        yield Piece(manifest.digest, "codec", plan.name)
    elif not plan.exits:
        rest = max(0, manifest.cut.whole_macs - (macs or 0))
        yield Piece(manifest.digest, "tail", width.name, rest if manifest.cut.whole_macs else None)


def _measured(profile: Profile, piece: Piece) -> bool:
    return profile.took(piece.digest, piece.part, piece.name) is not None


def _guessed(profile: Profile, plan: Plan) -> bool:
    """Whether one of the figures behind its joules is an estimate."""
    figures = [profile.head_w or profile.load_w, profile.idle_w]
    figures += [profile.send_uj_per_byte] if plan.place == "cloud" else []
    return any(figure is None or figure.estimated for figure in figures)


def _seconds(profile: Profile, piece: Piece) -> float:
    took = profile.took(piece.digest, piece.part, piece.name)
    if took is not None:
        return took / 1000
    if piece.part == "codec":
        return 0.0
    if piece.macs is None:
        raise ProfileError(
            f"{profile.name} has not measured the {piece.part} {piece.name!r}, "
            "and the model does not say its MACs\nhelp: on the device, `splitrt profile`"
        )
    return head_ms(profile, piece.macs).high_ms / 1000


def _kind(trace: Trace) -> str:
    """lte of lte-fair."""
    return trace.name.split("-")[0]


def _radio(profile: Profile, trace: Trace) -> str:
    """Microjoules per byte, and who says so."""
    own = profile.send_uj_per_byte
    source = "nothing known" if own is None else own.source
    if (own is None or own.estimated) and _kind(trace) in CELLULAR:
        source = HUANG
    return f"{sending(profile, trace):.1f} uJ per byte ({source})"


def _bytes(manifest: Manifest, plan: Plan) -> float:
    """Of the whole message."""
    if plan.place == "edge":
        return 0.0
    beside = ENVELOPE + sum(side.bytes for side in manifest.side)
    return beside + (_largest(manifest, plan) if plan.bytes_mean is None else plan.bytes_mean)


def _largest(manifest: Manifest, plan: Plan) -> int:
    """The payload's bytes where nothing can be compressed."""
    elements = math.prod(manifest.crossing(plan))
    return (elements * manifest.codecs[plan.codec or ""].bits + 7) // 8 + 1


def _accuracy(manifest: Manifest, plan: Plan) -> float:
    if plan.accuracy is not None:
        return plan.accuracy
    return 0.0 if plan.exits else 1.0


def _guesses(
    manifest: Manifest, profile: Profile, trace: Trace, plans: Sequence[Forecast]
) -> list[str]:
    """A sentence for everything that was neither measured nor recorded."""
    told = []
    if any(plan.ms_estimated for plan in plans):
        stated = profile.mobilenet_v2_ms or profile.resnet50_ms
        told.append(
            f"head ms: from MACs at the pace of thin layers on {profile.name} "
            f"({stated.source if stated else 'its measured heads'}); codecs count nothing"
        )
    busy = profile.head_w or profile.load_w
    if busy is None:
        told.append(f"joules: the profile of {profile.name} knows no watts")
    else:
        kind = "estimated" if busy.estimated else "published or measured"
        idle = "" if profile.idle_w else ", idle included"
        told.append(f"joules of the head: watts {kind}{idle} ({busy.source})")
        told.append(f"joules of sending: {_radio(profile, trace)}")
    if any(plan.accuracy is None for plan in plans):
        told.append("accuracy: no record; counted as 1, an exit's as 0")
    if any(plan.bytes_mean is None for plan in manifest.plans if plan.place == "cloud"):
        told.append("bytes: the largest message where a plan has no record")
    return told
