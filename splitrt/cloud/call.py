"""One device's call: what comes is read, and one task writes what is for it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

if TYPE_CHECKING:
    from splitrt.cloud.reception import Reception

logger = logging.getLogger(__name__)

HANDSHAKE = 5.0  # seconds for the preface, and for the first message
UNREAD = 100  # times max_inflight: answers a device may leave unread
PADDING = 1 << 10  # bytes of a ping
PINGS = 20.0  # a second
PING_BURST = 40.0
LAST_WRITE = 1.0  # seconds, before a stream that is broken off
JITTER = 0.1  # of a stream's age: who came together does not leave together
QUIET = 0.1  # seconds without a message, after which a stream may end though nobody agreed to it

Refusal: TypeAlias = "tuple[grpc.StatusCode, str]"


class Call:
    """A device that is connected. Everything here runs on the server's loop."""

    def __init__(self, reception: Reception, device: str, context: Any) -> None:
        self.reception, self.device, self.context = reception, device, context
        self.moves = self._asked = False  # the device understands `leave`; it was told
        self.inflight = 0  # whose answers were not written: who reads none holds but few
        self.began = self.stirred = time.monotonic()  # stirred: something came or was answered
        self.share = random.uniform(1 - JITTER, 1 + JITTER)  # of the age at which it is sent on
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()
        self._broken: Refusal | None = None
        self._ended = False  # nothing more is read

    async def converse(self) -> None:
        """From what is in the outbox now to the last answer."""
        self._reading = asyncio.create_task(self._read())
        self._writing = asyncio.create_task(self._write())
        self.reception.streams.add(self)
        try:
            await asyncio.wait({self._reading, self._writing}, return_when=asyncio.FIRST_COMPLETED)
            if self._broken is None:
                self._end()
            await asyncio.wait({self._writing})  # which `break_off` ends, too
        finally:
            self.reception.streams.discard(self)
            await self._stop()
        if self._broken is not None:
            await self.context.abort(*self._broken)

    async def first(self, kind: type, names: tuple[str, ...], words: str) -> Any:
        """The first message, if it is of those; else the call ends with these words."""
        try:
            message = await asyncio.wait_for(self.context.read(), HANDSHAKE)
        except asyncio.TimeoutError:
            message = None
        if not isinstance(message, kind) or message.WhichOneof("kind") not in names:
            await self.context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)
        return message

    def part(self) -> bool:
        """Ask the device to go to another server; end one that does not know how when it is quiet.

        It sends on until it has read that, and what it sent is answered: nothing is lost. False if
        it was asked before, or cannot be now.
        """
        if not self.moves and self.quiet(QUIET):
            self.leave()
            return True
        if self.moves and not self._asked:
            self._asked = True
            self._outbox.put_nowait(self._leave())
            return True
        return False

    def leave(self) -> None:
        """Read no more; what is in flight is still answered."""
        self._reading.cancel()

    def quiet(self, seconds: float) -> bool:
        """Whether nothing is in flight, and nothing came or went for so long."""
        return self.idle and time.monotonic() - self.stirred > seconds

    @property
    def idle(self) -> bool:
        """Whether all that came was answered."""
        return self.inflight == 0

    def break_off(self, code: grpc.StatusCode, words: str) -> None:
        """End the call now, whatever is in flight, and though it has ended but for the writer."""
        if self._broken is not None:
            return
        self._broken = code, words
        self._reading.cancel()
        self._outbox.put_nowait(None)  # wakes the writer
        # Not at once: a write that is cancelled midway would make gRPC lose the status, too.
        self.reception.loop.call_later(LAST_WRITE, self._writing.cancel)

    async def _stop(self) -> None:
        """End both tasks. gRPC's own errors say that the device is gone."""
        tasks = (self._reading, self._writing)
        for task in tasks:
            task.cancel()
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(error, Exception) and not isinstance(error, grpc.aio.BaseError):
                logger.error("a stream failed", exc_info=error)
                self._broken = grpc.StatusCode.INTERNAL, "the server failed"

    def _unread(self) -> None:
        """Break off who leaves too much unread."""
        if self._outbox.qsize() > UNREAD * self.reception.max_inflight:
            self.break_off(grpc.StatusCode.RESOURCE_EXHAUSTED, "answers not read")

    async def _read(self) -> None:
        """Take what comes until the device ends, or must be stopped."""
        raise NotImplementedError

    def _leave(self) -> Any:
        """The message that asks the device to go on."""
        raise NotImplementedError

    def _answers(self, message: Any) -> bool:
        """Whether a message is the answer to something that was in flight."""
        raise NotImplementedError

    def _end(self) -> None:
        """The device or the server has done: the writer ends after the last answer."""
        self._ended = True
        if self.idle:
            self._outbox.put_nowait(None)

    async def _write(self) -> None:
        """The only one who writes: concurrent writes lose answers."""
        while (message := await self._outbox.get()) is not None and self._broken is None:
            await self.context.write(message)
            if self._answers(message):
                self.inflight -= 1
                if self._ended:
                    self._end()
