"""Each frame as a trace: a span for every word of the sentence that it passed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from splitrt.core import trace
from splitrt.core.result import Result, Timings
from splitrt.edge.flight import Flight

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from splitrt.core.spans import Spans
    from splitrt.edge.edge import Edge

HERE = ("capture", "head", "gate", "codec")  # one after the other, from the capture on
ALONE = ("capture", "head", "gate", "tail")  # where it is not sent
THERE = ("server", "batch", "tail")  # what the server told
TOLD = ("plan", "where", "sent_bytes", "reason", "confidence")


def traced(edge: Edge) -> Edge:
    """The same Edge, whose frames are traces from now on.

        with traced(Edge("models/cifar10-resnet", cloud="gpu-box:50700")) as edge:

    Spans go to OpenTelemetry's global tracer provider, which the program sets up. Each frame is
    the root span `frame`; its children are capture, head, gate, codec, link, and a local tail. A
    frame that is recorded carries 27 bytes more, and a server that traces too adds server, batch
    and tail under `link`: by its own clock, which may differ from this machine's; nothing but who
    looks at a trace ever compares the two. SplitrtError without the extra `trace`.
    """
    edge.witness = Tracer(trace.spans(), edge.manifest.name)
    return edge


@dataclass(frozen=True, slots=True, eq=False)
class Trip:
    """The spans of a frame that are not over yet.

    offset: from time.monotonic() in ns to ns since 1970, as it was when the frame was sent.
    """

    root: Span
    link: Span | None
    offset: int

    def at(self, monotonic: float) -> int:
        """Nanoseconds since 1970."""
        return self.offset + int(1e9 * monotonic)


class Tracer:
    """Makes a frame's spans when it has ended; before, only those whose ids it carries."""

    def __init__(self, spans: Spans, model: str) -> None:
        self._spans, self._model = spans, model

    def sends(self, flight: Flight, at: float) -> bytes:
        """What the frame, which goes to the server now, carries in its field `trace`."""
        trip = flight.trip = self._begun(flight)
        if not trip.root.is_recording():
            return b""
        link = self._spans.begin("link", trip.at(at), trip.root)
        flight.trip = Trip(trip.root, link, trip.offset)
        there = self._spans.mark(link)
        return b"" if there is None else there.packed()

    def ended(self, flight: Flight, result: Result) -> None:
        """The frame has a result."""
        trip = self._begun(flight) if flight.trip is None else flight.trip
        if not trip.root.is_recording():
            return
        over = trip.at(flight.captured + result.timings.total / 1000)
        self._pass(result.timings, trip, flight.captured)
        if trip.link is not None:
            alone = result.where != "cloud" and flight.outputs is None
            if result.where == "cloud":
                there = {f"splitrt.{word}_ms": getattr(result.timings, word) for word in THERE}
                trip.link.set_attributes(there)
            self._spans.end(trip.link, over, result.reason if alone else None)
        told = {word: getattr(result, word) for word in TOLD}
        known = {f"splitrt.{word}": value for word, value in told.items() if value is not None}
        trip.root.set_attributes(known)
        self._spans.end(trip.root, over, result.reason if result.where is None else None)

    def _pass(self, timings: Timings, trip: Trip, captured: float) -> None:
        """Spans of what the frame passed here, one after the other."""
        for word in ALONE if trip.link is None else HERE:
            took = getattr(timings, word) / 1000
            if took:
                self._spans.add(word, trip.at(captured), trip.at(captured + took), trip.root)
            captured += took

    def _begun(self, flight: Flight) -> Trip:
        offset = time.time_ns() - time.monotonic_ns()
        start = offset + int(1e9 * flight.captured)
        about = {"splitrt.model": self._model}
        return Trip(self._spans.begin("frame", start, attributes=about), None, offset)
