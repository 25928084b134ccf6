"""The way to the server: one channel, one stream, a thread that keeps it; answers by number."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import grpc

from splitrt.core import packet
from splitrt.core.manifest import Manifest
from splitrt.errors import LinkDown, LinkError, ModelMismatch, Refused
from splitrt.wire import tail_pb2 as wire
from splitrt.wire.tail_pb2_grpc import TailStub

logger = logging.getLogger(__name__)

SILENCE = 1.5  # seconds; gRPC itself notices a dead link after 8 to 106
FIRST_RETRY, LAST_RETRY, GROWTH = 0.2, 1.0, 1.6  # seconds
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # a fresh channel is really a fresh connection
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@dataclass(frozen=True, slots=True)
class Arrival:
    """An answer and the time.monotonic() at which it came."""

    answer: wire.Answer
    at: float


@dataclass(frozen=True, slots=True)
class Delta:
    """A frame's payload as its difference to frame `base`, answered on stream number `stream`."""

    stream: int
    base: int
    payload: bytes


@dataclass(slots=True, eq=False)
class Pending:
    """A frame on its way. `future` ends as an Arrival or a LinkError.

    A frame given up by cancelling the future stays on the link's list until it is answered or the
    link breaks: it still fills its place and its silence still counts.
    """

    seq: int
    sent_at: float
    sent_bytes: int
    future: Future[Arrival]
    stream: int  # counts the connections
    base: int  # 0: a keyframe


