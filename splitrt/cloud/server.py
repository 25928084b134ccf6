"""The tail server: a gRPC front that only parses, checks and queues."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from splitrt.cloud.batch import Batcher, Job
from splitrt.cloud.kept import Kept, Shelf
from splitrt.cloud.tail import Tail
from splitrt.core import packet
from splitrt.core.manifest import Manifest
from splitrt.errors import LinkError, ModelMismatch, PacketError
from splitrt.wire import tail_pb2 as wire

logger = logging.getLogger(__name__)

HANDSHAKE = 5.0  # seconds for the first message
IDLE = 300.0  # seconds without a frame
UNREAD = 100  # times max_inflight: answers a device may leave unread
RETRY_MS = 10  # after which a device that sent too much may try again
GRACE = 5.0  # seconds for what is in flight when the server closes
SERVICE = "splitrt.wire.Tail"


class Server:
    """Serves the tail of one model directory from its own threads until closed.

        with Server("models/cifar10-resnet", port=50700, device="cuda") as server:
            server.wait()

    Port 0 takes a free one; `address` says which. LinkError if the port is taken. tails: folders of
    further tails of the same head; a device says which are to answer its payloads.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        port: int = 50700,
        host: str = "127.0.0.1",
        tails: Sequence[str | Path] = (),
        device: str = "cpu",
        max_batch: int = 32,
        max_inflight: int = 8,
        threads: int | None = None,
    ) -> None:
        bytearray(
            31 << 20
        )  # freed at once: raises glibc's mmap threshold, 1 MB messages 2.5× faster
        self.manifest = Manifest.load(folder)
        self.tail = Tail(folder, self.manifest, others=tails, device=device, threads=threads)
        self.batcher = Batcher(self.tail, largest=max_batch)
        integers = [codec for codec in self.tail.codecs.values() if codec.codes]
        self._shelf = Shelf(max((codec.packed_size for codec in integers), default=0))
        self.host, self.max_inflight = host, max_inflight
        self._over = threading.Event()
        self._reading: set[asyncio.Future[wire.ToServer | None]] = set()
        ready: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(port, ready)), name="server", daemon=True
        )
        self._thread.start()
        try:
            self.port = ready.result()
        except LinkError:
            self.batcher.close()
            raise

    @property
    def address(self) -> str:
        """host:port, as an Edge wants it."""
        return f"{self.host}:{self.port}"

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def wait(self) -> None:
        """Until somebody calls `stop` or `close`."""
        while not self._over.wait(1.0):
            pass

    def stop(self) -> None:
        """Let `wait` return; safe in a signal handler."""
        self._over.set()

    def close(self) -> None:
        """Take no more frames, answer what is in flight, end."""
        self._over.set()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._drained.set)
            self._thread.join()
            self.batcher.close()

    async def _serve(self, port: int, ready: Future[int]) -> None:
        self._loop, self._drained = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server(options=self._options())
        server.add_generic_rpc_handlers((self._handlers(),))
        try:
            bound = server.add_insecure_port(f"{self.host}:{port}")
        except RuntimeError:
            taken = f"{self.host}:{port} cannot be bound\nhelp: another port, or 0 for a free one"
            ready.set_exception(LinkError(taken))
            return
        await server.start()
        ready.set_result(bound)
        await self._drained.wait()
        for reading in tuple(self._reading):
            reading.cancel()
        await server.stop(GRACE)

    def _largest(self) -> int:
        """Bytes that a message may have."""
        return self.tail.largest + packet.largest_side(self.manifest) + packet.ENVELOPE

    def _options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self._largest()),
            ("grpc.max_metadata_size", 16 << 10),
            ("grpc.max_concurrent_streams", 100),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 4000),
            ("grpc.http2.ping_timeout_ms", 4000),
            ("grpc.http2.min_ping_interval_without_data_ms", 500),
            ("grpc.http2.max_ping_strikes", 0),
        ]

    def _handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Stream": grpc.stream_stream_rpc_method_handler(
                    self._stream, _reader(wire.ToServer), wire.ToEdge.SerializeToString
                ),
                "Infer": grpc.unary_unary_rpc_method_handler(
                    self._infer, _reader(wire.Request), wire.Answer.SerializeToString
                ),
            },
        )

    async def _infer(self, request: wire.Request | None, context: Any) -> wire.Answer:
        """One frame by itself; the handshake travels with it."""
        if request is None or not (request.HasField("hello") and request.HasField("frame")):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "not a Request with hello and frame"
            )
        tails = await self._agree(request.hello, context)
        answer: asyncio.Future[wire.Answer] = self._loop.create_future()
        self._admit(request.frame, lambda reply: answer.done() or answer.set_result(reply), tails)
        return await answer

    async def _stream(self, messages: AsyncIterator[wire.ToServer | None], context: Any) -> None:
        """One device: Hello, then frames; one task writes, since concurrent writes lose answers."""
        hello, tails = await self._handshake(messages, context)
        kept = self._shelf.take() if hello.temporal else None
        outbox: asyncio.Queue[wire.Answer | None] = asyncio.Queue()
        writer = asyncio.create_task(_write(outbox, context, self._welcome(kept)))
        inflight = 0
        ended = False

        def done(answer: wire.Answer) -> None:
            nonlocal inflight
            inflight -= 1
            outbox.put_nowait(answer)
            if ended and inflight == 0:
                outbox.put_nowait(None)

        try:
            async for message in self._until_closed(messages):
                if message is None or not message.HasField("frame"):
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a frame")
                inflight += 1
                if outbox.qsize() > UNREAD * self.max_inflight:
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "answers not read")
                if inflight > self.max_inflight:
                    detail = f"more than {self.max_inflight} frames without answer"
                    done(packet.refusal(message.frame.seq, wire.BUSY, detail, RETRY_MS))
                else:
                    self._admit(message.frame, done, tails, kept)
            ended = True  # the device or the server has done; the last answers go out
            if inflight == 0:
                outbox.put_nowait(None)
            await writer
        except asyncio.TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no frame for {IDLE:.0f} s")
        finally:
            writer.cancel()
            self._shelf.put_back(kept)

    async def _until_closed(
        self, messages: AsyncIterator[wire.ToServer | None]
    ) -> AsyncIterator[wire.ToServer | None]:
        """The messages, until the server closes; asyncio.TimeoutError if one takes too long."""
        while not self._drained.is_set():
            reading = asyncio.ensure_future(anext(messages))
            self._reading.add(reading)
            try:
                message = await asyncio.wait_for(reading, IDLE)
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                if self._drained.is_set():
                    return
                raise
            finally:
                self._reading.discard(reading)
            yield message

    async def _handshake(
        self, messages: AsyncIterator[wire.ToServer | None], context: Any
    ) -> tuple[wire.Hello, tuple[bytes, ...]]:
        try:
            first = await asyncio.wait_for(anext(messages), HANDSHAKE)
        except (asyncio.TimeoutError, StopAsyncIteration):
            first = None
        if first is None or not first.HasField("hello"):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "the first message is not a Hello"
            )
        return first.hello, await self._agree(first.hello, context)

    def _welcome(self, kept: Kept | None) -> wire.ToEdge:
        bases = 0 if kept is None else kept.count
        welcome = wire.Welcome(
            protocol=packet.PROTOCOL, max_inflight=self.max_inflight, bases=bases
        )
        return wire.ToEdge(welcome=welcome)

    async def _agree(self, hello: wire.Hello, context: Any) -> tuple[bytes, ...]:
        """The tails that are to answer."""
        try:
            return packet.agree(self.tail.branches, hello)
        except ModelMismatch as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            raise

    def _admit(
        self,
        frame: wire.Frame,
        reply: Callable[[wire.Answer], Any],
        tails: tuple[bytes, ...],
        kept: Kept | None = None,
    ) -> None:
        """Check a frame and queue it; `reply` is called once, on the loop."""
        arrived = time.monotonic()
        try:
            plan = packet.plan_of(self.manifest, frame)
            size = packet.size_of(self.manifest, frame)
            side = packet.side_of(self.manifest, frame)
        except PacketError as error:
            reply(packet.refusal(frame.seq, wire.INVALID, str(error)))
            return
        expires = arrived + frame.slack_us / 1e6 if frame.slack_us else None
        self.batcher.submit(
            Job(
                seq=frame.seq,
                plan=plan.name,
                payload=frame.payload,
                arrived=arrived,
                expires=expires,
                reply=lambda answer: self._later(reply, answer),
                base=frame.base,
                kept=kept if self.tail.codecs[plan.name].codes else None,
                size=size,
                side=side,
                tails=tails,
            )
        )

    def _later(self, reply: Callable[[wire.Answer], Any], answer: wire.Answer) -> None:
        try:
            self._loop.call_soon_threadsafe(reply, answer)
        except RuntimeError:  # the loop has ended: the device is gone too
            logger.debug("answer %d came after the end", answer.seq)


def _reader(kind: Any) -> Callable[[bytes], Any]:
    """A parser that gives None instead of an error inside gRPC, whose text would travel."""

    def read(raw: bytes) -> Any:
        try:
            return kind.FromString(raw)
        except (DecodeError, RecursionError, ValueError):
            return None

    return read


async def _write(
    outbox: asyncio.Queue[wire.Answer | None], context: Any, welcome: wire.ToEdge
) -> None:
    await context.write(welcome)
    while (answer := await outbox.get()) is not None:
        await context.write(wire.ToEdge(answer=answer))
