"""One device's stream: Hello, then frames and pings; answers and pongs by one task that writes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc

from splitrt.cloud.admit import Bucket
from splitrt.cloud.call import PADDING, PING_BURST, PINGS, Call
from splitrt.cloud.kept import Kept
from splitrt.core import packet
from splitrt.wire import tail_pb2 as wire

if TYPE_CHECKING:
    from splitrt.cloud.front import Front

RETRY_MS = 10  # after which a device that sent too much may try again
CLOSING_MS = 1000  # after which a device may try again where the server is closing


class Stream(Call):
    """A device that is connected. Everything here runs on the server's loop."""

    def __init__(self, front: Front, device: str, context: Any) -> None:
        super().__init__(front, device, context)
        self.front = front
        self.wanted: tuple[bytes, ...] = ()  # digests of the tails that are to answer
        self.shelf = front.shelf
        self.kept: Kept | None = None
        self._pings = Bucket(PINGS, PING_BURST, self.stirred)

    async def serve(self) -> None:
        """From the first message to the last answer."""
        words = "the first message is not a Hello"
        first = await self.first(wire.ToServer, ("hello",), words)
        self.wanted = await self.front.agree(first.hello, self.context)
        # Here, not with the first write: an abort beside that write would never reach the device.
        await self.context.send_initial_metadata(())
        self.kept = self.shelf.take() if first.hello.temporal else None
        self.moves = first.hello.moves
        self._outbox.put_nowait(self._welcome())
        try:
            await self.converse()
        finally:
            self.shelf.put_back(self.kept)

    def _welcome(self) -> wire.ToEdge:
        welcome = wire.Welcome(
            protocol=packet.PROTOCOL,
            max_inflight=self.front.max_inflight,
            bases=0 if self.kept is None else self.kept.count,
        )
        return wire.ToEdge(welcome=welcome)

    async def _read(self) -> None:
        """Take what comes until the device ends, or must be stopped."""
        while isinstance(message := await self.context.read(), wire.ToServer):
            self.stirred = time.monotonic()
            if message.HasField("frame"):
                self._frame(message.frame)
            elif message.HasField("ping"):
                self._ping(message.ping)
            else:
                break
            self._unread()
        if message is not grpc.aio.EOF:
            self.break_off(grpc.StatusCode.INVALID_ARGUMENT, "neither a frame nor a ping")

    def _frame(self, frame: wire.Frame) -> None:
        self.inflight += 1
        reply = self.front.awaited(frame, self._answer, self.wanted)
        if self.front.refusing:
            reply(_busy(frame, "the server is closing", CLOSING_MS))
        elif self.inflight > self.front.max_inflight:
            words = f"more than {self.front.max_inflight} frames without answer"
            reply(_busy(frame, words, RETRY_MS))
        elif retry_ms := self.front.over_quota(self.device, frame.ByteSize(), self.stirred):
            reply(_busy(frame, "more than this device's quota", retry_ms))
        else:
            self.front.admit(frame, reply, self.wanted, self.kept)

    def _ping(self, ping: wire.Ping) -> None:
        if len(ping.padding) > PADDING:
            words = f"a ping of more than {PADDING} bytes"
            self.break_off(grpc.StatusCode.INVALID_ARGUMENT, words)
        elif self._pings.wait(1, self.stirred):
            words = f"more than {PINGS:.0f} pings a second"
            self.break_off(grpc.StatusCode.RESOURCE_EXHAUSTED, words)
        else:
            self._pings.take(1)
            waiting = self.front.batcher.waiting
            self._outbox.put_nowait(wire.ToEdge(pong=wire.Pong(seq=ping.seq, waiting=waiting)))

    def _answer(self, answer: wire.Answer) -> None:
        """Each frame comes by here exactly once."""
        self.stirred = time.monotonic()
        answer.waiting = self.front.batcher.waiting
        self._outbox.put_nowait(wire.ToEdge(answer=answer))

    def _leave(self) -> wire.ToEdge:
        return wire.ToEdge(leave=True)

    def _answers(self, message: wire.ToEdge) -> bool:
        return message.HasField("answer")


def _busy(frame: wire.Frame, words: str, retry_ms: int) -> wire.Answer:
    return packet.refusal(frame.seq, wire.BUSY, words, retry_ms)
