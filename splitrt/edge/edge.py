"""The device: each frame through head and gate, to the server and back, or answered here."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Literal

import numpy as np

from splitrt.core import packet
from splitrt.core.codec import codecs
from splitrt.core.control import LATE
from splitrt.core.estimate import Estimate
from splitrt.core.gate import Verdict, judge
from splitrt.core.jpeg import Jpeg
from splitrt.core.manifest import Manifest, Plan, Similar, Width, siblings
from splitrt.core.result import Result, Timings
from splitrt.core.side import pack, unpack
from splitrt.edge.camera import Camera
from splitrt.edge.capture import Frame, Pictures
from splitrt.edge.crossing import PATIENCE, Crossing
from splitrt.edge.ear import Deaf
from splitrt.edge.flight import Course, Flight, Witness, answered, ended, opened
from splitrt.edge.head import Head, LocalTail
from splitrt.edge.inputs import filled, parted
from splitrt.edge.link import SILENCE, Link
from splitrt.edge.pilot import Caps, Pilot, able
from splitrt.edge.pupil import Pupil
from splitrt.edge.standin import Standin, kept
from splitrt.edge.still import rule
from splitrt.edge.study import Study, View
from splitrt.edge.temporal import EVERY, Temporal
from splitrt.edge.trust import Trust
from splitrt.errors import (
    DeadlineMissed,
    LinkDown,
    LinkError,
    ModelMismatch,
    PacketError,
    SplitrtError,
)

NOTHING: Mapping[str, np.ndarray] = MappingProxyType({})


class Edge:
    """The device's half of a model directory.

    cloud: host:port of the tail server; without it everything is answered here.
    Several servers may be named, with commas: if one is lost, the next takes over.
    deadline: seconds from capture; when it is over, or the link is down, the local exit answers
    and the result's `reason` says why. With a deadline a controller chooses each frame's plan by
    what the link, the server and the head have lately taken, within `caps`; without one the gate
    answers sure frames locally and sends the others by the manifest's default plan. plan: pins
    one of the manifest's plans. It can be set between frames: every width's head is resident.
    filter: frames in which the emptiness
    filter finds nothing of interest end here, with no outputs and the plan "empty".
    tails: folders of further tails of the same head, which answer the same payload too; their
    outputs are named MODEL/OUTPUT. temporal: frames of an integer rung go as differences to
    earlier ones where that is smaller, with a keyframe at least every so many (True: 30); the
    answers are the same. similar: in a stream, a picture that changed by no more than this (grey
    levels; True: the manifest's) since the last answered one gets that answer again, with the
    plan "similar". adapt: the server adapts the exit to what the camera sees (CEMA, Chen et al.
    2024), if it was started so: of the frames of the plan's width a few that teach are told to it,
    whoever answers them, and revisions of the exit come back; the server's answer to a frame for
    which one is used is blended with what it found. trust: whom the device trusts and who
    it is; by default the link is not encrypted. standin: whether a model without an exit keeps its
    tail.onnx ready here, too, to answer in the server's stead.

        with Edge("models/cifar10-resnet", cloud="gpu-box:50700", deadline=0.1) as edge:
            result = edge({"image": image})

    A model that takes pictures of several sizes takes each as its manifest's `sizes.fit` says;
    side inputs are given by name: edge({"image": image, "size": np.array([480, 640])}). One that
    is the picture's own size may be left out.

    The local tail answers at once where the link is down, else when just its own time is left;
    a server's answer that comes meanwhile still counts. Where neither exit nor tail stands in, as
    where the tail finds no room or takes longer than the deadline, a call raises LinkDown,
    DeadlineMissed or Refused, and a stream yields a result with `where` None. ModelMismatch is
    always raised.
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
        adapt: bool = False,
        caps: Caps = Caps(),
        trust: Trust = Trust(),
        standin: bool = True,
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
        chosen = self._chosen(plan)
        self._codecs = codecs(folder, self.manifest)
        self._heads = {
            width.name: Head(folder, self.manifest, width, threads=threads, provider=provider)
            for width in self.manifest.widths
        }
        self._filter = filter
        if filter and not any(width.filter for width in self.manifest.widths):
            raise SplitrtError(f"{folder} has no emptiness filter\nhelp: export one with filter=")
        self._tail: LocalTail | None = None
        self._ready(chosen)
        self._temporal: Temporal | None = None
        if temporal is not False:
            self._temporal = Temporal(EVERY if temporal is True else temporal)
        pilot: Pilot | None = None
        gated = plan is None and chosen.place == "cloud"
        if gated and deadline is not None and able(self.manifest):
            seconds = {name: head.seconds for name, head in self._heads.items()}
            pilot = Pilot(self.manifest, seconds, caps=caps, patience=deadline)
        self._course = Course(chosen, gated, pilot)
        self.witness: Witness | None = None  # see `traced`
        study = self._study(chosen) if adapt else None
        self._link: Link | None = None
        self._crossing: Crossing | None = None
        self._standin: Standin | None = None
        if cloud is not None and chosen.place == "cloud":
            if standin:
                self._standin = kept(
                    folder, self.manifest, self._heads, deadline=deadline, threads=threads
                )
            if self._standin is not None:
                self._tail = self._standin.tail
            ear = pilot or Deaf(max(SILENCE, self.patience))
            asks = self._temporal is not None
            self._link = Link(
                cloud, self.manifest, ear=ear, also=self._also, temporal=asks, trust=trust
            )
            self._crossing = Crossing(
                self.manifest,
                self._codecs,
                self._link,
                deadline=deadline,
                temporal=self._temporal,
                standin=self._standin,
            )
        self._pupil = None if study is None else Pupil(cloud or "", study, trust=trust)

    @property
    def plan(self) -> str:
        """The plan of the next frame, by name. Setting one pins it."""
        return self._course.plan.name

    @plan.setter
    def plan(self, name: str) -> None:
        chosen = self._chosen(name)
        if chosen.place == "cloud" and self._link is None:
            raise SplitrtError(f"this Edge left the server out\nhelp: open one with plan={name!r}")
        self._ready(chosen)
        self._course = Course(chosen, gated=False)

    @property
    def up(self) -> bool | None:
        """Whether a server is reached now; None where none is asked."""
        return None if self._link is None else self._link.up

    @property
    def standin(self) -> Literal["exit", "local"] | None:
        """Who answers where the server does not: an exit, the local tail, or nobody."""
        if any(width.exit is not None for width in self.manifest.widths):
            return "exit"
        return None if self._standin is None else "local"

    @property
    def estimate(self) -> Estimate | None:
        """What is believed of the link and the server; None without a controller."""
        pilot = self._course.pilot
        return None if pilot is None else pilot.state.link

    @property
    def revision(self) -> int:
        """Number of the exit's revision in use; 0: the exit is as it was shipped."""
        return 0 if self._pupil is None else self._pupil.study.used

    def revert(self) -> None:
        """Answer by the exit as it was shipped, until the server has a newer revision."""
        if self._pupil is not None:
            self._pupil.revert()

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
        if self._pupil is not None:
            self._pupil.close()

    def __call__(self, inputs: Mapping[str, np.ndarray] | np.ndarray) -> Result:
        """Answer one input; the deadline starts now."""
        array, side = parted(self.manifest, inputs)
        flight = self.launch(array, time.monotonic(), side)
        result, error = self.land(flight)
        if error is not None and (result.where is None or isinstance(error, ModelMismatch)):
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
        course = self._course
        flight, pilot = Flight(captured, course, course.plan), course.pilot
        if pilot is not None and not self._steered(flight, pilot):
            return flight
        width = self.manifest.width(flight.plan)
        head = self._heads[width.name]
        started = time.monotonic()
        prepared = flight.prepared = head.prepare(array)
        parts = pack(self.manifest.side, {**filled(self.manifest, array), **side})
        flight.beside = packet.Beside(head.size(prepared), parts)
        wanted = self._wanted(flight.plan, head)
        seen = head(prepared, wanted) if wanted else {}
        after_head = time.monotonic()
        if pilot is not None and wanted:
            pilot.ran(width, after_head - started)
        plan = flight.plan
        self._judge(flight, width, seen)
        after_gate = time.monotonic()
        flight.timings = Timings(
            capture=1000 * (started - captured),
            head=1000 * (after_head - started),
            gate=1000 * (after_gate - after_head),
        )
        probe = flight.decision is not None and flight.decision.probe
        if flight.empty is not None or (flight.outputs is not None and not probe):
            return flight
        if plan.place == "cloud":
            pictured = self.manifest.pictured(plan)
            if self._standin is not None and head is self._standin.head:
                flight.features = seen.get("features")
            assert self._crossing is not None  # _chosen saw to it
            codes = prepared if pictured else next(iter(seen.values()))
            self._crossing.send(flight, plan, codes, self.witness)
        elif self._tail is not None:
            flight.outputs = self._tail(seen["features"], unpack(self.manifest.side, parts))
            ran = 1000 * (time.monotonic() - after_gate)
            flight.timings = replace(flight.timings, tail=ran)
        return flight

    def land(self, flight: Flight) -> tuple[Result, SplitrtError | None]:
        """Wait for the answer until the deadline, else stand in; and what went wrong."""
        result, error = self._landed(flight)
        return self._seen(flight, result), error

    def failed(self, captured: float, error: SplitrtError) -> Result:
        """The result of a frame that could not even start."""
        flight = self._idle(captured)
        return self._seen(flight, ended(flight, self.manifest, error))

    def repeated(self, captured: float, result: Result) -> Result:
        """The result of a frame that is like one before, which had this one; it ends now."""
        total = 1000 * (time.monotonic() - captured)
        again = replace(result, timings=replace(result.timings, total=total))
        return self._seen(self._idle(captured), again)

    def _idle(self, captured: float) -> Flight:
        """A frame that passes nothing."""
        course = self._course
        return Flight(captured, course, course.plan)

    def _seen(self, flight: Flight, result: Result) -> Result:
        if self.witness is not None:
            self.witness.ended(flight, result)
        return result

    def _landed(self, flight: Flight) -> tuple[Result, SplitrtError | None]:
        if self._crossing is None or flight.pending is None or flight.outputs is not None:
            return ended(flight, self.manifest, flight.error), flight.error
        try:
            arrival = self._crossing.arrival(flight)
            outputs = opened(flight, arrival, self.manifest, self._also)
        except (LinkError, ModelMismatch, PacketError) as error:
            self._crossing.stand_in(flight)
            return ended(flight, self.manifest, error), error
        if self._pupil is not None and flight.view is not None:
            self._advise(self._pupil, flight, flight.view, outputs)
        return answered(flight, arrival, outputs), None

    def _advise(
        self, pupil: Pupil, flight: Flight, view: View, outputs: dict[str, np.ndarray]
    ) -> None:
        """The server's own logits judge the revision; then they are what it makes of them."""
        name, pictured = pupil.study.record.output, self.manifest.pictured(flight.plan)
        pupil.compare(view, outputs[name])
        outputs[name] = pupil.study.blend(view, outputs[name], pictured=pictured)

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

    def _study(self, chosen: Plan) -> Study:
        """Of the exit that stands in for that plan, or answers by it."""
        if self._cloud is None:
            raise SplitrtError("adapt needs a server\nhelp: pass cloud='host:50700'")
        return Study(self._folder, self.manifest, self.manifest.width(chosen), self._codecs)

    def _ready(self, plan: Plan) -> None:
        """Load what the plan needs beside the heads."""
        if plan.place == "edge" and not plan.exits and self._tail is None:
            self._tail = LocalTail(self._folder, self.manifest, threads=self._threads)

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
        own = self._standin is not None and head is self._standin.head
        if own and names and "features" not in names:
            names.append("features")
        rung = None if self._pupil is None else self._pupil.study.rung_of(head.width)
        if rung is not None and "exit" in names and rung not in names:
            names.append(rung)
        return names

    def _steered(self, flight: Flight, pilot: Pilot) -> bool:
        """The controller's plan for a frame; False if there is none and no time for any."""
        left = flight.captured + self.patience - time.monotonic()
        decision = pilot.choose(left)
        if decision.option is not None:
            flight.decision, flight.plan = decision, self.manifest.plan(decision.option.name)
            return True
        here = pilot.here(left) if decision.action == "local" else None
        if here is None and self._standin is not None and self._standin.whole < left:
            here = self._standin.plan
        if here is None:
            late = decision.reason == LATE
            flight.error = (DeadlineMissed if late else LinkDown)(decision.reason)
            return False
        flight.plan, flight.why = here, decision.reason
        return True

    def _judge(self, flight: Flight, width: Width, seen: dict[str, np.ndarray]) -> None:
        if "filter" in seen and width.filter is not None:
            score = float(seen["filter"].item())
            if score < width.filter.threshold:
                flight.empty = f"nothing of interest: {score:.2f} < {width.filter.threshold:.2f}"
                return
        record = width.exit
        if record is not None and "exit" in seen:
            flight.view = self._viewed(width, seen)
            logits = seen["exit"] if flight.view is None else flight.view.logits
            flight.exit = {record.output: logits}
            flight.verdict = judge(logits, record)
            exits = self.manifest.exit_plan(width)
            if exits is not None and self._stays(flight, flight.verdict):
                flight.outputs, flight.plan = flight.exit, exits

    def _viewed(self, width: Width, seen: dict[str, np.ndarray]) -> View | None:
        """The exit's logits and what a revision makes of them; None where it is not adapted."""
        pupil = self._pupil
        rung = None if pupil is None else pupil.study.rung_of(width)
        return None if pupil is None or rung is None else pupil.see(seen["exit"], seen[rung])

    def _stays(self, flight: Flight, verdict: Verdict) -> bool:
        """Whether the exit's answer is the frame's."""
        pilot, decision = flight.course.pilot, flight.decision
        if flight.plan.exits:
            return True
        if pilot is not None and decision is not None:
            return not pilot.confirms(decision, verdict)
        return flight.course.gated and verdict.sure


def _offline(manifest: Manifest) -> str:
    """The plan of a device without a server: the widest head's exit, else the whole tail."""
    exits = manifest.exit_plan(manifest.widths[-1])
    return "local" if exits is None else exits.name
