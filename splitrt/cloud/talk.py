"""Calls of devices that hold the first layers of a language model: sessions over gRPC."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import grpc

from splitrt.cloud.admit import Bucket, Quota
from splitrt.cloud.call import PING_BURST, PINGS, Call
from splitrt.cloud.identity import Guard, Tokens
from splitrt.cloud.layers import Layers
from splitrt.cloud.reception import Reception
from splitrt.cloud.schedule import RETRY_MS, Event, Scheduler
from splitrt.cloud.session import MOST_DRAFTS, MOST_ROWS, Job, Promise, Trouble
from splitrt.cloud.turn import Room
from splitrt.core import packet
from splitrt.core.language import Language
from splitrt.core.rows import CODECS, TOKEN, Rows
from splitrt.core.sample import Sampling
from splitrt.errors import ModelMismatch, PacketError
from splitrt.wire import decode_pb2 as wire
from splitrt.wire import tail_pb2

logger = logging.getLogger(__name__)

SERVICE = "splitrt.wire.Decoder"
MOST_JOBS = 1024  # messages of a call that wait
MOST_BYTES = 64 << 20  # of payload that wait, of a call
ALL_BYTES = 512 << 20  # of all calls
CLOSING_MS = 1000  # after which a device may try again where the server is closing


class Talks(Reception):
    """All calls of devices that talk to a language model."""

    def __init__(
        self,
        layers: Layers,
        room: Room,
        *,
        max_inflight: int,
        guard: Guard,
        tokens: Tokens | None,
        quota: Quota,
        max_age: float | None = None,
        threads: int | None,
    ) -> None:
        super().__init__(
            max_inflight=max_inflight, guard=guard, tokens=tokens, quota=quota, max_age=max_age
        )
        self.manifest = layers.manifest
        self.bytes = self.asking = 0  # that wait: payload, Asks
        self.scheduler = Scheduler(
            layers, room, self._deliver, max_inflight=max_inflight, threads=threads
        )

    @property
    def names(self) -> set[str]:
        """Of the models that are served now."""
        return {self.manifest.name}

    @property
    def waiting(self) -> int:
        """Asks that were taken and not answered yet."""
        return self.asking

    @property
    def gauges(self) -> dict[str, int]:
        """What there is now, by name."""
        return {**super().gauges, "sessions": self.scheduler.sessions}

    def close(self) -> None:
        """End the scheduler; waits for it."""
        self.scheduler.close()

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's one call."""
        session = grpc.stream_stream_rpc_method_handler(
            self.tally.guarded(self._session),
            packet.reader(wire.ToDecoder),
            wire.FromDecoder.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Session": session})

    async def agree(self, message: wire.Open | wire.Resume, context: Any) -> None:
        """The call ends unless the device speaks this protocol and holds this model."""
        hello = tail_pb2.Hello(protocol=message.protocol, manifest=message.manifest)
        try:
            packet.agree({self.manifest.digest: True}, hello)
        except ModelMismatch as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def promise(self, message: wire.Open, context: Any) -> Promise:
        """What an Open asks for; the call ends if it cannot be had."""
        try:
            return promised(self.manifest, message, self.scheduler.longest)
        except PacketError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    async def _session(self, _: Any, context: Any) -> None:
        device = await self.enter(context)
        await Talk(self, device, context).serve()

    def _deliver(self, events: Sequence[Event]) -> None:
        """From the scheduler's thread to the loop: one wake-up for all."""
        try:
            self.loop.call_soon_threadsafe(_tell_all, events)
        except RuntimeError:  # the loop has ended: the devices are gone too
            logger.debug("%d answers came after the end", len(events))


class Talk(Call):
    """One call of one device, for one session."""

    def __init__(self, talks: Talks, device: str, context: Any) -> None:
        super().__init__(talks, device, context)
        self.talks, self.scheduler = talks, talks.scheduler
        self._jobs = 1  # that wait; the first message is one of them
        self._bytes = 0
        self._beats = Bucket(PINGS, PING_BURST, self.stirred)

    async def serve(self) -> None:
        """From the first message to the last answer."""
        words = "the first message is neither an Open nor a Resume"
        first = await self.first(wire.ToDecoder, ("open", "resume"), words)
        message = getattr(first, first.WhichOneof("kind"))
        await self.talks.agree(message, self.context)
        self.moves = message.moves
        promise = None
        if first.HasField("open"):
            promise = await self.talks.promise(message, self.context)
        # Here, not with the first write: an abort beside that write would never reach the device.
        await self.context.send_initial_metadata(())
        if promise is not None:
            self.scheduler.open(self, self.device, promise)
        else:
            self.scheduler.resume(self, self.device, first.resume.sid)
        try:
            await self.converse()
        finally:
            self.scheduler.leave(self)

    @property
    def idle(self) -> bool:
        """Whether all that came was done, and what is to be said of it was written."""
        return self.inflight == self._jobs == 0

    def told(self, event: Event) -> None:
        """Something came from the scheduler."""
        self._settled(event.job)
        self._jobs -= event.attached
        if (message := event.message) is not None:
            self.stirred = time.monotonic()
            if message.HasField("verdict"):
                message.verdict.waiting = self.talks.asking
                self.talks.tally.add("OK")
            elif message.HasField("nack"):
                self.talks.tally.add(wire.Reason.Name(message.nack.reason))
            self._outbox.put_nowait(message)
        if event.taken:
            self.break_off(grpc.StatusCode.ABORTED, "another call has the session now")
        elif event.over:
            self._outbox.put_nowait(None)
        elif self._ended:
            self._end()

    def _settled(self, job: Job | None) -> None:
        if job is not None:
            self._jobs -= 1
            self._bytes -= len(job.payload)
            self.talks.bytes -= len(job.payload)
            self.talks.asking -= bool(job.seq)

    async def _read(self) -> None:
        while isinstance(message := await self.context.read(), wire.ToDecoder):
            self.stirred = time.monotonic()
            if not self._understood(message):
                break
            self._unread()
        if message is not grpc.aio.EOF:
            words = "not what a session's call may carry"
            self.break_off(grpc.StatusCode.INVALID_ARGUMENT, words)

    def _understood(self, message: wire.ToDecoder) -> bool:
        """Do what a message wants; False if it has no place here."""
        if message.HasField("append"):
            self._put(message.append, message.ByteSize())
        elif message.HasField("ask"):
            self._put(message.ask, message.ByteSize(), seq=message.ask.seq)
        elif message.HasField("truncate"):
            self._queue(Job(self, self.stirred, message.truncate.gen, n=message.truncate.n))
        elif message.HasField("cancel"):
            self.scheduler.cancel(self, message.cancel.seq)
        elif message.HasField("close"):
            self.scheduler.end(self)
        elif message.HasField("beat"):
            self._beat(message)
        else:
            return False
        return True

    def _put(self, message: wire.Append | wire.Ask, size: int, seq: int | None = None) -> None:
        """Queue rows. seq: of an Ask."""
        job = Job(
            self,
            self.stirred,
            gen=message.gen,
            start=message.start,
            rows=message.rows,
            payload=message.payload,
            seq=seq or 0,
        )
        if seq == 0:
            job.trouble = Trouble(wire.MALFORMED, "an Ask without a number")
        elif seq is not None:
            self.inflight += 1
            self.talks.asking += 1
            job.drafts = tuple(message.drafts[: MOST_DRAFTS + 1])
        job.trouble = job.trouble or self._too_much(size)
        if job.trouble is not None:
            job.payload = b""
        self._queue(job)

    def _queue(self, job: Job) -> None:
        self._jobs += 1
        self._bytes += len(job.payload)
        self.talks.bytes += len(job.payload)
        self.scheduler.put(job)
        if self._jobs > MOST_JOBS:
            self.break_off(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much at once")

    def _too_much(self, size: int) -> Trouble | None:
        """Why a message of so many bytes is not taken now."""
        if self.talks.refusing:
            return Trouble(wire.NO_MEMORY, "the server is closing", CLOSING_MS)
        if self.inflight > self.talks.max_inflight:
            words = f"more than {self.talks.max_inflight} Asks without answer"
            return Trouble(wire.NO_MEMORY, words, RETRY_MS)
        if self._bytes + size > MOST_BYTES or self.talks.bytes + size > ALL_BYTES:
            return Trouble(wire.NO_MEMORY, "too much waits already", RETRY_MS)
        if retry_ms := self.talks.over_quota(self.device, size, self.stirred):
            return Trouble(wire.NO_MEMORY, "more than this device's quota", retry_ms)
        return None

    def _beat(self, message: wire.ToDecoder) -> None:
        if self._beats.wait(1, self.stirred):
            words = f"more than {PINGS:.0f} beats a second"
            self.break_off(grpc.StatusCode.RESOURCE_EXHAUSTED, words)
            return
        self._beats.take(1)
        self._outbox.put_nowait(wire.FromDecoder(beat=wire.Beat(seq=message.beat.seq)))

    def _leave(self) -> wire.FromDecoder:
        return wire.FromDecoder(leave=True)

    def _answers(self, message: wire.FromDecoder) -> bool:
        return message.HasField("verdict") or bool(message.nack.seq)


def promised(manifest: Language, message: wire.Open, longest: int) -> Promise:
    """What a session will be; PacketError if the model or its server does not have it."""
    if message.resume not in manifest.resume:
        raise PacketError(f"no such resume\nhelp: {', '.join(manifest.resume)}")
    if not 1 <= message.max_len <= longest:
        raise PacketError(f"max_len {message.max_len}\nhelp: 1 to {longest}")
    how = Sampling(message.temperature, message.top_p or 1.0, message.seed)
    codec = None
    if message.resume == "hidden":
        if message.codec not in CODECS:
            raise PacketError(f"no such codec\nhelp: {', '.join(CODECS)}")
        codec = Rows(message.codec, manifest.shape.hidden)
    return Promise(codec, manifest.shape.vocab, message.max_len, how)


def largest_message(manifest: Language) -> int:
    """Bytes that a message of a device may have."""
    row = max(TOKEN, *(Rows(codec, manifest.shape.hidden).size for codec in CODECS))
    return MOST_ROWS * row + 5 * MOST_DRAFTS + packet.ENVELOPE


def _tell_all(events: Sequence[Event]) -> None:
    for event in events:
        event.line.told(event)
