"""What the link hears, told to who decides: answers, connections, breaks."""

from __future__ import annotations

from typing import Protocol

from splitrt.wire import tail_pb2 as wire


class Ear(Protocol):
    """Who wants to know what the link sees; called on the link's threads."""

    def sent(self, seq: int, size: int, at: float) -> None:
        """A message of so many bytes is about to leave: a frame, or the same one once more."""

    def answered(self, seq: int, answer: wire.Answer, at: float) -> None:
        """An answer came at that time.monotonic(), in time or late."""

    def opened(self, took: float) -> None:
        """A connection is open, or a ping came back, after so many seconds."""

    def broke(self) -> None:
        """The connection is gone, and with it all that was on its way."""

    def silence(self) -> float:
        """Seconds without an answer after which the connection is given up."""


class Deaf:
    """An Ear for those who do not listen; patient for a fixed time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def sent(self, seq: int, size: int, at: float) -> None:
        pass

    def answered(self, seq: int, answer: wire.Answer, at: float) -> None:
        pass

    def opened(self, took: float) -> None:
        pass

    def broke(self) -> None:
        pass

    def silence(self) -> float:
        return self.seconds
