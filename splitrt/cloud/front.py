"""What gRPC calls: who is it, which tails does it want, may this frame come in?"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from splitrt.cloud.admit import Quota, Quotas
from splitrt.cloud.batch import Batcher, Job, Reply
from splitrt.cloud.identity import Guard, Stranger, Tokens, identify
from splitrt.cloud.kept import Kept, Shelf
from splitrt.cloud.stream import Stream
from splitrt.cloud.tail import Tail
from splitrt.cloud.tally import Tally
from splitrt.core import packet
from splitrt.errors import ModelMismatch, PacketError
from splitrt.wire import tail_pb2 as wire

logger = logging.getLogger(__name__)

SERVICE = "splitrt.wire.Tail"
IDLE = 300.0  # seconds in which a device must say something
WATCH = 1.0  # seconds between two looks at who is idle
QUIET = 0.1  # seconds without a frame, after which a closing server ends a stream


class Front:
    """All devices' calls. Everything here runs on the server's loop."""

    def __init__(
        self,
        tail: Tail,
        *,
        max_batch: int,
        max_inflight: int,
        guard: Guard,
        tokens: Tokens | None,
        quota: Quota,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.batcher = Batcher(tail, largest=tail.enough(max_batch), deliver=self._deliver)
        self.max_inflight, self.guard, self.tokens = max_inflight, guard, tokens
        self.shelf = shelf(tail)
        self.streams: set[Stream] = set()
        self.tally = Tally()
        self.closing = self.refusing = False
        self._alone = 0  # unary frames that are not answered yet
        self._quotas = Quotas(quota)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's two calls."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Stream": grpc.stream_stream_rpc_method_handler(
                    self.tally.guarded(self._stream),
                    _reader(wire.ToServer),
                    wire.ToEdge.SerializeToString,
                ),
                "Infer": grpc.unary_unary_rpc_method_handler(
                    self.tally.guarded(self._infer),
                    _reader(wire.Request),
                    wire.Answer.SerializeToString,
                ),
            },
        )

    def swap(self, tail: Tail) -> None:
        """Serve that one, from the next batch on."""
        if tail.manifest.contract != self.batcher.tail.manifest.contract:
            self.shelf = shelf(tail)  # streams of the old head keep their room until they end
        self.batcher.tail = tail

    async def watch(self) -> None:
        """Break off who says nothing for too long; for ever."""
        while True:
            await asyncio.sleep(WATCH)
            for stream in tuple(self.streams):
                if time.monotonic() - stream.stirred > IDLE:
                    words = f"nothing for {IDLE:.0f} s"
                    stream.break_off(grpc.StatusCode.DEADLINE_EXCEEDED, words)

    async def drain(self, grace: float) -> None:
        """End each stream when it is quiet, so that no frame is lost; all after `grace` seconds.

        For half of that time frames are served as ever; then they are refused, so that devices
        that follow `retry_after_ms` fall quiet.
        """
        self.closing, started = True, time.monotonic()
        while self._busy and (passed := time.monotonic() - started) < grace:
            self.refusing = passed > grace / 2
            for stream in tuple(self.streams):
                if stream.quiet(QUIET):
                    stream.leave()
            await asyncio.sleep(QUIET / 5)
        for stream in tuple(self.streams):
            stream.leave()

    @property
    def _busy(self) -> bool:
        return bool(self.streams or self._alone)

    async def agree(self, hello: wire.Hello, context: Any) -> tuple[bytes, ...]:
        """The tails that are to answer."""
        try:
            return packet.agree(self.batcher.tail.known, hello)
        except ModelMismatch as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            raise

    def over_quota(self, device: str, frame: wire.Frame, now: float) -> int:
        """Milliseconds after which that device may send such a frame; 0: now, and it is counted."""
        if not self._quotas.limited:
            return 0
        return math.ceil(1000 * self._quotas.wait(device, frame.ByteSize(), now))

    def admit(
        self, frame: wire.Frame, reply: Reply, wanted: tuple[bytes, ...], kept: Kept | None = None
    ) -> None:
        """Check a frame and queue it; `reply` is called once, on the loop."""
        arrived, tail = time.monotonic(), self.batcher.tail
        if tail.answering(wanted) is None:
            reply(packet.refusal(frame.seq, wire.STALE, "another revision is served by now"))
            return
        try:
            plan = packet.plan_of(tail.manifest, frame)
            size = packet.size_of(tail.manifest, frame)
            side = packet.side_of(tail.manifest, frame)
        except PacketError as error:
            reply(packet.refusal(frame.seq, wire.INVALID, str(error)))
            return
        self.batcher.submit(
            Job(
                seq=frame.seq,
                plan=plan.name,
                payload=frame.payload,
                arrived=arrived,
                expires=arrived + frame.slack_us / 1e6 if frame.slack_us else None,
                reply=reply,
                base=frame.base,
                kept=kept if tail.codecs[plan.name].codes else None,
                size=size,
                side=side,
                tails=wanted,
            )
        )

    async def _stream(self, _: Any, context: Any) -> None:
        device = await self._enter(context)
        await Stream(self, device, context).serve()

    async def _infer(self, request: wire.Request | None, context: Any) -> wire.Answer:
        """One frame by itself; the handshake travels with it."""
        device = await self._enter(context)
        if request is None or not (request.HasField("hello") and request.HasField("frame")):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "not a Request with hello and frame"
            )
        wanted = await self.agree(request.hello, context)
        self._alone += 1
        try:
            return await self._answered(request.frame, wanted, device)
        finally:
            self._alone -= 1

    async def _answered(
        self, frame: wire.Frame, wanted: tuple[bytes, ...], device: str
    ) -> wire.Answer:
        future: asyncio.Future[wire.Answer] = self.loop.create_future()
        reply = self.tally.awaited(lambda one: future.done() or future.set_result(one))
        if retry_ms := self.over_quota(device, frame, time.monotonic()):
            words = "more than this device's quota"
            reply(packet.refusal(frame.seq, wire.BUSY, words, retry_ms))
        else:
            self.admit(frame, reply, wanted)
        answer = await future
        answer.waiting = self.batcher.waiting
        return answer

    async def _enter(self, context: Any) -> str:
        """The device's name, if it may come in now."""
        if self.closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is closing")
        try:
            return identify(context, self.guard, self.tokens)
        except Stranger as stranger:
            await context.abort(stranger.code, str(stranger))
            raise

    def _deliver(self, answers: Sequence[tuple[Reply, wire.Answer]]) -> None:
        """A batch's answers, from its thread to the loop: one wake-up for all."""
        try:
            self.loop.call_soon_threadsafe(_reply_all, answers)
        except RuntimeError:  # the loop has ended: the devices are gone too
            logger.debug("%d answers came after the end", len(answers))


def shelf(tail: Tail) -> Shelf:
    """Room for the frames that differences of that head refer to."""
    integers = [codec for codec in tail.codecs.values() if codec.codes]
    return Shelf(max((codec.packed_size for codec in integers), default=0))


def _reply_all(answers: Sequence[tuple[Reply, wire.Answer]]) -> None:
    for reply, answer in answers:
        reply(answer)


def _reader(kind: Any) -> Callable[[bytes], Any]:
    """A parser that gives None instead of an error inside gRPC, whose text would travel."""

    def read(raw: bytes) -> Any:
        try:
            return kind.FromString(raw)
        except (DecodeError, RecursionError, ValueError):
            return None

    return read
