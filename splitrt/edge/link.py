"""The way to the servers: one channel, one stream, a thread that keeps it; answers by number."""

from __future__ import annotations

import copy
import logging
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import grpc

from splitrt.core import packet
from splitrt.core.manifest import Manifest
from splitrt.edge.ear import Deaf, Ear
from splitrt.edge.parcel import Arrival, Delta, Parcel, Pending
from splitrt.edge.roll import Roll
from splitrt.edge.trust import Trust
from splitrt.errors import LinkDown, LinkError, ModelMismatch, Refused, SplitrtError
from splitrt.wire import tail_pb2 as wire
from splitrt.wire.tail_pb2_grpc import TailStub

logger = logging.getLogger(__name__)

SILENCE = 1.5  # seconds; gRPC itself notices a dead link after 8 to 106
ATTEMPT = 1.0  # seconds that a fresh connection may take while silence is given up at SILENCE
IDLE = 2.0  # seconds without a message before a ping
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

REFUSALS = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
)
DISTRUST = ("handshake failed", "Verification Check failed")  # of the chain, or of the name


class Link:
    """Keeps a stream to one of the servers open, whatever happens, until `close`.

    addresses: as `Roll` takes them; each connection goes to the next server.
    After a break, or the ear's silence without an answer, the channel is thrown away and a
    fresh one is opened. Frames that were on their way end as LinkDown; only where there is another
    server, those still in time are sent once more, to that one.
    """

    def __init__(
        self,
        addresses: str,
        manifest: Manifest,
        *,
        connect_timeout: float = 2.0,
        ear: Ear | None = None,
        also: Sequence[Manifest] = (),
        temporal: bool = False,
        trust: Trust = Trust(),
    ) -> None:
        self._roll = Roll(addresses, trust)
        self.also, self.trust, self.ear = also, trust, ear or Deaf(SILENCE)
        self.manifest, self.temporal = manifest, temporal
        self.connect_timeout = connect_timeout
        self.strays = 0  # answers to frames that nobody waits for
        self._lock = threading.Lock()
        self._pending: dict[int, Pending] = {}
        self._seq = self._pings = 0
        self._limit = self._bases = self._stream = 0
        self._outbox: queue.SimpleQueue[wire.ToServer | None] = queue.SimpleQueue()
        self._call: grpc.Call | None = None
        self._up, self._tried = threading.Event(), threading.Event()
        self._moving = False  # between two servers: frames wait for the next
        self._closed = threading.Event()
        self._pinged: tuple[int, float] | None = None  # number and time of a ping without pong
        self._spoke = 0.0  # time.monotonic() of the last message that was sent
        self._error: LinkError | ModelMismatch = LinkDown(f"no connection to {self.address} yet")
        self._thread = threading.Thread(target=self._keep, name="link", daemon=True)
        self._thread.start()
        self._watch = threading.Thread(target=self._watch_silence, name="link-watch", daemon=True)
        self._watch.start()

    @property
    def up(self) -> bool:
        """Whether frames can be sent now."""
        return self._up.is_set()

    @property
    def address(self) -> str:
        """The server of this connection, or of the next."""
        return self._roll.address

    def send(self, parcel: Parcel, delta: Delta | None = None) -> Pending:
        """Put a frame on its way. LinkDown, Refused or ModelMismatch at once if that cannot be.

        Only the very first frame waits, for the first connection. `delta` goes instead of
        the parcel's payload if the server still has its base.
        """
        left = math.inf if parcel.until is None else parcel.until - time.monotonic()
        self._tried.wait(max(0.0, min(left, self.connect_timeout)))
        with self._lock:
            if not (self._up.is_set() or self._moving):
                raise copy.copy(self._error)  # one that is raised again would keep every frame
            if len(self._pending) >= self._limit:
                raise Refused(f"{self._limit} frames wait for {self.address} already")
            self._seq = self._seq % (2**32 - 1) + 1
            now = time.monotonic()
            pending = Pending(self._seq, now, 0, Future(), self._stream, 0, parcel, last=now)
            self._pending[self._seq] = pending
            if not self._moving:
                self._put(pending, now, delta)
        return pending

    def close(self) -> None:
        """End the stream and both threads; what was on its way ends as LinkDown."""
        self._closed.set()
        self._hang_up()
        self._thread.join(5)
        self._watch.join(5)

    def _put(self, pending: Pending, now: float, delta: Delta | None = None) -> None:
        """To the server of this connection, with the lock held."""
        kept = delta if delta is not None and self._kept(delta) else None
        message = pending.parcel.message(pending.seq, now, kept)
        pending.base, pending.stream = 0 if kept is None else kept.base, self._stream
        pending.again, pending.last = pending.sent_bytes > 0, now
        pending.sent_bytes += message.ByteSize()
        self._spoke = now
        self.ear.sent(pending.seq, message.ByteSize(), now)  # before an answer can come
        self._outbox.put(message)

    def _kept(self, delta: Delta) -> bool:
        """The server keeps as many answered frames as it said; at worst all since were answered."""
        return delta.stream == self._stream and 0 < self._seq - delta.base <= self._bases

    def _keep(self) -> None:
        """Connect, deliver until the stream breaks, wait a little, again with the next server."""
        wait, failed = FIRST_RETRY, 0
        while not self._closed.is_set():
            started, attempt = time.monotonic(), self._attempt(failed)
            try:
                self._roll.look()
                with self._roll.channel([*OPTIONS, *self._sizes()]) as channel:
                    self._deliver(channel, attempt)
            except (grpc.RpcError, SplitrtError) as error:
                if not isinstance(self._error, ModelMismatch):  # kept until a Welcome
                    self._error = renamed(error, self.address)
            was_up = self._up.is_set()
            failed = 0 if was_up else failed + 1
            if was_up:
                self._roll.lost()
            self._roll.next()
            moving = was_up and self._moving
            others = failed < len(self._roll) > 1
            self._down(keep=(moving or others) and not self._closed.is_set())
            self._tried.set()
            wait = FIRST_RETRY if was_up else min(wait * GROWTH, LAST_RETRY)
            passed = time.monotonic() - started
            if not (moving or others):
                passed = 0.0 if was_up else passed
                self._closed.wait(max(0.0, wait * random.uniform(0.8, 1.2) - passed))
            elif was_up:  # servers that take a device in to send it on at once are not asked faster
                self._closed.wait(max(0.0, FIRST_RETRY - passed))
        self._down(keep=False)  # nobody comes for what was kept

    def _attempt(self, failed: int) -> float:
        """Seconds that the next connection may take; every third that fails is given longer."""
        patience = self.ear.silence() / SILENCE * ATTEMPT
        return min(self.connect_timeout, patience * (2 if failed % 3 == 2 else 1))

    def _deliver(self, channel: grpc.Channel, attempt: float) -> None:
        started = time.monotonic()
        self._outbox = queue.SimpleQueue()
        hello = packet.hello(self.manifest, also=self.also, temporal=self.temporal, moves=True)
        self._outbox.put(wire.ToServer(hello=hello))
        outgoing = self._outgoing(self._outbox)
        call = TailStub(channel).Stream(outgoing, metadata=self.trust.metadata)
        self._call = call
        if self._closed.is_set():  # `close` may have come before there was a call to cancel
            call.cancel()
        alarm = threading.Timer(attempt, self._unless_up(call))
        alarm.daemon = True
        alarm.start()
        try:
            for message in call:
                if message.HasField("welcome"):
                    self._open(message.welcome, time.monotonic() - started)
                elif message.HasField("answer"):
                    self._arrive(message.answer)
                elif message.HasField("pong"):
                    self._ponged(message.pong)
                elif message.HasField("leave"):
                    self._move()
            raise LinkDown(f"{self.address} ended the stream")
        finally:
            alarm.cancel()
            self._outbox.put(None)
            self._call = None

    def _open(self, welcome: wire.Welcome, took: float) -> None:
        """The server is ready: frames that a lost one left and that are in time go again."""
        if self._up.is_set():
            return  # once a connection
        with self._lock:
            self._limit, self._bases = max(1, welcome.max_inflight), welcome.bases
            self._stream += 1
            self._pinged = None
            self._spoke = now = time.monotonic()
            late = [pending for pending in self._pending.values() if not pending.fresh(now)]
            for pending in late:
                del self._pending[pending.seq]
            self.ear.opened(took)
            for pending in self._pending.values():
                self._put(pending, now)
            self._moving = False
            lost, self._error = self._error, LinkDown(f"no connection to {self.address}")
            self._up.set()
        _fail(late, lost)
        self._tried.set()

    def _move(self) -> None:
        """The server sends its devices on: what was sent is answered, what comes waits a moment."""
        with self._lock:
            if self._up.is_set() and not self._moving:
                self._moving = True
                self._outbox.put(None)

    def _ponged(self, pong: wire.Pong) -> None:
        pinged = self._pinged
        if pinged is not None and pong.seq == pinged[0]:
            self._pinged = None
            self.ear.opened(time.monotonic() - pinged[1])

    def _unless_up(self, call: grpc.Call) -> Callable[[], None]:
        return lambda: None if self._up.is_set() else call.cancel()

    def _outgoing(self, outbox: queue.SimpleQueue[wire.ToServer | None]) -> Iterator[wire.ToServer]:
        while (message := outbox.get()) is not None:
            yield message

    def _arrive(self, answer: wire.Answer) -> None:
        now = time.monotonic()
        with self._lock:
            pending = self._pending.pop(answer.seq, None)
        if pending is not None:
            self.ear.answered(answer.seq, answer, now)
        if pending is None or not pending.future.set_running_or_notify_cancel():
            self.strays += 1
            return
        pending.future.set_result(Arrival(answer, now))

    def _watch_silence(self) -> None:
        """The application's own timer: hang up when the oldest message has waited too long."""
        while not self._closed.wait(self.ear.silence() / 5):
            silence = self.ear.silence()
            with self._lock:
                if not self._up.is_set():
                    continue
                now = time.monotonic()
                waiting = [pending.last for pending in self._pending.values()]
                pinged = self._pinged  # a pong takes it away without the lock
                waiting += [pinged[1]] if pinged is not None else []
                idle = not waiting and now - self._spoke > IDLE
                if idle:
                    self._ping(now)
            if waiting and now - min(waiting) > silence:
                logger.warning("%s silent for %.1f s: a fresh channel", self.address, silence)
                self._hang_up()

    def _ping(self, now: float) -> None:
        number = self._pings = self._pings % (2**32 - 1) + 1
        self._pinged, self._spoke = (number, now), now
        self._outbox.put(wire.ToServer(ping=wire.Ping(seq=number)))

    def _hang_up(self) -> None:
        call = self._call
        if call is not None:
            call.cancel()

    def _down(self, *, keep: bool) -> None:
        """Nothing more is sent; what was on its way ends with the error of the break.

        keep: frames that are in time wait for the next server.
        """
        now = time.monotonic()
        with self._lock:
            self._up.clear()
            self._moving = self._moving and keep
            lost = [p for p in self._pending.values() if not (keep and p.fresh(now))]
            for pending in lost:
                del self._pending[pending.seq]
        _fail(lost, self._error)
        self.ear.broke()

    def _sizes(self) -> list[tuple[str, int]]:
        largest = packet.largest_answer(self.manifest, self.also)
        return [("grpc.max_receive_message_length", largest)]


