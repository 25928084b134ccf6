"""A frame between head and result, and how it ends: by the server's answer, or here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from splitrt.core import packet
from splitrt.core.control import Decision
from splitrt.core.gate import Verdict
from splitrt.core.manifest import Manifest, Plan
from splitrt.core.result import Result, Timings
from splitrt.edge.parcel import Arrival, Parcel, Pending
from splitrt.edge.pilot import Pilot
from splitrt.edge.study import View
from splitrt.errors import (
    DeadlineMissed,
    LinkDown,
    PacketError,
    Refused,
    SplitrtError,
)
from splitrt.wire import tail_pb2 as wire

if TYPE_CHECKING:
    from splitrt.edge.trace import Trip

EMPTY = "empty"  # the plan of a frame that the filter dropped


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """How the next frames go: all of it changes at once, while another thread launches frames.

    gated: frames of which the exit is sure stay here.  pilot: chooses each frame's plan, and says
    in the gate's stead which stay.
    """

    plan: Plan
    gated: bool
    pilot: Pilot | None = None


@dataclass(slots=True, eq=False)
class Flight:
    """A frame between head and result."""

    captured: float  # time.monotonic()
    course: Course
    plan: Plan
    beside: packet.Beside = field(default_factory=packet.Beside)
    timings: Timings = field(default_factory=Timings)
    outputs: dict[str, np.ndarray] | None = None  # answered here already
    prepared: np.ndarray | None = None  # as the head takes it
    features: np.ndarray | None = None  # what the local tail takes
    exit: dict[str, np.ndarray] | None = None  # the local exit's answer, to stand in
    local: dict[str, np.ndarray] | None = None  # the local tail's, where there is no exit
    ran: float = 0.0  # seconds that the local tail took for it
    empty: str | None = None  # why it was dropped
    verdict: Verdict | None = None
    view: View | None = None  # of an exit that is adapted
    decision: Decision | None = None  # the controller's, where it sends the frame
    why: str | None = None  # it was not sent, in the controller's words; or nobody stands in
    pending: Pending | None = None
    parcel: Parcel | None = None  # as a keyframe
    packed: bytes | None = None  # its codes
    in_vain: int = 0  # bytes of a message that the server could not open
    error: SplitrtError | None = None  # why it was not sent
    trip: Trip | None = None  # its spans, where it is traced and goes to the server

    @property
    def revision(self) -> int:
        """Number of the revision by which the exit answered or judged, 0 for none."""
        return 0 if self.view is None else self.view.number

    @property
    def alike(self) -> str:
        """Frames of one such word can be differences to each other."""
        return f"{self.plan.name} {self.beside.size}"


class Witness(Protocol):
    """Sees each frame of an Edge."""

    def sends(self, flight: Flight, at: float) -> bytes:
        """It goes to the server, at that time.monotonic(); what it carries in its field `trace`."""

    def ended(self, flight: Flight, result: Result) -> None:
        """It has a result."""


def opened(
    flight: Flight, arrival: Arrival, manifest: Manifest, also: Sequence[Manifest]
) -> dict[str, np.ndarray]:
    """The outputs of an answer; else the error that its status stands for."""
    answer = arrival.answer
    if answer.status == wire.OK:
        size = flight.beside.size
        others = [other.at(size) for other in also]
        return packet.read_outputs(manifest.at(size), answer, others)
    detail = packet.told(answer.detail) or "without a reason"
    if answer.status == wire.STALE:
        raise Refused(f"the server holds another model by now: {detail}")
    if answer.status == wire.EXPIRED:
        raise DeadlineMissed(f"the server found it too late: {detail}")
    if answer.status == wire.BUSY:
        raise Refused(f"the server is full: {detail}")
    if answer.status == wire.INVALID:
        raise PacketError(f"the server refused the frame: {detail}")
    raise LinkDown(f"the server failed: {detail}")


def answered(flight: Flight, arrival: Arrival, outputs: dict[str, np.ndarray]) -> Result:
    """The server's answer, with the times of the way and of the server."""
    assert flight.pending is not None
    answer, away = arrival.answer, 1000 * (arrival.at - flight.pending.sent_at)
    there = {
        "server": answer.open_us / 1000,
        "batch": answer.queue_us / 1000,
        "tail": answer.compute_us / 1000,
    }
    claimed = sum(there.values())
    share = min(1.0, away / claimed) if claimed else 1.0  # a peer's numbers: at most `away`
    timings = replace(
        flight.timings,
        link=max(0.0, away - claimed),
        **{word: share * milliseconds for word, milliseconds in there.items()},
        total=1000 * (arrival.at - flight.captured),
    )
    return Result(
        outputs=outputs,
        where="cloud",
        plan=flight.plan.name,
        confidence=flight.verdict.confidence if flight.verdict else None,
        timings=timings,
        sent_bytes=flight.pending.sent_bytes + flight.in_vain,
        revision=flight.revision,
    )


def ended(flight: Flight, manifest: Manifest, error: SplitrtError | None) -> Result:
    """An answer made here; by exit or local tail in the server's stead if there is an error."""
    outputs, plan = flight.outputs, flight.plan.name
    if outputs is None and flight.exit is not None and flight.empty is None:
        exits = manifest.exit_plan(manifest.width(flight.plan))
        if exits is not None:
            outputs, plan = flight.exit, exits.name
    timings = flight.timings
    if outputs is None and flight.local is not None and manifest.local_plan is not None:
        outputs, plan = flight.local, manifest.local_plan.name
        timings = replace(timings, tail=1000 * flight.ran)
    told = [] if error is None else [str(error).splitlines()[0]]
    reason = flight.empty or "; ".join([*told, *filter(None, [flight.why])]) or None
    total = 1000 * (time.monotonic() - flight.captured)
    return Result(
        outputs=outputs or {},
        where="edge" if outputs or flight.empty else None,
        plan=EMPTY if flight.empty else plan,
        reason=reason,
        confidence=flight.verdict.confidence if flight.verdict else None,
        timings=replace(timings, total=total),
        sent_bytes=flight.pending.sent_bytes + flight.in_vain if flight.pending else 0,
        revision=flight.revision,
    )
