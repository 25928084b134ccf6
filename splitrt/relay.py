"""A link to test on: passes bytes between device and server, shaped, delayed, or spoiled.

One thread and plain sockets, no rights needed; tests, demos and benchmarks share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from splitrt.core.links import Trace
from splitrt.core.way import Way
from splitrt.errors import LinkError, SplitrtError

T = TypeVar("T")

QUEUE = 64 << 10  # bytes: half a second at 1 Mbit/s, as modems have
KERNEL = 32 << 10  # bytes that a socket holds before the queue
READ = 16 << 10  # bytes at once
REACH = 5.0  # seconds for a connection to the target
CLOSING = 5.0  # seconds for the thread to end
AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


@dataclass(frozen=True, slots=True)
class Counts:
    """What a relay has done so far: bytes that landed, and that it swallowed; lines now and ever.

    spoiled: pieces that landed twice or with another byte.
    queue_up, queue_down: bytes that wait to cross.  mbps: of the uplink now; infinite: no limit.
    """

    up: int
    down: int
    swallowed: int
    spoiled: int
    queue_up: int
    queue_down: int
    mbps: float
    lines: int
    accepted: int


@dataclass(slots=True, eq=False)
class Road:
    """One direction, for all lines: they share the link as they would share a modem."""

    way: Way[tuple[Side, bytes]]
    carried: int = 0  # bytes
    twice: int = 0  # pieces that are to land twice
    flipped: int = 0  # pieces in which a byte is to change


@dataclass(slots=True, eq=False)
class Line:
    """Two sockets that belong together. lost: a hole swallowed some of it, so the rest follows."""

    sides: list[Side] = field(default_factory=list)  # the device's, then the server's
    left: int | None = None  # bytes towards the server until it is cut
    lost: bool = False

    def abort(self) -> None:
        for side in self.sides:
            side.transport.abort()


class Relay:
    """Listens on a free port and passes bytes to `target`; faults are set while it runs.

    trace, down: Mbit/s towards the server and back, constant or over time; None: no limit.
    0 is an outage: bytes wait and nothing is lost. rtt: seconds there and back, by default the
    trace's; a new connection takes one as well. jitter: seconds that come on top, 0 to so many.
    queue: bytes that wait in each direction before nothing more is read.

        with Relay("127.0.0.1:50700", trace=2.0, rtt=0.08) as relay:
            edge = Edge(model, cloud=relay.address)
            relay.hole = True

    Every setting may be changed from any thread, and holds when the assignment returns.
    LinkError if the port is taken.
    """

    def __init__(
        self,
        target: str,
        *,
        trace: Trace | float | None = None,
        down: Trace | float | None = None,
        rtt: float | None = None,
        jitter: float = 0.0,
        queue: int = QUEUE,
        port: int = 0,
    ) -> None:
        self.target = _parted(target)
        if rtt is None:
            rtt = trace.rtt if isinstance(trace, Trace) else 0.0
        self._rtt, self._jitter = _seconds("rtt", rtt), _seconds("jitter", jitter)
        if queue < 1:
            raise SplitrtError(f"queue = {queue}\nhelp: bytes, 1 or more")
        self._up = Road(Way(trace=_rate(trace), queue=queue))
        self._down = Road(Way(trace=_rate(down), queue=queue))
        self._delay()
        self._hole = self._refuse = False
        self._truncate: int | None = None
        self._lines: set[Line] = set()
        self._swallowed = self._spoiled = self._accepted = 0
        self._timer: asyncio.TimerHandle | None = None
        self._reaching: set[asyncio.Task[None]] = set()
        self._listener = _listen(port)
        self.port: int = self._listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(ready)), name="relay", daemon=True
        )
        self._thread.start()
        ready.wait()

    @property
    def address(self) -> str:
        """host:port, as an Edge wants it."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cut every line and end."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(CLOSING)

    @property
    def counts(self) -> Counts:
        """What happened so far."""
        return self._do(self._counted)

    @property
    def trace(self) -> Trace | None:
        """Mbit/s towards the server, from its beginning when it is set. A number is a constant."""
        return self._up.way.trace

    @trace.setter
    def trace(self, trace: Trace | float | None) -> None:
        made = _rate(trace)
        self._do(lambda: self._up.way.reshape(self._loop.time(), made))

    @property
    def down(self) -> Trace | None:
        """Mbit/s towards the device."""
        return self._down.way.trace

    @down.setter
    def down(self, trace: Trace | float | None) -> None:
        made = _rate(trace)
        self._do(lambda: self._down.way.reshape(self._loop.time(), made))

    @property
    def rtt(self) -> float:
        """Seconds there and back."""
        return self._rtt

    @rtt.setter
    def rtt(self, rtt: float) -> None:
        self._rtt = _seconds("rtt", rtt)
        self._do(self._delay)

    @property
    def jitter(self) -> float:
        """Seconds that come on top of the round trip, 0 to so many."""
        return self._jitter

    @jitter.setter
    def jitter(self, jitter: float) -> None:
        self._jitter = _seconds("jitter", jitter)
        self._do(self._delay)

    @property
    def stall(self) -> bool:
        """Bytes wait, in both directions, and go on when it is over."""
        return self._up.way.held

    @stall.setter
    def stall(self, on: bool) -> None:
        self._do(lambda: self._set_stall(on))

    @property
    def hole(self) -> bool:
        """A black hole behind the first hop: lines stay open and new ones are accepted, and
        whatever they carry is gone. A line that lost a byte never carries one again.
        """
        return self._hole

    @hole.setter
    def hole(self, on: bool) -> None:
        self._do(lambda: self._set_hole(on))

    @property
    def refuse(self) -> bool:
        """New lines are closed at once with a reset; those that are open stay."""
        return self._refuse

    @refuse.setter
    def refuse(self, on: bool) -> None:
        self._do(lambda: setattr(self, "_refuse", on))

    @property
    def truncate(self) -> int | None:
        """Bytes that each line, open or to come, still carries to the server before it is cut."""
        return self._truncate

    @truncate.setter
    def truncate(self, left: int | None) -> None:
        self._do(lambda: self._set_truncate(left))

    def cut(self) -> None:
        """Close every line that is open now."""
        self._do(self._cut)

    def duplicate(self, *, up: bool = True) -> None:
        """Let the next piece land twice."""
        road = self._roads[not up]
        self._do(lambda: setattr(road, "twice", road.twice + 1))

    def corrupt(self, *, up: bool = True) -> None:
        """Change one byte of the next piece."""
        road = self._roads[not up]
        self._do(lambda: setattr(road, "flipped", road.flipped + 1))

    @property
    def _roads(self) -> tuple[Road, Road]:
        return self._up, self._down

    def _do(self, change: Callable[[], T]) -> T:
        """Call it on the relay's thread, wait for it, and let the link go on."""
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(change())
            except Exception as error:  # whatever it is, it is the caller's
                done.set_exception(error)
            self._turn()

        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # closed: nothing runs any more
            return change()
        return done.result(CLOSING)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await self._loop.create_server(
            lambda: Side(self, Line(), self._up), sock=self._listener
        )
        ready.set()
        await self._over.wait()
        server.close()
        for task in tuple(self._reaching):
            task.cancel()
        self._cut()
        await asyncio.sleep(0)  # the aborted close their sockets

    def accept(self, side: Side) -> None:
        """A device has come: reach the server for it, after a round trip."""
        self._accepted += 1
        if self._refuse:
            plug = side.transport.get_extra_info("socket")
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            side.transport.abort()
            return
        side.line.left = self._truncate
        self._lines.add(side.line)
        task = self._loop.create_task(self._reach(side.line))
        self._reaching.add(task)
        task.add_done_callback(self._reaching.discard)

    async def _reach(self, line: Line) -> None:
        line.lost = self._hole
        await asyncio.sleep(self._rtt)
        line.lost = line.lost or self._hole
        if not line.lost and not line.sides[0].over:
            making = self._loop.create_connection(
                lambda: Side(self, line, self._down), *self.target
            )
            try:
                await asyncio.wait_for(making, REACH)
            except (OSError, asyncio.TimeoutError):
                line.abort()
        if not line.sides[0].over:
            line.sides[0].resume()

    def arrived(self, side: Side, data: bytes) -> None:
        """Bytes came in at a side, or none: its end. They join the queue."""
        way, now = side.road.way, self._loop.time()
        grain = way.grain
        for begin in range(0, max(1, len(data)), grain):
            piece = data[begin : begin + grain]
            way.put(now, (side, piece), len(piece))
        self._turn()

    def gone(self, side: Side) -> None:
        """A side has closed."""
        line = side.line
        if not (line.lost and self._hole):  # in a hole the other side does not learn of it
            line.abort()
        if all(one.over for one in line.sides):
            self._lines.discard(line)
        self._turn()

    def _turn(self) -> None:
        """Let land what is due, read what there is room for, and wake when more is due."""
        now = self._loop.time()
        for road in self._roads:
            for side, data in road.way.take(now):
                self._land(road, side, data)
        for line in tuple(self._lines):
            for side in line.sides:
                side.adjust()
        if self._timer is not None:
            self._timer.cancel()
        due = min(road.way.due() for road in self._roads)
        self._timer = None if math.isinf(due) else self._loop.call_at(due, self._turn)

    def _land(self, road: Road, side: Side, data: bytes) -> None:
        line = side.line
        line.lost = line.lost or self._hole
        if line.lost:
            self._swallowed += len(data)
            if not data and not self._hole:
                line.abort()
            return
        sink = side.peer
        if sink is None or sink.over:
            return
        if not data:
            sink.end()
            return
        data = self._spoil(road, data)
        if road is self._up and line.left is not None:
            data = data[: line.left]
            line.left -= len(data)
        road.carried += len(data)
        sink.transport.write(data)
        if line.left == 0:
            for one in line.sides:
                one.transport.close()  # after what is written

    def _spoil(self, road: Road, data: bytes) -> bytes:
        if road.flipped:
            road.flipped, self._spoiled = road.flipped - 1, self._spoiled + 1
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
        if road.twice:
            road.twice, self._spoiled = road.twice - 1, self._spoiled + 1
            data += data
        return data

    def _counted(self) -> Counts:
        up, down = (road.way for road in self._roads)
        return Counts(
            up=self._up.carried,
            down=self._down.carried,
            swallowed=self._swallowed,
            spoiled=self._spoiled,
            queue_up=up.waiting,
            queue_down=down.waiting,
            mbps=up.mbps,
            lines=len(self._lines),
            accepted=self._accepted,
        )

    def _delay(self) -> None:
        for road in self._roads:
            road.way.delay, road.way.jitter = self._rtt / 2, self._jitter / 2

    def _set_stall(self, on: bool) -> None:
        for road in self._roads:
            road.way.hold(self._loop.time(), on)

    def _cut(self) -> None:
        for line in tuple(self._lines):
            line.abort()

    def _set_hole(self, on: bool) -> None:
        self._turn()  # what is due has landed before
        self._hole = on
        for line in tuple(self._lines):
            if not on and line.lost and any(side.ended for side in line.sides):
                line.abort()

    def _set_truncate(self, left: int | None) -> None:
        self._truncate = left
        for line in self._lines:
            line.left = left