def _fail(lost: Sequence[Pending], error: Exception) -> None:
    for pending in lost:
        if pending.future.set_running_or_notify_cancel():
            pending.future.set_exception(copy.copy(error))


def renamed(error: Exception, address: str) -> LinkError | ModelMismatch:
    """A gRPC status as one of our errors."""
    if not isinstance(error, grpc.RpcError):
        return error if isinstance(error, LinkError | ModelMismatch) else LinkDown(str(error))
    code = error.code() if isinstance(error, grpc.Call) else None
    detail = packet.told(error.details() or "") if isinstance(error, grpc.Call) else ""
    logger.debug("%s: %s %s", address, code, detail)
    if code == grpc.StatusCode.FAILED_PRECONDITION:
        return ModelMismatch(detail or f"{address} holds another model")
    if code in REFUSALS:
        return Refused(f"{address}: {detail}")
    if code == grpc.StatusCode.UNAVAILABLE and any(words in detail for words in DISTRUST):
        return Refused(
            f"{address}: the TLS handshake failed\n"
            "help: the ca must vouch for the server, by the name that it is called here"
        )
    if code == grpc.StatusCode.UNAVAILABLE and "Socket closed" in detail:
        return LinkDown(
            f"{address} hung up\nhelp: if it always does, it wants TLS, or another certificate"
        )
    if code == grpc.StatusCode.UNAVAILABLE:
        return LinkDown(f"{address} cannot be reached")
    if code == grpc.StatusCode.CANCELLED:
        return LinkDown(f"{address} does not answer")
    return LinkDown(f"{address}: {detail.splitlines()[0][:120] if detail else code}")
