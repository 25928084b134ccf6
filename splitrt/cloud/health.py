"""grpc.health.v1, as load balancers ask for it: whether the server, and each model, is served."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

PATIENCE = 1.0  # seconds for those who watch; one who does not read would hold up the others
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The service, with a name for each model and "" for the whole server."""

    def __init__(self) -> None:
        self._servicer = health.aio.HealthServicer()
        self._names: set[str] = set()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Let the server answer for it."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def serving(self, names: set[str]) -> None:
        """These models are served, and no others."""
        gone, self._names = self._names - names, names
        await self._say({**dict.fromkeys(gone, NOT_SERVING), **dict.fromkeys(names, SERVING)})

    async def closing(self) -> None:
        """Nothing is served any more."""
        await self._say(dict.fromkeys(["", *self._names], NOT_SERVING))

    async def _say(self, statuses: dict[str, int]) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            telling = (self._servicer.set(name, status) for name, status in statuses.items())
            await asyncio.wait_for(asyncio.gather(*telling), PATIENCE)
