"""A simulated device: one stream that speaks the wire, its controller, its frames' ends.

It has no head: what it sends was encoded before.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc

from benchmarks.fleet.load import Count, Load
from splitrt.core import control, packet
from splitrt.core.manifest import Manifest
from splitrt.core.plan import Local, Option
from splitrt.core.tls import BEARER, TOKEN
from splitrt.edge.link import ATTEMPT, FIRST_RETRY, GROWTH, IDLE, LAST_RETRY, OPTIONS
from splitrt.wire import tail_pb2 as wire
from splitrt.wire.tail_pb2_grpc import TailStub

DEADLINE = 0.25  # seconds a frame may take
LAST = 3.0  # seconds that the last answers are waited for
LOCAL = Local(0.6)  # what the device could answer itself: sending is worth it if it is in time
BROKEN = (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.TimeoutError)


class Device:
    """A stream that is kept as an Edge's link keeps it, and what is sent by it."""

    def __init__(self, load: Load, number: int, manifest: Manifest, payload: bytes) -> None:
        self.load, self.payload, self.count = load, payload, Count()
        self._random = random.Random(f"{load.seed} {load.first + number}")
        self._manifest, self._number = manifest, load.first + number
        self._plan = [plan.name for plan in manifest.plans].index(load.plan)
        self._options = [Option(load.plan, len(payload) + 16, 0.0, 0.8)]
        self._state = control.start(self._options, mbps=100, rtt=0.002)
        self._seq = self._pings = 0
        self._waiting: dict[int, float] = {}  # time.monotonic() of capture
        self._again: list[float] = []  # captures of frames whose server went away
        self._call: grpc.aio.StreamStreamCall | None = None
        self._changed = asyncio.Condition()
        servers = len(load.addresses)
        self._turn = self._number % servers if load.closed else self._random.randrange(servers)

    async def run(self) -> Count:
        """Stay connected, send what the load says, wait for the last answers."""
        keeping = asyncio.create_task(self._keep())
        way = (
            self._closed() if self.load.closed else self._open() if self.load.rate else self._idle()
        )
        working = asyncio.create_task(way)
        longest = max(0.0, self.load.end - time.monotonic()) + LAST
        first = asyncio.FIRST_COMPLETED
        await asyncio.wait({keeping, working}, timeout=longest, return_when=first)
        if keeping.done():  # it ends by itself only if something is wrong
            keeping.result()
        if working.done():
            working.result()
        working.cancel()  # in a closed loop it may still wait for a server that is gone
        async with self._changed:
            none = self._changed.wait_for(lambda: not self._waiting and not self._again)
            await asyncio.wait({asyncio.ensure_future(none)}, timeout=LAST)
        keeping.cancel()
        await asyncio.wait({keeping})
        left = [*self._waiting.values(), *self._again]
        self.count.lost = sum(self.load.counts(captured) for captured in left)
        return self.count

    async def _keep(self) -> None:
        """Connect, read until the stream breaks, again with the next server: as `edge/link.py`."""
        await asyncio.sleep(max(0.0, self.load.connect - time.monotonic()))
        wait, failed, since = FIRST_RETRY, 0, time.monotonic()
        several = len(self.load.addresses) > 1
        while True:
            attempt, started = ATTEMPT * (2 if failed % 3 == 2 else 1), time.monotonic()
            self.count.attempts += 1
            try:
                async with self._stream(attempt) as call:
                    self.count.welcome.append((time.monotonic() - since, time.monotonic()))
                    failed, wait = 0, FIRST_RETRY
                    await self._send_again(call)
                    self._call = call
                    await self._read(call)
            except BROKEN:
                pass
            was_up = self._call is not None
            since, failed = (time.monotonic(), 0) if was_up else (since, failed + 1)
            self._broken()
            self._turn += 1
            if failed >= len(self.load.addresses) or not several:
                passed = 0.0 if was_up else time.monotonic() - started
                await asyncio.sleep(max(0.0, wait * self._random.uniform(0.8, 1.2) - passed))
                wait = min(wait * GROWTH, LAST_RETRY)

    @contextlib.asynccontextmanager
    async def _stream(self, attempt: float) -> AsyncIterator[grpc.aio.StreamStreamCall]:
        """A stream that is welcome, on a connection of its own."""
        address = self.load.addresses[self._turn % len(self.load.addresses)]
        async with _channel(address, self.load.ca) as channel:
            call = TailStub(channel).Stream(metadata=_token(self.load.tokens, self._number))
            try:
                hello = wire.ToServer(hello=packet.hello(self._manifest))
                await asyncio.wait_for(call.write(hello), attempt)
                welcome = await asyncio.wait_for(call.read(), attempt)
                if not isinstance(welcome, wire.ToEdge) or not welcome.HasField("welcome"):
                    sys.exit("error: the server did not say Welcome")
                yield call
            finally:
                call.cancel()

    def _broken(self) -> None:
        """What was on its way goes once more if there is another server, as an Edge's does."""
        self._call = None
        for seq, captured in self._waiting.items():
            self._state = control.gone(self._state, seq)
            self._again.append(captured)
        self._waiting.clear()

    async def _send_again(self, call: grpc.aio.StreamStreamCall) -> None:
        again, self._again = self._again, []
        for captured in again:
            if len(self.load.addresses) > 1 and captured + DEADLINE > time.monotonic():
                await self._write(call, captured)
            else:
                self.count.broken += self.load.counts(captured)

    async def _open(self) -> None:
        """A frame every 1 / rate seconds, whatever becomes of it."""
        first = self.load.begin + self._random.random() / self.load.rate
        for index in range(int((self.load.warm + self.load.seconds) * self.load.rate)):
            captured = first + index / self.load.rate
            await asyncio.sleep(max(0.0, captured - time.monotonic()))
            self.count.frames += self.load.counts(captured)
            if self._call is not None and self._goes(captured):
                self.count.sent += self.load.counts(captured)
                await self._write(self._call, captured)
            else:
                self.count.kept += self.load.counts(captured)

    async def _closed(self) -> None:
        """The next frame as soon as one is answered."""
        await asyncio.sleep(max(0.0, self.load.begin - time.monotonic()))
        while time.monotonic() < self.load.end:
            async with self._changed:
                await self._changed.wait_for(self._has_room)
            await self._write(self._call, time.monotonic())

    def _has_room(self) -> bool:
        return self._call is not None and len(self._waiting) < self.load.closed

    async def _idle(self) -> None:
        """Pings, until the end."""
        await asyncio.sleep(IDLE * self._random.random())
        while time.monotonic() < self.load.end:
            if self._call is not None:
                self._pings += 1
                with contextlib.suppress(*BROKEN):
                    await self._call.write(wire.ToServer(ping=wire.Ping(seq=self._pings)))
            await asyncio.sleep(IDLE)

    def _goes(self, captured: float) -> bool:
        """Whether the frame is sent: by the controller, or unless a refusal forbids it."""
        now, chance = time.monotonic(), self._random.random()
        left = captured + DEADLINE - now
        if not self.load.steered:
            state = self._state
            return left > 0 and (self.load.deaf or (now >= state.hold and chance < state.share))
        decision, self._state = control.decide(
            self._state, self._options, LOCAL, left=left, now=now, chance=chance
        )
        return decision.option is not None

    async def _write(self, call: grpc.aio.StreamStreamCall, captured: float) -> None:
        now, self._seq = time.monotonic(), self._seq + 1
        slack = captured + DEADLINE - now if self.load.slack and not self.load.closed else None
        self._waiting[self._seq] = captured
        message = packet.frame(self._seq, self._plan, self.payload, slack)
        self._state = control.sent(self._state, self._seq, message.ByteSize(), now)
        with contextlib.suppress(*BROKEN):  # who reads is told, too
            await call.write(message)

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        while isinstance(message := await call.read(), wire.ToEdge):
            if not message.HasField("answer"):
                continue
            now, answer = time.monotonic(), message.answer
            captured = self._waiting.pop(answer.seq)
            self._learn(answer, now)
            if self.load.counts(now if self.load.closed else captured):
                self.count.sent += bool(self.load.closed)
                self._judge(answer.status, now - captured)
            if answer.status == wire.OK and now - captured <= DEADLINE:
                self.count.stamps.append(now)
            async with self._changed:
                self._changed.notify_all()

    def _learn(self, answer: wire.Answer, now: float) -> None:
        if answer.status in (wire.BUSY, wire.EXPIRED):
            wait, chance = answer.retry_after_ms / 1000, self._random.random()
            self._state = control.refused(self._state, answer.seq, wait, now, chance)
            return
        server = (answer.queue_us + answer.open_us + answer.compute_us) / 1e6
        self._state = control.answered(self._state, answer.seq, now, server=server)

    def _judge(self, status: int, took: float) -> None:
        if status == wire.OK:
            self.count.in_time += took <= DEADLINE
            self.count.late += took > DEADLINE
            self.count.took.append(1000 * took)
        elif status == wire.BUSY:
            self.count.busy += 1
        elif status == wire.EXPIRED:
            self.count.expired += 1
        else:
            sys.exit(f"error: the server answered {wire.Status.Name(status)}")


def _channel(address: str, ca: str | None) -> grpc.aio.Channel:
    if ca is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    trust = grpc.ssl_channel_credentials(Path(ca).read_bytes())
    return grpc.aio.secure_channel(address, trust, options=OPTIONS)


def _token(path: str | None, number: int) -> Sequence[tuple[str, str]]:
    """The metadata of the device of that number."""
    if path is None:
        return ()
    token = Path(path).read_text().splitlines()[number].partition(":")[2]
    return ((TOKEN, BEARER + token),)
