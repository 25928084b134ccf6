"""One frame over the cut: encoded, sent, waited for until its deadline, then stood in for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import replace
from typing import TypeGuard

import numpy as np

from splitrt.core.codec import Codec
from splitrt.core.jpeg import Jpeg
from splitrt.core.manifest import Manifest, Plan
from splitrt.edge.flight import Flight, Witness
from splitrt.edge.link import Link
from splitrt.edge.parcel import Arrival, Parcel
from splitrt.edge.standin import Standin
from splitrt.edge.temporal import Temporal
from splitrt.errors import DeadlineMissed, LinkError, ModelMismatch, PacketError
from splitrt.wire import tail_pb2 as wire

MARGIN = 0.002  # seconds before the deadline at which the exit stands in
EARLY = 0.02  # seconds that a local tail begins before it must: a busy machine wakes nobody in time
PATIENCE = 10.0  # seconds a frame may take when no deadline is given


class Crossing:
    """The way to the server and back, frame by frame.

    deadline: seconds from capture; without one a frame is given up after PATIENCE.  temporal: makes
    differences to earlier frames.  standin: the local tail, where it answers for a late server.
    """

    def __init__(
        self,
        manifest: Manifest,
        codecs: Mapping[str, Codec | Jpeg],
        link: Link,
        *,
        deadline: float | None,
        temporal: Temporal | None,
        standin: Standin | None,
    ) -> None:
        self.manifest, self.codecs, self.link = manifest, codecs, link
        self.deadline, self.temporal, self.standin = deadline, temporal, standin
        self.patience = PATIENCE if deadline is None else deadline

    def send(
        self, flight: Flight, plan: Plan, codes: np.ndarray, witness: Witness | None = None
    ) -> None:
        """Put a frame's codes, or its picture, on the way; if that fails, `flight.error` is why.

        Then the local tail answers at once, where it stands in.
        """
        started = time.monotonic()
        codec = self.codecs[plan.name]
        if self.manifest.sizes is not None:
            codec = codec.sized(codes.shape)
        try:
            payload, delta = codec.encode(codes), None
            if self.temporal is not None and flight.outputs is None and _differs(codec):
                packed = flight.packed = codec.pack(codes)
                delta = self.temporal.delta(flight.alike, codec, packed, payload)
            encoded = time.monotonic()
            flight.timings = replace(flight.timings, codec=1000 * (encoded - started))
            until = None if self.deadline is None else flight.captured + self.deadline
            if until is not None and encoded >= until:
                raise DeadlineMissed(f"the head took longer than {1000 * self.patience:.0f} ms")
            if witness is not None:
                flight.beside = replace(flight.beside, trace=witness.sends(flight, encoded))
            place = self.manifest.plans.index(plan)
            flight.parcel = Parcel(place, payload, until, flight.beside)
            flight.pending = self.link.send(flight.parcel, delta)
            self._remember(flight)
        except (LinkError, ModelMismatch, PacketError) as error:
            answered = flight.outputs is not None and not isinstance(error, ModelMismatch)
            flight.error = None if answered else error
            if flight.error is not None:
                self.stand_in(flight)

    def arrival(self, flight: Flight) -> Arrival:
        """The server's answer to a frame that was sent; else what `Link` and the deadline raise."""
        arrival = self._arrival(flight)
        if arrival.answer.status == wire.NEED_KEY and flight.packed is not None:
            return self._again(flight)
        return arrival

    def stand_in(self, flight: Flight) -> None:
        """Have the local tail answer, if it is there and can still do so in time."""
        if self.standin is not None and flight.outputs is None:
            self.standin.answer(flight, flight.captured + self.patience)

    def _remember(self, flight: Flight) -> None:
        if self.temporal is not None and flight.packed is not None and flight.pending is not None:
            self.temporal.remember(flight.pending, flight.alike, flight.packed)

    def _again(self, flight: Flight) -> Arrival:
        """Send the frame as a keyframe: the server had not kept what it was a difference to."""
        assert flight.pending is not None and flight.parcel is not None
        if flight.parcel.until is not None and time.monotonic() >= flight.parcel.until:
            raise DeadlineMissed(f"no keyframe within {1000 * self.patience:.0f} ms")
        again = self.link.send(flight.parcel)
        flight.in_vain, flight.pending = flight.pending.sent_bytes, again
        self._remember(flight)
        return self._arrival(flight)

    def _arrival(self, flight: Flight) -> Arrival:
        assert flight.pending is not None
        until = flight.captured + self.patience - (MARGIN if flight.exit is not None else 0.0)
        late = DeadlineMissed(f"no answer within {1000 * self.patience:.0f} ms")
        try:
            arrival = self._awaited(flight, flight.pending.future, until)
        except (FutureTimeout, CancelledError):
            flight.pending.future.cancel()
            raise late from None
        if arrival.at > until:
            raise late
        return arrival

    def _awaited(self, flight: Flight, future: Future[Arrival], until: float) -> Arrival:
        """What comes by then; a tail that stands in runs meanwhile, when just its time is left."""
        if self.standin is not None:
            begin = until - self.standin.seconds(flight) - EARLY
            with suppress(FutureTimeout):
                return future.result(max(0.0, begin - time.monotonic()))
            self.stand_in(flight)
            if flight.local is not None:
                until -= MARGIN
        return future.result(max(0.0, until - time.monotonic()))


def _differs(codec: Codec | Jpeg) -> TypeGuard[Codec]:
    """Whether one frame's codes can be a difference to another's."""
    return codec.codes
