"""Who is connected: devices are let in, the idle sent away, all seen off when the server closes."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import grpc

from splitrt.cloud.admit import Quota, Quotas
from splitrt.cloud.call import Call
from splitrt.cloud.identity import Guard, Stranger, Tokens, identify
from splitrt.cloud.tally import Tally

IDLE = 300.0  # seconds in which a device must say something
WATCH = 1.0  # seconds between two looks at who is idle
QUIET = 0.1  # seconds without a frame, after which a closing server ends a stream


class Reception:
    """All devices' calls. Everything here runs on the server's loop."""

    def __init__(
        self, *, max_inflight: int, guard: Guard, tokens: Tokens | None, quota: Quota
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.max_inflight, self.guard, self.tokens = max_inflight, guard, tokens
        self.streams: set[Call] = set()
        self.tally = Tally()
        self.closing = self.refusing = False
        self._quotas = Quotas(quota)

    async def watch(self) -> None:
        """Break off who says nothing for too long; for ever."""
        while True:
            await asyncio.sleep(WATCH)
            for stream in tuple(self.streams):
                if time.monotonic() - stream.stirred > IDLE:
                    words = f"nothing for {IDLE:.0f} s"
                    stream.break_off(grpc.StatusCode.DEADLINE_EXCEEDED, words)

    async def drain(self, grace: float) -> None:
        """End each stream when it is quiet, so that nothing is lost; all after `grace` seconds.

        For half of that time devices are served as ever; then they are refused, so that those
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
