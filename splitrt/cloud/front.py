"""What gRPC calls: who is it, which tails does it want, may this frame come in?"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import grpc

from splitrt.cloud.admit import Quota
from splitrt.cloud.batch import Batcher, Job, Reply
from splitrt.cloud.identity import Guard, Tokens
from splitrt.cloud.kept import Kept, Shelf
from splitrt.cloud.reception import Reception
from splitrt.cloud.school import Make, School
from splitrt.cloud.stream import Stream
from splitrt.cloud.tail import Tail
from splitrt.cloud.trace import Tracer
from splitrt.core import packet
from splitrt.core.trace import marked
from splitrt.errors import ModelMismatch, PacketError
from splitrt.wire import tail_pb2 as wire

logger = logging.getLogger(__name__)

SERVICE = "splitrt.wire.Tail"


class Front(Reception):
    """All calls of devices that send frames. make: what adapts their exits, where that is done."""

    def __init__(
        self,
        tail: Tail,
        *,
        max_batch: int,
        max_inflight: int,
        guard: Guard,
        tokens: Tokens | None,
        quota: Quota,
        room: int,
        max_age: float | None = None,
        tracer: Tracer | None = None,
        make: Make | None = None,
    ) -> None:
        super().__init__(
            max_inflight=max_inflight, guard=guard, tokens=tokens, quota=quota, max_age=max_age
        )
        self.room = room  # bytes that a message may have
        self._tracer = tracer
        self.batcher = Batcher(tail, largest=tail.enough(max_batch), deliver=self._deliver)
        self.shelf = shelf(tail)
        self.school = None if make is None else School(self.tally, make)
        self._alone = 0  # unary frames that are not answered yet

    @property
    def names(self) -> set[str]:
        """Of the models that are served now."""
        return {branch.manifest.name for branch in self.batcher.tail.branches.values()}

    def models(self, wanted: Sequence[bytes]) -> list[str]:
        """The names of the models that answer for those digests now."""
        tail = self.batcher.tail
        return [tail.branches[one].manifest.name for one in tail.answering(wanted) or ()]

    @property
    def named(self) -> bool:
        """Whether a device's name is its own, and not its host's."""
        return self.guard.client_ca is not None or self.tokens is not None

    @property
    def waiting(self) -> int:
        """Frames that were taken and not answered yet."""
        return self.tally.inflight

    @property
    def gauges(self) -> dict[str, int]:
        """What there is now, by name."""
        learning = {} if self.school is None else {"learners": len(self.school)}
        return {**super().gauges, "queue": self.batcher.waiting, **learning}

    def close(self) -> None:
        """End the batcher and the school; waits for them."""
        self.batcher.close()
        if self.school is not None:
            self.school.close()

    async def drain(self, grace: float) -> None:
        """As every reception; nothing is learnt any more."""
        if self.school is not None:
            self.school.stop()
        await super().drain(grace)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's two calls."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Stream": grpc.stream_stream_rpc_method_handler(
                    self.tally.guarded(self._stream),
                    packet.reader(wire.ToServer),
                    wire.ToEdge.SerializeToString,
                ),
                "Infer": grpc.unary_unary_rpc_method_handler(
                    self.tally.guarded(self._infer),
                    packet.reader(wire.Request),
                    wire.Answer.SerializeToString,
                ),
            },
        )

    def swap(self, tail: Tail) -> None:
        """Serve that one, from the next batch on."""
        if tail.manifest.contract != self.batcher.tail.manifest.contract:
            self.shelf = shelf(tail)  # streams of the old head keep their room until they end
        self.batcher.tail = tail
        if self.school is not None:
            self.school.clear()

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

    def carried(self, context: Any) -> bytes:
        """The trace that the metadata of a call name, as a frame carries it."""
        return b"" if self._tracer is None else self._tracer.carried(context)

    def awaited(self, frame: wire.Frame, reply: Reply, wanted: Sequence[bytes]) -> Reply:
        """`reply` for a frame that comes now; its answer is counted, and traced where it asks."""
        models = self.models(wanted)
        if self._tracer is not None and frame.trace:
            reply = self._tracer.followed(reply, frame.trace, models)
        return self.tally.awaited(reply, models, len(frame.payload), self._codec(frame))

    def _codec(self, frame: wire.Frame) -> str:
        """Of the frame's plan, by name; empty if the manifest has no such plan."""
        try:
            return packet.plan_of(self.batcher.tail.manifest, frame).codec or ""
        except PacketError:
            return ""

    def admit(
        self,
        frame: wire.Frame,
        reply: Reply,
        wanted: tuple[bytes, ...],
        kept: Kept | None = None,
        *,
        opened: bool = False,
    ) -> None:
        """Check a frame and queue it; `reply` is called once, on the loop.

        opened: its payload is what the codec would make of it, and is known to have its size.
        """
        arrived, tail = time.monotonic(), self.batcher.tail
        if tail.answering(wanted) is None:
            reply(packet.refusal(frame.seq, wire.STALE, "another revision is served by now"))
            return
        try:
            plan = packet.plan_of(tail.manifest, frame)
            size = packet.size_of(tail.manifest, frame)
            side = packet.side_of(tail.manifest, frame)
            marked(frame.trace)
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
                opened=opened,
            )
        )

    async def _stream(self, _: Any, context: Any) -> None:
        device = await self.enter(context)
        await Stream(self, device, context).serve()

    async def _infer(self, request: wire.Request | None, context: Any) -> wire.Answer:
        """One frame by itself; the handshake travels with it."""
        device = await self.enter(context)
        if request is None or not (request.HasField("hello") and request.HasField("frame")):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "not a Request with hello and frame"
            )
        wanted, frame = await self.agree(request.hello, context), request.frame
        frame.trace = frame.trace or self.carried(context)
        if retry_ms := self.over_quota(device, frame.ByteSize(), time.monotonic()):
            words = "more than this device's quota"
            answer = packet.refusal(frame.seq, wire.BUSY, words, retry_ms)
            self.awaited(frame, lambda _: None, wanted)(answer)
        else:
            [answer] = await self.answers([frame], wanted)
        answer.waiting = self.batcher.waiting
        return answer

    async def answers(
        self, frames: Sequence[wire.Frame], wanted: tuple[bytes, ...], *, opened: bool = False
    ) -> list[wire.Answer]:
        """The answers to frames that came in one call, in their order.

        opened: their payloads are what the codec would make of them.
        """
        self._alone += 1
        try:
            return await asyncio.gather(*[self._queued(frame, wanted, opened) for frame in frames])
        finally:
            self._alone -= 1

    def _queued(
        self, frame: wire.Frame, wanted: tuple[bytes, ...], opened: bool
    ) -> asyncio.Future[wire.Answer]:
        future: asyncio.Future[wire.Answer] = self.loop.create_future()
        reply = self.awaited(frame, lambda one: future.done() or future.set_result(one), wanted)
        self.admit(frame, reply, wanted, opened=opened)
        return future

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
