"""The device: each frame through head and gate, to the server and back, or answered here."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np

from splitrt.core import packet
from splitrt.core.codec import Codec, codecs
from splitrt.core.gate import Verdict, judge
from splitrt.core.jpeg import Jpeg
from splitrt.core.manifest import Manifest, Plan, Similar, Width, siblings
from splitrt.core.result import Result, Timings
from splitrt.core.side import pack, unpack
from splitrt.edge.capture import Camera, Frame, Pictures
from splitrt.edge.head import Head, LocalTail
from splitrt.edge.link import SILENCE, Arrival, Link, Pending
from splitrt.edge.still import rule
from splitrt.edge.temporal import EVERY, Temporal
from splitrt.errors import (
    DeadlineMissed,
    LinkDown,
    LinkError,
    PacketError,
    Refused,
    SplitrtError,
)
from splitrt.wire import tail_pb2 as wire

EMPTY = "empty"  # the plan of a frame that the filter dropped
NOTHING: Mapping[str, np.ndarray] = MappingProxyType({})
PATIENCE = 10.0  # seconds a frame may take when no deadline is given


@dataclass(slots=True, eq=False)
class Flight:
    """A frame between head and result."""

    captured: float  # time.monotonic()
    plan: Plan
    beside: packet.Beside = field(default_factory=packet.Beside)
    timings: Timings = field(default_factory=Timings)
    outputs: dict[str, np.ndarray] | None = None  # answered here already
    exit: dict[str, np.ndarray] | None = None  # the local exit's answer, to stand in
    empty: str | None = None  # why it was dropped
    verdict: Verdict | None = None
    pending: Pending | None = None
    key: tuple[bytes, bytes] | None = None  # as a keyframe: payload, packed codes
    in_vain: int = 0  # bytes of a message that the server could not open
    error: SplitrtError | None = None  # why it was not sent

    @property
    def alike(self) -> str:
        """Frames of one such word can be differences to each other."""
        return f"{self.plan.name} {self.beside.size}"


class Edge:
    """The device's half of a model directory.

    cloud: host:port of the tail server; without it everything is answered here.
    deadline: seconds from capture; when it is over, or the link is down, the local exit answers
    and the result's `reason` says why. plan: pins one of the manifest's plans; by default the
    gate answers sure frames locally and sends the others by the manifest's default plan. It can be
    set between frames: every width's head is resident. filter: frames in which the emptiness
    filter finds nothing of interest end here, with no outputs and the plan "empty".
    tails: folders of further tails of the same head, which answer the same payload too; their
    outputs are named MODEL/OUTPUT. temporal: frames of an integer rung go as differences to
    earlier ones where that is smaller, with a keyframe at least every so many (True: 30); the
    answers are the same. similar: in a stream, a picture that changed by no more than this (grey
    levels; True: the manifest's) since the last answered one gets that answer again, with the
    plan "similar".

        with Edge("models/cifar10-resnet", cloud="gpu-box:50700", deadline=0.1) as edge:
            result = edge({"image": image})

    A model that takes pictures of several sizes takes each as its manifest's `sizes.fit` says;
    side inputs are given by name: edge({"image": image, "size": np.array([480, 640])}). One that
    is the picture's own size may be left out.

    A model without an exit has no stand-in: then a call raises LinkDown, DeadlineMissed or
    Refused, and a stream yields a result with `where` None. ModelMismatch is always raised.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        cloud: str | None = None,
        deadline: float | None = None,
        plan: str | None = None,
        filter: bool = False,
        tails: Sequence[str | Path] = (),
        temporal: bool | int = False,
        similar: Similar | float | bool = False,
        threads: int | None = None,
        provider: str = "CPU",
    ) -> None:
        if deadline is not None and not 0 < deadline < math.inf:
            raise SplitrtError(f"deadline = {deadline}\nhelp: seconds, more than 0")
        folder = Path(model)
        self.manifest = Manifest.load(folder)
        self.deadline = deadline
        self._cloud, self._folder, self._threads = cloud, folder, threads
        self._also = [siblings(self.manifest, other) for other in tails]
        self.similar = rule(similar, self.manifest)
        self._plan = self._chosen(plan)
        self._gated = plan is None and self._plan.place == "cloud"
        self._codecs = codecs(folder, self.manifest)
        self._heads = {
            width.name: Head(folder, self.manifest, width, threads=threads, provider=provider)
            for width in self.manifest.widths
        }
        self._filter = filter
        if filter and not any(width.filter for width in self.manifest.widths):
            raise SplitrtError(f"{folder} has no emptiness filter\nhelp: export one with filter=")
        self._tail: LocalTail | None = None
        self._ready(self._plan)
        self._temporal: Temporal | None = None
        if temporal is not False:
            self._temporal = Temporal(EVERY if temporal is True else temporal)
        self._link: Link | None = None
        if cloud is not None and self._plan.place == "cloud":
            silence = max(SILENCE, self.patience)
            asks = self._temporal is not None
            self._link = Link(cloud, self.manifest, silence=silence, also=self._also, temporal=asks)

    @property
    def plan(self) -> str:
        """The plan of the next frame, by name. Setting one pins it."""
        return self._plan.name

    @plan.setter
    def plan(self, name: str) -> None:
        chosen = self._chosen(name)
        if chosen.place == "cloud" and self._link is None:
            raise SplitrtError(f"this Edge left the server out\nhelp: open one with plan={name!r}")
        self._ready(chosen)
        self._plan, self._gated = chosen, False

    @property
    def patience(self) -> float:
        """Seconds after which a frame is given up."""
        return PATIENCE if self.deadline is None else self.deadline

    def __enter__(self) -> Edge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the server."""
        if self._link is not None:
            self._link.close()

    def __call__(self, inputs: Mapping[str, np.ndarray] | np.ndarray) -> Result:
        """Answer one input; the deadline starts now."""
        array, side = self._parted(inputs)
        flight = self.launch(array, time.monotonic(), side)
        result, error = self.land(flight)
        if result.where is None and error is not None:
            raise error
        return result

    def stream(
        self, source: Camera | Pictures | Iterable[Frame], *, inflight: int = 4
    ) -> Iterator[tuple[Frame, Result]]:
        """Every frame of the source with its result, in order of capture.

        While one frame is on its way the next is in the head. Each frame ends exactly once.
        """
        from splitrt.edge.stream import stream

        return stream(self, source, inflight)

    def launch(
        self, array: np.ndarray, captured: float, side: Mapping[str, np.ndarray] = NOTHING
    ) -> Flight:
        """Head, gate, codec, and on the way; never waits for the server."""
        flight = Flight(captured, self._plan)
        width = self.manifest.width(flight.plan)
        head = self._heads[width.name]
        started = time.monotonic()
        prepared = head.prepare(array)
        parts = pack(self.manifest.side, {**self._filled(array), **side})
        flight.beside = packet.Beside(head.size(prepared), parts)
        wanted = self._wanted(flight.plan, head)
        seen = head(prepared, wanted) if wanted else {}
        after_head = time.monotonic()
        self._judge(flight, width, seen)
        after_gate = time.monotonic()
        flight.timings = Timings(
            capture=1000 * (started - captured),
            head=1000 * (after_head - started),
            gate=1000 * (after_gate - after_head),
        )
        if flight.empty is not None or flight.outputs is not None:
            return flight
        if flight.plan.place == "cloud":
            codec = self._codecs[flight.plan.name]
            self._send(flight, prepared if isinstance(codec, Jpeg) else next(iter(seen.values())))
        elif self._tail is not None:
            flight.outputs = self._tail(seen["features"], unpack(self.manifest.side, parts))
            ran = 1000 * (time.monotonic() - after_gate)
            flight.timings = replace(flight.timings, tail=ran)
        return flight

    def land(self, flight: Flight) -> tuple[Result, SplitrtError | None]:
        """Wait for the answer until the deadline, else stand in; and what went wrong."""
        if flight.pending is None:
            return self._result(flight, error=flight.error), flight.error
        try:
            arrival = self._arrival(flight)
            if arrival.answer.status == wire.NEED_KEY and flight.key is not None:
                arrival = self._again(flight)
            outputs = self._opened(flight, arrival)
        except (LinkError, PacketError) as error:
            return self._result(flight, error=error), error
        return self._answered(flight, arrival, outputs), None

    def failed(self, captured: float, error: SplitrtError) -> Result:
        """The result of a frame that could not even start."""
        return self._result(Flight(captured, self._plan), error=error)

    def _chosen(self, plan: str | None) -> Plan:
        names = [one.name for one in self.manifest.plans]
        if plan is None:
            default = self.manifest.default_plan
            plan = default if self._cloud is not None else _offline(self.manifest)
        if plan not in names:
            near = difflib.get_close_matches(plan, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(names)}"
            raise SplitrtError(f"no plan {plan!r}\nhelp: {hint}")
        chosen = self.manifest.plan(plan)
        if chosen.place == "cloud" and self._cloud is None:
            raise SplitrtError(f"plan {plan!r} needs a server\nhelp: pass cloud='host:50700'")
        return chosen

    def _ready(self, plan: Plan) -> None:
        """Load what the plan needs beside the heads."""
        if plan.place == "edge" and not plan.exits and self._tail is None:
            self._tail = LocalTail(self._folder, self.manifest, threads=self._threads)

    def _parted(
        self, inputs: Mapping[str, np.ndarray] | np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(the head's input, side inputs by name)."""
        if isinstance(inputs, np.ndarray):
            return inputs, {}
        first = self.manifest.input.name
        sides = {side.name: side.picture for side in self.manifest.side}
        missing = [name for name, picture in sides.items() if not picture and name not in inputs]
        if first not in inputs or missing or set(inputs) - {first, *sides}:
            names = " and ".join(map(repr, [first, *sides]))
            raise PacketError(f"inputs {sorted(inputs)}\nhelp: this model takes {names}")
        side = {name: np.asarray(array) for name, array in inputs.items() if name != first}
        return np.asarray(inputs[first]), side

    def _filled(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Side inputs that are the picture's own height and width."""
        names = [side.name for side in self.manifest.side if side.picture]
        if not names:
            return {}
        size = array.shape[:2] if self.manifest.input.kind == "pixels" else array.shape[1:3]
        return dict.fromkeys(names, np.array(size, np.int64))

    def _wanted(self, plan: Plan, head: Head) -> list[str]:
        """The head's outputs that this plan, its stand-in and the filter need."""
        names = []
        if plan.codec is not None:
            codec = self._codecs[plan.name]
            if not isinstance(codec, Jpeg):
                names.append(plan.codec if codec.codes else "features")
        elif not plan.exits:
            names.append("features")
        if head.width.exit is not None and (plan.exits or plan.place == "cloud"):
            names.append("exit")
        if self._filter and head.width.filter is not None:
            names.append("filter")
        return names

    def _judge(self, flight: Flight, width: Width, seen: dict[str, np.ndarray]) -> None:
        if "filter" in seen and width.filter is not None:
            score = float(seen["filter"].item())
            if score < width.filter.threshold:
                flight.empty = f"nothing of interest: {score:.2f} < {width.filter.threshold:.2f}"
                return
        record = width.exit
        if record is not None and "exit" in seen:
            flight.exit = {record.output: seen["exit"]}
            flight.verdict = judge(seen["exit"], record)
            exits = self.manifest.exit_plan(width)
            if exits is not None and (flight.plan.exits or (self._gated and flight.verdict.sure)):
                flight.outputs, flight.plan = flight.exit, exits

    def _send(self, flight: Flight, codes: np.ndarray) -> None:
        assert self._link is not None and flight.plan.codec is not None  # _chosen saw to it
        started = time.monotonic()
        codec = self._codecs[flight.plan.name]
        if self.manifest.sizes is not None:
            codec = codec.sized(codes.shape)
        try:
            payload, delta = codec.encode(codes), None
            if self._temporal is not None and isinstance(codec, Codec) and codec.codes:
                packed = codec.pack(codes)
                flight.key = payload, packed
                delta = self._temporal.delta(flight.alike, codec, packed, payload)
            encoded = time.monotonic()
            flight.timings = replace(flight.timings, codec=1000 * (encoded - started))
            slack = None
            if self.deadline is not None:
                slack = flight.captured + self.deadline - encoded
                if slack <= 0:
                    raise DeadlineMissed(f"the head took longer than {1000 * self.deadline:.0f} ms")
            place = self.manifest.plans.index(flight.plan)
            flight.pending = self._link.send(place, payload, slack, flight.beside, delta)
            self._remember(flight)
        except (LinkError, PacketError) as error:
            flight.error = error

    def _remember(self, flight: Flight) -> None:
        if self._temporal is not None and flight.key is not None and flight.pending is not None:
            self._temporal.remember(flight.pending, flight.alike, flight.key[1])

    def _again(self, flight: Flight) -> Arrival:
        """Send the frame as a keyframe: the server had not kept what it was a difference to."""
        assert self._link is not None and flight.pending is not None and flight.key is not None
        slack = None
        if self.deadline is not None:
            slack = flight.captured + self.deadline - time.monotonic()
            if slack <= 0:
                raise DeadlineMissed(f"no keyframe within {1000 * self.deadline:.0f} ms")
        place = self.manifest.plans.index(flight.plan)
        again = self._link.send(place, flight.key[0], slack, flight.beside)
        flight.in_vain, flight.pending = flight.pending.sent_bytes, again
        self._remember(flight)
        return self._arrival(flight)

    def _arrival(self, flight: Flight) -> Arrival:
        assert flight.pending is not None
        until = flight.captured + self.patience
        late = DeadlineMissed(f"no answer within {1000 * self.patience:.0f} ms")
        try:
            arrival = flight.pending.future.result(max(0.0, until - time.monotonic()))
        except (FutureTimeout, CancelledError):
            flight.pending.future.cancel()
            raise late from None
        if arrival.at > until:
            raise late
        return arrival

    def _opened(self, flight: Flight, arrival: Arrival) -> dict[str, np.ndarray]:
        answer = arrival.answer
        if answer.status == wire.OK:
            size = flight.beside.size
            also = [other.at(size) for other in self._also]
            return packet.read_outputs(self.manifest.at(size), answer, also)
        detail = packet.told(answer.detail) or "without a reason"
        if answer.status == wire.EXPIRED:
            raise DeadlineMissed(f"the server found it too late: {detail}")
        if answer.status == wire.BUSY:
            raise Refused(f"the server is full: {detail}")
        if answer.status == wire.INVALID:
            raise PacketError(f"the server refused the frame: {detail}")
        raise LinkDown(f"the server failed: {detail}")

    def _answered(self, flight: Flight, arrival: Arrival, outputs: dict[str, np.ndarray]) -> Result:
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
        )

    def _result(self, flight: Flight, *, error: SplitrtError | None) -> Result:
        """An answer made here; by the exit in the server's stead if there is an error."""
        outputs, plan = flight.outputs, flight.plan.name
        if outputs is None and flight.exit is not None and flight.empty is None:
            exits = self.manifest.exit_plan(self.manifest.width(flight.plan))
            if exits is not None:
                outputs, plan = flight.exit, exits.name
        reason = flight.empty if error is None else str(error).splitlines()[0]
        total = 1000 * (time.monotonic() - flight.captured)
        return Result(
            outputs=outputs or {},
            where="edge" if outputs or flight.empty else None,
            plan=EMPTY if flight.empty else plan,
            reason=reason,
            confidence=flight.verdict.confidence if flight.verdict else None,
            timings=replace(flight.timings, total=total),
            sent_bytes=flight.pending.sent_bytes + flight.in_vain if flight.pending else 0,
        )


def _offline(manifest: Manifest) -> str:
    """The plan of a device without a server: the widest head's exit, else the whole tail."""
    exits = manifest.exit_plan(manifest.widths[-1])
    return "local" if exits is None else exits.name
