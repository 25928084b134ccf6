"""Who is connected: devices are let in, the idle sent away, all seen off when the server closes."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import Any

import grpc

from splitrt.cloud.admit import Quota, Quotas
from splitrt.cloud.call import JITTER, Call
from splitrt.cloud.identity import Guard, Stranger, Tokens, identify
from splitrt.cloud.tally import Tally

IDLE = 300.0  # seconds in which a device must say something
WATCH = 1.0  # seconds between two looks at who is idle
STUCK = 3.0  # seconds in which the loop must come to something new
TICK = 0.02  # seconds between two looks at who has not left yet


class Reception:
    """All devices' calls. Everything here runs on the server's loop."""

    def __init__(
        self,
        *,
        max_inflight: int,
        guard: Guard,
        tokens: Tokens | None,
        quota: Quota,
        max_age: float | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.max_inflight, self.guard, self.tokens = max_inflight, guard, tokens
        self.streams: set[Call] = set()
        self.tally = Tally()
        self.closing = self.refusing = False
        self.max_age = math.inf if max_age is None else max_age
        self._quotas = Quotas(quota)

    async def watch(self) -> None:
        """Break off who says nothing for too long, send on who is here for long enough; for ever.

        Not by gRPC's own max_connection_age: a stream that lasts outlives it, or, with a grace, is
        cut together with what is in flight.
        """
        while True:
            await asyncio.sleep(min(WATCH, max(TICK, self.max_age * JITTER)))
            for stream in tuple(self.streams):
                now = time.monotonic()
                if now - stream.stirred > IDLE:
                    words = f"nothing for {IDLE:.0f} s"
                    stream.break_off(grpc.StatusCode.DEADLINE_EXCEEDED, words)
                elif now - stream.began > self.max_age * stream.share:
                    stream.part()

    def send_on(self, count: int) -> None:
        """Ask so many devices, those that are here longest, to go on to another server.

        Who stays though it was asked, or cannot be asked, keeps no place among them.
        """
        for stream in sorted(self.streams, key=lambda stream: stream.began):
            if count <= 0:
                return
            count -= stream.part()

    async def drain(self, grace: float) -> None:
        """Ask each device to go on to another server, so that nothing is lost; in `grace` seconds.

        A device that does not know how is left when it is quiet. For half of the time devices are
        served as ever; then they are refused, so that those that follow `retry_after_ms` fall
        quiet. In the end all are left.
        """
        self.closing, started = True, time.monotonic()
        while self._busy and (passed := time.monotonic() - started) < grace:
            self.refusing = passed > grace / 2
            for stream in tuple(self.streams):
                stream.part()
            await asyncio.sleep(TICK)
        for stream in tuple(self.streams):
            stream.leave()

    async def enter(self, context: Any) -> str:
        """The device's name, if it may come in now."""
        if self.closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is closing")
        return await self.known(context)

    async def known(self, context: Any) -> str:
        """The device's name, even if the server is closing."""
        try:
            return identify(context, self.guard, self.tokens)
        except Stranger as stranger:
            await context.abort(stranger.code, str(stranger))
            raise

    def over_quota(self, device: str, size: int, now: float, frames: int = 1) -> int:
        """Milliseconds after which that device may send so many bytes; 0: now, and it counts."""
        if not self._quotas.limited:
            return 0
        return math.ceil(1000 * self._quotas.wait(device, size, now, frames))

    def turns(self) -> bool:
        """Whether calls are taken in and answered now; asked from another thread."""
        turned = threading.Event()
        try:
            self.loop.call_soon_threadsafe(turned.set)
        except RuntimeError:  # the loop has ended
            return False
        return turned.wait(STUCK)

    @property
    def waiting(self) -> int:
        """What was taken and not answered yet."""
        raise NotImplementedError

    @property
    def gauges(self) -> dict[str, int]:
        """What there is now, by name."""
        return {"inflight": self.waiting, "streams": len(self.streams)}

    @property
    def _busy(self) -> bool:
        return bool(self.streams)
