"""A frame on its way: what it carries, what it is a difference to, what will become of it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from splitrt.core import packet
from splitrt.wire import tail_pb2 as wire

AGAIN = 1.0  # seconds: an older frame without a deadline is not sent again


@dataclass(frozen=True, slots=True)
class Arrival:
    """An answer and the time.monotonic() at which it came."""

    answer: wire.Answer
    at: float


@dataclass(frozen=True, slots=True)
class Delta:
    """A frame's payload as its difference to frame `base`, answered on stream number `stream`."""

    stream: int
    base: int
    payload: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """A frame as it can be sent: place in the list of plans, keyframe payload, what is beside it.

    until: time.monotonic() of its deadline; None for none.
    """

    plan: int
    payload: bytes
    until: float | None = None
    beside: packet.Beside = packet.Beside()

    def message(self, seq: int, now: float, delta: Delta | None = None) -> wire.ToServer:
        """The frame on the wire; `delta` goes in the payload's place."""
        slack = None if self.until is None else self.until - now
        if delta is None:
            return packet.frame(seq, self.plan, self.payload, slack, self.beside)
        return packet.frame(seq, self.plan, delta.payload, slack, self.beside, delta.base)


@dataclass(slots=True, eq=False)
class Pending:
    """A frame on its way. `future` ends as an Arrival or a LinkError.

    A frame given up by cancelling the future stays on the link's list until it is answered or the
    link breaks: it still fills its place and its silence still counts.
    """

    seq: int
    sent_at: float
    sent_bytes: int
    future: Future[Arrival]
    stream: int  # counts the connections
    base: int  # 0: a keyframe
    parcel: Parcel
    again: bool = False  # it was sent to a second server
    last: float = 0.0  # time.monotonic() of its last sending

    def fresh(self, now: float) -> bool:
        """Whether it is worth sending again: once, in time, and somebody waits for it."""
        until = self.parcel.until
        in_time = now - self.sent_at < AGAIN if until is None else now < until
        return in_time and not self.again and not self.future.done()
