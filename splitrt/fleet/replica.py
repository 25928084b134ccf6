"""One replica: a server that Ray has placed, which devices reach without Ray."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import ray
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ray.exceptions import RayError

from splitrt.cloud import Seen, Server
from splitrt.cloud.trace import HEADER
from splitrt.core.tls import TOKEN
from splitrt.core.trace import exporting
from splitrt.fleet.book import BEAT, here, opened
from splitrt.fleet.ingress import Raw, methods
from splitrt.fleet.scale import INFLIGHT, surplus
from splitrt.wire import fleet_pb2 as wire

logger = logging.getLogger(__name__)

SAMPLES = 10  # of what is in flight, a beat
SPAN = 5  # beats that the average is over
PASSED = (TOKEN, HEADER)  # of a stock client's metadata
PATIENCE = 2.0  # seconds for the book, and for the server's own health
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Replica:
    """What Ray Serve runs. Its methods are those of the Open Inference Protocol, and Ray's own.

    folder: the model directory, on this node.  options: of `Server`; host 0.0.0.0 stands for the
    node's own address.  book: its name.  session: Ray's folder, for the socket within.  watch: take
    up changed files.
    """

    def __init__(
        self, folder: str, options: Mapping[str, Any], book: str, session: str, watch: bool
    ) -> None:
        self._life = ExitStack()
        kept = session if Path(session).is_dir() else None  # what a kill leaves goes with Ray
        inside = Path(tempfile.mkdtemp(prefix="splitrt-", dir=kept))
        self._life.callback(shutil.rmtree, inside, ignore_errors=True)
        traces = options.get("seen", Seen()).traces
        self._life.enter_context(exporting("splitrt-serve", traces))
        self._way = f"unix:{inside / 'in'}"
        self._peers: list[wire.Replica] = []
        told = {**options, "host": here(options["host"])}
        told |= {"inside": inside / "in", "peers": lambda: self._peers}
        self.server = self._life.enter_context(Server(folder, port=0, **told))
        if watch:
            self.server.watch()
        self._book, self._named = opened(book), book
        self._name = ray.get_runtime_context().get_actor_id()
        self._began, self._over = time.time(), threading.Event()
        self._samples: deque[int] = deque(maxlen=SAMPLES * SPAN)
        self._asking: grpc.aio.Channel | None = None
        self._own = self._life.enter_context(grpc.insecure_channel(self._way))
        self._beat()
        self._pulse = threading.Thread(target=self._live, name="pulse", daemon=True)
        self._pulse.start()
        self._life.callback(self._leave)

    def __del__(self) -> None:
        """Ray's word for the end: leave the book, answer what is in flight, close."""
        self._life.close()

    def check_health(self) -> None:
        """An error unless the server itself says that it serves: then Ray starts another one."""
        asked = health_pb2_grpc.HealthStub(self._own)
        answer = asked.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise RuntimeError("the server does not serve")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray's autoscaler sees."""
        return {INFLIGHT: self._inflight}

    @property
    def _inflight(self) -> float:
        samples = tuple(self._samples)
        return sum(samples) / max(1, len(samples))

    def _entry(self) -> bytes:
        server = self.server
        models = [wire.Served(name=name, manifest=one) for name, one in server.models.items()]
        return wire.Replica(
            address=server.address, models=models, inflight=self._inflight, devices=server.devices
        ).SerializeToString()

    def _live(self) -> None:
        """Sample, beat; until the end."""
        while not self._over.is_set():
            for _ in range(SAMPLES):
                self._samples.append(self.server.inflight)
                if self._over.wait(BEAT / SAMPLES):
                    return
            try:
                self._beat()
            except RayError as error:  # the peers stay as they were
                logger.warning("the book does not answer: %s", type(error).__name__)
                with contextlib.suppress(RayError):  # nor does Ray: at the next beat, again
                    self._book = opened(self._named)

    def _beat(self) -> None:
        told = self._book.beat.remote(self._name, self._entry())
        entries, renewed = ray.get(told, timeout=PATIENCE)
        self._peers = [wire.Replica.FromString(entry) for entry in entries]
        if renewed > self._began:
            self._began = renewed
            self.server.reload_soon()
        others = [one.devices for one in self._peers if one.address != self.server.address]
        if count := surplus(self.server.devices, others):
            self.server.send_on(count)

    def _leave(self) -> None:
        self._over.set()
        self._pulse.join(PATIENCE + BEAT)
        try:
            ray.get(self._book.leave.remote(self._name), timeout=PATIENCE)
        except RayError as error:
            logger.warning("the book does not answer: %s", type(error).__name__)

    async def _asked(self, way: str, request: bytes, context: Any) -> Raw:
        """The server's own answer to a stock client's call; its status goes into the context."""
        call = self._channel().unary_unary(way)
        try:
            return Raw(await call(request, metadata=_passed(context)))
        except grpc.aio.AioRpcError as error:
            context.set_code(error.code())
            context.set_details(error.details() or "")
            return Raw(b"")

    async def _streamed(
        self, way: str, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[Raw]:
        call = self._channel().stream_stream(way)(requests, metadata=_passed(context))
        try:
            async for answer in call:
                yield Raw(answer)
        except grpc.aio.AioRpcError as error:
            context.set_code(error.code())
            context.set_details(error.details() or "")

    def _channel(self) -> grpc.aio.Channel:
        """Made in the loop that uses it."""
        if self._asking is None:
            self._asking = grpc.aio.insecure_channel(self._way, UNLIMITED)
        return self._asking


def _passed(context: Any) -> list[tuple[str, Any]]:
    """Of a call's metadata, what says who asks, and of which trace that is a part."""
    return [(key, value) for key, value in context.invocation_metadata() if key in PASSED]


def _method(way: str) -> Callable[..., Any]:
    async def asked(self: Replica, request: bytes, grpc_context: Any) -> Raw:
        return await self._asked(way, request, grpc_context)

    return asked


def _stream(way: str) -> Callable[..., Any]:
    async def streamed(self: Replica, request: Any, grpc_context: Any) -> AsyncIterator[Raw]:
        async for answer in self._streamed(way, request, grpc_context):
            yield answer

    return streamed


def _offer() -> None:
    """Ray calls a replica's method by the name of the gRPC method."""
    service, streams = methods()
    for name, stream in streams.items():
        setattr(Replica, name, (_stream if stream else _method)(f"/{service}/{name}"))


_offer()
