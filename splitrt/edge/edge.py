"""The device: each frame through head and gate, to the server and back, or answered here."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from splitrt.core import packet
from splitrt.core.codec import codecs
from splitrt.core.gate import Verdict, judge
from splitrt.core.manifest import Manifest, Plan
from splitrt.core.result import Result, Timings
from splitrt.edge.capture import Camera, Frame, Pictures
from splitrt.edge.head import Head, LocalTail
from splitrt.edge.link import SILENCE, Arrival, Link, Pending
from splitrt.errors import (
    DeadlineMissed,
    LinkDown,
    LinkError,
    PacketError,
    Refused,
    SplitrtError,
)
from splitrt.wire import tail_pb2 as wire

PATIENCE = 10.0  # seconds a frame may take when no deadline is given


@dataclass(slots=True, eq=False)
class Flight:
    """A frame between head and result."""

    captured: float  # time.monotonic()
    plan: Plan
    timings: Timings = field(default_factory=Timings)
    outputs: dict[str, np.ndarray] | None = None  # answered here already
    exit: np.ndarray | None = None  # the local exit's logits, to stand in
    verdict: Verdict | None = None
    pending: Pending | None = None
    error: SplitrtError | None = None  # why it was not sent


class Edge:
    """The device's half of a model directory.

    cloud: host:port of the tail server; without it everything is answered here.
    deadline: seconds from capture; when it is over, or the link is down, the local exit answers
    and the result's `reason` says why. plan: pins one of the manifest's plans; by default the
    gate answers sure frames locally and sends the others by the manifest's default plan.

        with Edge("models/cifar10-resnet", cloud="gpu-box:50700", deadline=0.1) as edge:
            result = edge({"image": image})

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
        threads: int | None = None,
        provider: str = "CPU",
    ) -> None:
        if deadline is not None and not 0 < deadline < math.inf:
            raise SplitrtError(f"deadline = {deadline}\nhelp: seconds, more than 0")
        folder = Path(model)
        self.manifest = Manifest.load(folder)
        self.deadline = deadline
        self.plan = self._chosen(plan, cloud)
        self._place = self.manifest.plans.index(self.plan)
        self._gated = plan is None and self.plan.place == "cloud"
        self._codecs = codecs(folder, self.manifest)
        self._head = Head(folder, self.manifest, threads=threads, provider=provider)
        self._tail: LocalTail | None = None
        if self.plan.name == "local":
            self._tail = LocalTail(folder, self.manifest, threads=threads)
        self._link: Link | None = None
        if cloud is not None and self.plan.place == "cloud":
            self._link = Link(cloud, self.manifest, silence=max(SILENCE, self.patience))

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
        flight = self.launch(self._array(inputs), time.monotonic())
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

    def launch(self, array: np.ndarray, captured: float) -> Flight:
        """Head, gate, codec, and on the way; never waits for the server."""
        flight = Flight(captured, self.plan)
        started = time.monotonic()
        seen = self._head(self._head.prepare(array), self._wanted())
        after_head = time.monotonic()
        self._judge(flight, seen)
        after_gate = time.monotonic()
        flight.timings = Timings(
            capture=1000 * (started - captured),
            head=1000 * (after_head - started),
            gate=1000 * (after_gate - after_head),
        )
        if self._tail is not None:
            flight.outputs = self._tail(seen["features"])
            ran = 1000 * (time.monotonic() - after_gate)
            flight.timings = replace(flight.timings, tail=ran)
        if flight.outputs is None:
            self._send(flight, seen)
        return flight

    def land(self, flight: Flight) -> tuple[Result, SplitrtError | None]:
        """Wait for the answer until the deadline, else stand in; and what went wrong."""
        if flight.pending is None:
            return self._result(flight, error=flight.error), flight.error
        try:
            arrival = self._arrival(flight)
            outputs = self._opened(arrival)
        except (LinkError, PacketError) as error:
            return self._result(flight, error=error), error
        return self._answered(flight, arrival, outputs), None

    def failed(self, captured: float, error: SplitrtError) -> Result:
        """The result of a frame that could not even start."""
        return self._result(Flight(captured, self.plan), error=error)

    def _chosen(self, plan: str | None, cloud: str | None) -> Plan:
        names = [one.name for one in self.manifest.plans]
        if plan is None:
            plan = self.manifest.default_plan if cloud is not None else _offline(names)
        if plan not in names:
            near = difflib.get_close_matches(plan, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(names)}"
            raise SplitrtError(f"no plan {plan!r}\nhelp: {hint}")
        chosen = self.manifest.plan(plan)
        if chosen.place == "cloud" and cloud is None:
            raise SplitrtError(f"plan {plan!r} needs a server\nhelp: pass cloud='host:50700'")
        return chosen

    def _array(self, inputs: Mapping[str, np.ndarray] | np.ndarray) -> np.ndarray:
        if isinstance(inputs, np.ndarray):
            return inputs
        wanted = self.manifest.input.name
        if list(inputs) != [wanted]:
            raise PacketError(f"inputs {sorted(inputs)}\nhelp: this model takes one, {wanted!r}")
        return np.asarray(inputs[wanted])

    def _wanted(self) -> list[str]:
        """The head's outputs that this plan and its stand-in need."""
        names = []
        if self.plan.codec is not None:
            names.append("features" if self._codecs[self.plan.codec].bits > 8 else self.plan.codec)
        if self.plan.name == "local":
            names.append("features")
        if self.manifest.exit is not None and self.plan.name != "local":
            names.append("exit")
        return names

    def _judge(self, flight: Flight, seen: dict[str, np.ndarray]) -> None:
        record = self.manifest.exit
        if record is not None and "exit" in seen:
            flight.exit = seen["exit"]
            flight.verdict = judge(seen["exit"], record)
            if self.plan.name == "exit" or (self._gated and flight.verdict.sure):
                flight.outputs = {record.output: seen["exit"]}
                flight.plan = self.manifest.plan("exit")

    def _send(self, flight: Flight, seen: dict[str, np.ndarray]) -> None:
        assert self._link is not None and flight.plan.codec is not None  # _chosen saw to it
        started = time.monotonic()
        codec = self._codecs[flight.plan.codec]
        try:
            payload = codec.encode(next(iter(seen.values())))
            encoded = time.monotonic()
            flight.timings = replace(flight.timings, codec=1000 * (encoded - started))
            slack = None
            if self.deadline is not None:
                slack = flight.captured + self.deadline - encoded
                if slack <= 0:
                    raise DeadlineMissed(f"the head took longer than {1000 * self.deadline:.0f} ms")
            flight.pending = self._link.send(self._place, payload, slack)
        except (LinkError, PacketError) as error:
            flight.error = error

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

    def _opened(self, arrival: Arrival) -> dict[str, np.ndarray]:
        answer = arrival.answer
        if answer.status == wire.OK:
            return packet.read_outputs(self.manifest, answer)
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
            sent_bytes=flight.pending.sent_bytes,
        )

    def _result(self, flight: Flight, *, error: SplitrtError | None) -> Result:
        """An answer made here; by the exit in the server's stead if there is an error."""
        outputs, plan = flight.outputs, flight.plan.name
        if outputs is None and flight.exit is not None and self.manifest.exit is not None:
            outputs, plan = {self.manifest.exit.output: flight.exit}, "exit"
        total = 1000 * (time.monotonic() - flight.captured)
        return Result(
            outputs=outputs or {},
            where="edge" if outputs else None,
            plan=plan,
            reason=None if error is None else str(error).splitlines()[0],
            confidence=flight.verdict.confidence if flight.verdict else None,
            timings=replace(flight.timings, total=total),
            sent_bytes=flight.pending.sent_bytes if flight.pending else 0,
        )


def _offline(names: list[str]) -> str:
    """The plan of a device without a server."""
    return "exit" if "exit" in names else "local"