class Side(asyncio.BufferedProtocol):
    """One socket of a line; what comes in goes to the relay's queue, as far as there is room."""

    transport: asyncio.Transport

    def __init__(self, relay: Relay, line: Line, road: Road) -> None:
        self.relay, self.line, self.road = relay, line, road
        self.over = self.ended = False  # closed; has said its last
        self._buffer = memoryview(bytearray(READ))
        self._told = self._reading = self._choked = False
        self._begun = len(line.sides) == 1  # the device's side waits for the server's

    @property
    def peer(self) -> Side | None:
        """The other socket of the line."""
        return next((side for side in self.line.sides if side is not self), None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        plug = transport.get_extra_info("socket")  # asyncio does so only where it made the socket
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reading = True
        self.line.sides.append(self)
        if not self._begun:
            self.relay.accept(self)
            asyncio.get_running_loop().call_soon(self.adjust)  # after asyncio began to read

    def resume(self) -> None:
        """The way to the server is open: read."""
        self._begun = True
        self.adjust()

    def adjust(self) -> None:
        """Read only while there is room in the queue and the other side takes what lands."""
        peer = self.peer
        wanted = self._begun and self.road.way.room > 0 and not (peer and peer._choked)
        if self.over or self.ended or wanted == self._reading or self.transport.is_closing():
            return
        self._reading = wanted
        (self.transport.resume_reading if wanted else self.transport.pause_reading)()

    def end(self) -> None:
        """The other side has said its last: pass that on, and close when both have."""
        self._told, peer = True, self.peer
        if not self.transport.is_closing():
            with contextlib.suppress(OSError):
                self.transport.write_eof()
        if peer is not None and peer._told:
            self.transport.close()
            peer.transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[: max(1, min(READ, self.road.way.room))]

    def buffer_updated(self, nbytes: int) -> None:
        self.relay.arrived(self, bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        self.ended = True
        self.relay.arrived(self, b"")
        return True  # the other direction stays open

    def pause_writing(self) -> None:
        self._choke(True)

    def resume_writing(self) -> None:
        self._choke(False)

    def _choke(self, choked: bool) -> None:
        self._choked = choked
        if self.peer is not None:
            self.peer.adjust()

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = self.ended = True
        self.relay.gone(self)


def narrate(relay: Relay, over: threading.Event) -> None:
    """Print a line a second until `over` is set: the link, what crossed in it, what waits."""
    before, begun = relay.counts, time.monotonic()
    while not over.wait(1.0):
        now = relay.counts
        print(
            f"{time.monotonic() - begun:6.0f} s  link {now.mbps:7.2f} Mbit/s  "
            f"up {now.up - before.up:10,} B, {now.queue_up:7,} wait  "
            f"down {now.down - before.down:10,} B  lines {now.lines}",
            flush=True,
        )
        before = now


def _listen(port: int) -> socket.socket:
    try:
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
    except (OSError, OverflowError) as error:
        raise LinkError(
            f"127.0.0.1:{port} cannot be bound\nhelp: another port, or 0 for a free one"
        ) from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL)  # the accepted inherit it
    return listener


def _parted(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SplitrtError(f"target {target!r}\nhelp: host:port, for instance 127.0.0.1:50700")
    return host.strip("[]"), int(port)


def _rate(rate: Trace | float | None) -> Trace | None:
    """A constant as a trace of one step."""
    if rate is None or isinstance(rate, Trace):
        return rate
    return Trace(f"{rate:g}mbps", np.array([float(rate)]))


def _seconds(name: str, value: float) -> float:
    if not 0 <= value < 60:
        raise SplitrtError(f"{name} = {value}\nhelp: seconds, 0 or more, below 60")
    return float(value)