class Link:
    """Keeps a stream to the server open, whatever happens, until `close`.

    After a break, or `silence` seconds without an answer, the channel is thrown away and a
    fresh one is opened; frames that were on their way end as LinkDown and are never sent again.
    """

    def __init__(
        self,
        address: str,
        manifest: Manifest,
        *,
        connect_timeout: float = 2.0,
        silence: float = SILENCE,
        also: Sequence[Manifest] = (),
        temporal: bool = False,
    ) -> None:
        self.also = also
        self.address, self.manifest, self.temporal = address, manifest, temporal
        self.connect_timeout, self.silence = connect_timeout, silence
        self.strays = 0  # answers to frames that nobody waits for
        self._lock = threading.Lock()
        self._pending: dict[int, Pending] = {}
        self._seq = 0
        self._limit = self._bases = self._stream = 0
        self._outbox: queue.SimpleQueue[wire.ToServer | None] = queue.SimpleQueue()
        self._call: grpc.Call | None = None
        self._up, self._tried = threading.Event(), threading.Event()
        self._closed = threading.Event()
        self._error: LinkError | ModelMismatch = LinkDown(f"no connection to {address} yet")
        self._thread = threading.Thread(target=self._keep, name="link", daemon=True)
        self._thread.start()
        self._watch = threading.Thread(target=self._watch_silence, name="link-watch", daemon=True)
        self._watch.start()

    @property
    def up(self) -> bool:
        """Whether frames can be sent now."""
        return self._up.is_set()

    def send(
        self,
        plan: int,
        payload: bytes,
        slack: float | None,
        beside: packet.Beside = packet.Beside(),
        delta: Delta | None = None,
    ) -> Pending:
        """Put a frame on its way. LinkDown, Refused or ModelMismatch at once if that cannot be.

        Only the very first frame waits, for the first connection. `delta` goes instead of
        `payload` if the server still has its base.
        """
        patience = self.connect_timeout if slack is None else min(slack, self.connect_timeout)
        self._tried.wait(patience)
        with self._lock:
            if not self._up.is_set():
                raise self._error
            if len(self._pending) >= self._limit:
                raise Refused(f"{self._limit} frames wait for {self.address} already")
            self._seq = self._seq % (2**32 - 1) + 1
            base = 0
            if delta is not None and self._kept(delta):
                payload, base = delta.payload, delta.base
            message = packet.frame(self._seq, plan, payload, slack, beside, base)
            size, now = message.ByteSize(), time.monotonic()
            pending = Pending(self._seq, now, size, Future(), self._stream, base)
            self._pending[self._seq] = pending
            self._outbox.put(message)
        return pending

    def close(self) -> None:
        """End the stream and both threads; what was on its way ends as LinkDown."""
        self._closed.set()
        self._hang_up()
        self._thread.join(5)
        self._watch.join(5)

    def _kept(self, delta: Delta) -> bool:
        """The server keeps as many answered frames as it said; at worst all since were answered."""
        return delta.stream == self._stream and 0 < self._seq - delta.base <= self._bases

    def _keep(self) -> None:
        """Connect, deliver until the stream breaks, wait a little, again."""
        wait = FIRST_RETRY
        while not self._closed.is_set():
            with grpc.insecure_channel(self.address, [*OPTIONS, *self._sizes()]) as channel:
                try:
                    self._deliver(channel)
                except (grpc.RpcError, LinkError, ModelMismatch) as error:
                    if not isinstance(self._error, ModelMismatch):  # kept until a Welcome
                        self._error = renamed(error, self.address)
            was_up = self._up.is_set()
            self._down()
            self._tried.set()
            wait = FIRST_RETRY if was_up else min(wait * GROWTH, LAST_RETRY)
            self._closed.wait(wait * random.uniform(0.8, 1.2))

    def _deliver(self, channel: grpc.Channel) -> None:
        self._outbox = queue.SimpleQueue()
        hello = packet.hello(self.manifest, also=self.also, temporal=self.temporal)
        self._outbox.put(wire.ToServer(hello=hello))
        call = TailStub(channel).Stream(self._outgoing(self._outbox))
        self._call = call
        alarm = threading.Timer(self.connect_timeout, self._unless_up(call))
        alarm.daemon = True
        alarm.start()
        try:
            for message in call:
                if message.HasField("welcome"):
                    self._limit = max(1, message.welcome.max_inflight)
                    self._bases = message.welcome.bases
                    self._stream += 1
                    self._error = LinkDown(f"no connection to {self.address}")
                    self._up.set()
                    self._tried.set()
                elif message.HasField("answer"):
                    self._arrive(message.answer)
            raise LinkDown(f"{self.address} ended the stream")
        finally:
            alarm.cancel()
            self._outbox.put(None)
            self._call = None

    def _unless_up(self, call: grpc.Call) -> Callable[[], None]:
        return lambda: None if self._up.is_set() else call.cancel()

    def _outgoing(self, outbox: queue.SimpleQueue[wire.ToServer | None]) -> Iterator[wire.ToServer]:
        while (message := outbox.get()) is not None:
            yield message

    def _arrive(self, answer: wire.Answer) -> None:
        with self._lock:
            pending = self._pending.pop(answer.seq, None)
        if pending is None or not pending.future.set_running_or_notify_cancel():
            self.strays += 1
            return
        pending.future.set_result(Arrival(answer, time.monotonic()))

    def _watch_silence(self) -> None:
        """The application's own timer: hang up when the oldest frame has waited too long."""
        while not self._closed.wait(self.silence / 5):
            with self._lock:
                oldest = min((p.sent_at for p in self._pending.values()), default=None)
            if (
                oldest is not None
                and time.monotonic() - oldest > self.silence
                and self._up.is_set()
            ):
                logger.warning("%s silent for %.1f s: a fresh channel", self.address, self.silence)
                self._hang_up()

    def _hang_up(self) -> None:
        call = self._call
        if call is not None:
            call.cancel()

    def _down(self) -> None:
        """Nothing more is sent; what was on its way ends with the error of the break."""
        with self._lock:
            self._up.clear()
            lost = list(self._pending.values())
            self._pending.clear()
        for pending in lost:
            if pending.future.set_running_or_notify_cancel():
                pending.future.set_exception(self._error)

    def _sizes(self) -> list[tuple[str, int]]:
        largest = packet.largest_answer(self.manifest, self.also)
        return [("grpc.max_receive_message_length", largest)]


def renamed(error: Exception, address: str) -> LinkError | ModelMismatch:
    """A gRPC status as one of our errors."""
    if not isinstance(error, grpc.RpcError):
        return error if isinstance(error, LinkError | ModelMismatch) else LinkDown(str(error))
    code = error.code() if isinstance(error, grpc.Call) else None
    detail = packet.told(error.details() or "") if isinstance(error, grpc.Call) else ""
    logger.debug("%s: %s %s", address, code, detail)
    if code == grpc.StatusCode.FAILED_PRECONDITION:
        return ModelMismatch(detail)
    if code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.PERMISSION_DENIED):
        return Refused(f"{address}: {detail}")
    if code == grpc.StatusCode.UNAVAILABLE:
        return LinkDown(f"{address} cannot be reached")
    if code == grpc.StatusCode.CANCELLED:
        return LinkDown(f"{address} does not answer")
    return LinkDown(f"{address}: {detail.splitlines()[0][:120] if detail else code}")
