"""Where devices ask for the replicas: an address that stays, whoever serves."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import grpc

from splitrt.cloud import fleet
from splitrt.cloud.call import HANDSHAKE
from splitrt.cloud.identity import Guard, Stranger, Tokens, identify
from splitrt.cloud.tally import Tally
from splitrt.errors import LinkError

LARGEST = 4 << 10  # bytes of what a device says
LAST = 0.5  # seconds for the last answers
OPTIONS = [
    ("grpc.max_receive_message_length", LARGEST),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE)),
    ("grpc.max_connection_idle_ms", 30_000),
]


class Door:
    """Answers from a thread of its own until closed. LinkError if the port is taken.

    peers: who serves now.  guard: whom it lets in, as the replicas do.
    """

    def __init__(self, peers: fleet.Peers, *, host: str, port: int, guard: Guard) -> None:
        guard.check(host)
        self._peers, self._guard, self.host = peers, guard, host
        self._tokens = None if guard.tokens is None else Tokens(guard.tokens)
        credentials = guard.credentials()
        ready: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(port, credentials, ready)),
            name="door",
            daemon=True,
        )
        self._thread.start()
        self.port = ready.result()

    @property
    def address(self) -> str:
        """host:port."""
        return f"{self.host}:{self.port}"

    def __enter__(self) -> Door:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Answer no more."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def renew(self) -> None:
        """Read the tokens anew; SplitrtError if they cannot be, then the old are valid."""
        if self._guard.tokens is not None:
            self._tokens = Tokens(self._guard.tokens)

    async def _known(self, context: Any) -> str:
        try:
            return identify(context, self._guard, self._tokens)
        except Stranger as stranger:
            await context.abort(stranger.code, str(stranger))
            raise

    async def _serve(
        self, port: int, credentials: grpc.ServerCredentials | None, ready: Future[int]
    ) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((fleet.handlers(self._peers, self._known, Tally()),))
        place = f"{self.host}:{port}"
        try:
            if credentials is None:
                bound = server.add_insecure_port(place)
            else:
                bound = server.add_secure_port(place, credentials)
        except RuntimeError:
            taken = f"{place} cannot be bound\nhelp: another port, or 0 for a free one"
            ready.set_exception(LinkError(taken))
            return
        await server.start()
        ready.set_result(bound)
        await self._closing.wait()
        await server.stop(LAST)
