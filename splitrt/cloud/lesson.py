"""Calls of devices whose exits are adapted: Start, then samples; revisions by one that writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from splitrt.cloud.admit import Bucket
from splitrt.cloud.call import Call
from splitrt.cloud.desk import Desk, Whose
from splitrt.cloud.school import School
from splitrt.cloud.subject import Subject
from splitrt.core import packet
from splitrt.core.revision import HIGHEST
from splitrt.errors import PacketError, Refused
from splitrt.wire import adapt_pb2 as wire

if TYPE_CHECKING:
    from splitrt.cloud.front import Front

logger = logging.getLogger(__name__)

SERVICE = "splitrt.wire.Teacher"
RATE = 4  # samples a second that a device may send on average
UNREAD = 8  # samples without a Taken
BURST = 4 * UNREAD  # samples that may come at once, as those of a link that stood still
ROOM = 1 << 20  # numbers that are left for revisions when a device comes


class Lessons:
    """The service Teacher, beside the tails of `front`."""

    def __init__(self, front: Front, school: School) -> None:
        self.front, self.school = front, school

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's one call."""
        learn = grpc.stream_stream_rpc_method_handler(
            self.front.tally.guarded(self._learn),
            packet.reader(wire.ToTeacher),
            wire.ToPupil.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Learn": learn})

    async def subject(self, start: wire.Start, context: Any) -> Subject:
        """The exit that a device wants adapted; the call ends if there is none."""
        [held, *_] = await self.front.agree(start.hello, context)
        tail = self.front.batcher.tail
        try:
            if not start.used <= start.seen <= HIGHEST - ROOM:
                raise PacketError("numbers of revisions that nobody gave")
            return Subject(tail, tail.branches[tail.known[held]], start.width)
        except PacketError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    async def desk(self, lesson: Lesson, subject: Subject, start: wire.Start) -> Desk:
        """A place for that device; the call ends if there is none."""
        whose = Whose(lesson.device, subject.manifest.digest, subject.width)
        try:
            return self.school.sit(whose, subject, lesson, start)
        except Refused as error:
            await lesson.context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            raise

    async def _learn(self, _: Any, context: Any) -> None:
        device = await self.front.enter(context)
        await Lesson(self, device, context).serve()


class Lesson(Call):
    """One device's call. `tell`, `leave` and `refuse` may come from any thread."""

    def __init__(self, lessons: Lessons, device: str, context: Any) -> None:
        super().__init__(lessons.front, device, context)
        self.lessons, self.front, self.school = lessons, lessons.front, lessons.school
        self._bucket = Bucket(RATE, BURST, self.stirred)
        self._seq = 0

    async def serve(self) -> None:
        """From the first message to the last revision."""
        first = await self.first(wire.ToTeacher, ("start",), "the first message is not a Start")
        # Here, not with the first write: an abort beside that write would never reach the device.
        # And before the subject: the loop turns, and no other model may come before the desk.
        await self.context.send_initial_metadata(())
        subject = await self.lessons.subject(first.start, self.context)
        self._desk = await self.lessons.desk(self, subject, first.start)
        self._outbox.put_nowait(_ready(subject))
        try:
            await self.converse()
        finally:
            self.school.leave(self._desk, keep=self.front.named)

    def tell(self, message: wire.ToPupil) -> None:
        """Something for the device."""
        self._soon(self._outbox.put_nowait, message)

    def leave(self) -> None:
        """Read no more, write what is told already."""
        self._soon(super().leave)

    def refuse(self, code: grpc.StatusCode, words: str) -> None:
        """End the call now."""
        self._soon(self.break_off, code, words)

    def quiet(self, seconds: float) -> bool:
        """Always: nobody waits for an answer here."""
        return True

    async def _read(self) -> None:
        while isinstance(message := await self.context.read(), wire.ToTeacher):
            self.stirred = time.monotonic()
            if message.HasField("sample"):
                self._sample(message.sample, message.ByteSize())
            elif message.HasField("dropped"):
                self.school.drop(self._desk, message.dropped.number)
            else:
                break
            self._unread()
        if message is not grpc.aio.EOF:
            self.break_off(grpc.StatusCode.INVALID_ARGUMENT, "neither a sample nor a Dropped")

    def _sample(self, sample: wire.Sample, size: int) -> None:
        self._seq += 1
        if sample.seq != self._seq:
            words = f"sample {sample.seq}, {self._seq} would be next"
            self.break_off(grpc.StatusCode.INVALID_ARGUMENT, words)
        elif self._bucket.wait(1, self.stirred):
            words = f"more than {RATE} samples a second"
            self.break_off(grpc.StatusCode.RESOURCE_EXHAUSTED, words)
        else:
            self._bucket.take(1)
            if self.front.over_quota(self.device, size, self.stirred, frames=0):
                self.front.tally.learnt("dropped")
            else:
                self.school.put(self._desk, sample)
            self._outbox.put_nowait(wire.ToPupil(taken=wire.Taken(seq=sample.seq)))

    def _answers(self, message: wire.ToPupil) -> bool:
        return False

    def _soon(self, what: Callable[..., None], *words: Any) -> None:
        """On the loop."""
        try:
            self.front.loop.call_soon_threadsafe(what, *words)
        except RuntimeError:  # the loop has ended: the device is gone, too
            logger.debug("something for %s came after the end", self.device)


def _ready(subject: Subject) -> wire.ToPupil:
    return wire.ToPupil(
        ready=wire.Ready(
            protocol=packet.PROTOCOL, rate=RATE, unread=UNREAD, tail=subject.manifest.digest
        )
    )
