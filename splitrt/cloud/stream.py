"""One device's stream: Hello, then frames and pings; answers and pongs by one task that writes."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from splitrt.cloud.admit import Bucket
from splitrt.cloud.kept import Kept
from splitrt.core import packet
from splitrt.wire import tail_pb2 as wire

if TYPE_CHECKING:
    from splitrt.cloud.front import Front

logger = logging.getLogger(__name__)

HANDSHAKE = 5.0  # seconds for the preface, and for the first message
UNREAD = 100  # times max_inflight: answers a device may leave unread
RETRY_MS = 10  # after which a device that sent too much may try again
PADDING = 1 << 10  # bytes of a ping
PINGS = 20.0  # a second
PING_BURST = 40.0
LAST_WRITE = 1.0  # seconds, before a stream that is broken off
CLOSING_MS = 1000  # after which a device may try again where the server is closing

Refusal: TypeAlias = "tuple[grpc.StatusCode, str]"


class Stream:
    """A device that is connected. Everything here runs on the server's loop."""

    def __init__(self, front: Front, device: str, context: Any) -> None:
        self.front, self.device, self.context = front, device, context
        self.wanted: tuple[bytes, ...] = ()  # digests of the tails that are to answer
        self.inflight = 0  # frames whose answers were not written: who reads none holds but few
        self.stirred = time.monotonic()  # when something last came or was answered
        self.shelf = front.shelf
        self.kept: Kept | None = None
        self._outbox: asyncio.Queue[wire.ToEdge | None] = asyncio.Queue()
        self._pings = Bucket(PINGS, PING_BURST, self.stirred)
        self._broken: Refusal | None = None
        self._ended = False  # nothing more is read

    async def serve(self) -> None:
        """From the first message to the last answer."""
        hello = await self._hello()
        self.wanted = await self.front.agree(hello, self.context)
        # Here, not with the first write: an abort beside that write would never reach the device.
        await self.context.send_initial_metadata(())
        self.kept = self.shelf.take() if hello.temporal else None
        self._outbox.put_nowait(self._welcome())
        self._reading = asyncio.create_task(self._read())
        self._writing = asyncio.create_task(self._write())
        self.front.streams.add(self)
        try:
            await asyncio.wait({self._reading, self._writing}, return_when=asyncio.FIRST_COMPLETED)
            if self._broken is None:
                self._end()
                await asyncio.wait({self._writing})
            else:  # a write that is cancelled midway would make gRPC lose the status, too
                await asyncio.wait({self._writing}, timeout=LAST_WRITE)
        finally:
            self.front.streams.discard(self)
            self.shelf.put_back(self.kept)
            await self._stop()
        if self._broken is not None:
            await self.context.abort(*self._broken)

    async def _stop(self) -> None:
        """End both tasks. gRPC's own errors say that the device is gone."""
        tasks = (self._reading, self._writing)
        for task in tasks:
            task.cancel()
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(error, Exception) and not isinstance(error, grpc.aio.BaseError):
                logger.error("a stream failed", exc_info=error)
                self._broken = grpc.StatusCode.INTERNAL, "the server failed"

    def leave(self) -> None:
        """Read no more; what is in flight is still answered."""
        self._reading.cancel()

    def quiet(self, seconds: float) -> bool:
        """Whether nothing is in flight, and nothing came or went for so long."""
        return self.inflight == 0 and time.monotonic() - self.stirred > seconds

    def break_off(self, code: grpc.StatusCode, words: str) -> None:
        """End the stream now, whatever is in flight."""
        self._broken = code, words
        self._reading.cancel()
        self._outbox.put_nowait(None)  # wakes the writer

    async def _hello(self) -> wire.Hello:
        try:
            first = await asyncio.wait_for(self.context.read(), HANDSHAKE)
        except asyncio.TimeoutError:
            first = None
        if not isinstance(first, wire.ToServer) or not first.HasField("hello"):
            await self.context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "the first message is not a Hello"
            )
        return first.hello

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
            if self._outbox.qsize() > UNREAD * self.front.max_inflight:
                self.break_off(grpc.StatusCode.RESOURCE_EXHAUSTED, "answers not read")
        if message is not grpc.aio.EOF:
            self.break_off(grpc.StatusCode.INVALID_ARGUMENT, "neither a frame nor a ping")

    def _frame(self, frame: wire.Frame) -> None:
        self.inflight += 1
        reply = self.front.tally.awaited(self._answer)
        if self.front.refusing:
            reply(_busy(frame, "the server is closing", CLOSING_MS))
        elif self.inflight > self.front.max_inflight:
            words = f"more than {self.front.max_inflight} frames without answer"
            reply(_busy(frame, words, RETRY_MS))
        elif retry_ms := self.front.over_quota(self.device, frame, self.stirred):
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

    def _end(self) -> None:
        """The device or the server has done: the writer ends after the last answer."""
        self._ended = True
        if self.inflight == 0:
            self._outbox.put_nowait(None)

    async def _write(self) -> None:
        """The only one who writes: concurrent writes lose answers."""
        while (message := await self._outbox.get()) is not None and self._broken is None:
            await self.context.write(message)
            if message.HasField("answer"):
                self.inflight -= 1
                if self._ended:
                    self._end()


def _busy(frame: wire.Frame, words: str, retry_ms: int) -> wire.Answer:
    return packet.refusal(frame.seq, wire.BUSY, words, retry_ms)
