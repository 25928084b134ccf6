"""Streams of a static camera: what of the last frames the next one may be a difference to."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from splitrt.core import delta
from splitrt.core.codec import Codec
from splitrt.edge.parcel import Delta, Pending
from splitrt.errors import SplitrtError
from splitrt.wire import tail_pb2 as wire

EVERY = 30  # frames; a keyframe comes at the latest after so many


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """A frame that was sent, and the packed codes that it carried."""

    pending: Pending
    plan: str
    packed: bytes


class Temporal:
    """The codes of the last few frames that were sent.

    every: one frame in so many is a keyframe, or more. A base is only ever a frame that the
    server has answered on the same stream, so both hold the same codes and no error can build up.
    """

    def __init__(self, every: int = EVERY) -> None:
        if every < 1:
            raise SplitrtError(f"a keyframe every {every} frames\nhelp: 1 or more")
        self.every = every
        self._sent: deque[Sent] = deque(maxlen=delta.KEPT)
        self._since = 0  # frames since the last keyframe
        self._lock = threading.Lock()  # frames are sent by one thread, sent again by another

    def delta(self, plan: str, codec: Codec, packed: bytes, key: bytes) -> Delta | None:
        """The frame as a difference, if there is a base and it is smaller than `key`."""
        base = self._base(plan)
        if base is None:
            return None
        payload = delta.encode(packed, base.packed, codec.bits)
        cost = wire.Frame(base=base.pending.seq).ByteSize()
        if len(payload) + cost >= len(key):
            return None
        return Delta(base.pending.stream, base.pending.seq, payload)

    def remember(self, pending: Pending, plan: str, packed: bytes) -> None:
        """A frame is on its way."""
        with self._lock:
            self._since = self._since + 1 if pending.base else 0
            self._sent.append(Sent(pending, plan, packed))

    def _base(self, plan: str) -> Sent | None:
        """The newest frame that was answered; None if it is time for a keyframe.

        Nothing older than a frame for which the server asked a keyframe is trusted.
        """
        with self._lock:
            if self._since + 1 >= self.every:
                return None
            for sent in reversed(self._sent):
                status = _status(sent.pending)
                if status == wire.NEED_KEY:
                    return None
                if status == wire.OK and sent.plan == plan:
                    return sent
        return None


def _status(pending: Pending) -> int | None:
    """What the server said of a frame; None if it has not answered, or nobody waits for it."""
    future = pending.future
    if not future.done() or future.cancelled() or future.exception() is not None:
        return None
    return future.result().answer.status
