"""The tail server's life: it starts, serves, takes up a changed model, drains and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from splitrt.cloud import fleet
from splitrt.cloud.admit import Quota
from splitrt.cloud.batch import Batcher
from splitrt.cloud.call import HANDSHAKE
from splitrt.cloud.front import Front
from splitrt.cloud.health import Health
from splitrt.cloud.identity import Guard, Tokens
from splitrt.cloud.layers import Layers
from splitrt.cloud.lesson import Lessons
from splitrt.cloud.reception import IDLE
from splitrt.cloud.reload import renewed, watch
from splitrt.cloud.schedule import Scheduler
from splitrt.cloud.school import learners
from splitrt.cloud.scrape import Scrape
from splitrt.cloud.seen import Seen, reflect
from splitrt.cloud.stock import Stock
from splitrt.cloud.subject import largest_beside
from splitrt.cloud.tail import Tail
from splitrt.cloud.talk import Talks, largest_message
from splitrt.cloud.trace import Tracer
from splitrt.cloud.turn import Room
from splitrt.core.language import Language, is_language
from splitrt.core.manifest import Manifest
from splitrt.errors import LinkError, ModelError, SplitrtError

logger = logging.getLogger(__name__)

GRACE = 5.0  # seconds for what is in flight when the server closes
LAST = 0.5  # seconds for the last statuses to leave


class Server:
    """Serves the server's half of one model directory from its own threads until closed.

        with Server("models/cifar10-resnet", port=50700, device="cuda") as server:
            server.wait()

    Port 0 takes a free one; `address` says which. LinkError if the port is taken. tails: folders of
    further tails of the same head; a device says which are to answer its payloads. guard: whom it
    lets in. quota: what each device may send. grace: seconds that closing may take. max_age:
    seconds after which a device is asked to go on to another server, or to come again. room: what
    the server of a language model may hold; it has no tails and no batches. seen: what it tells
    others. adapt: the exits of devices that ask for it are adapted to what they see. peers: all
    servers of the fleet it belongs to, for devices that ask. inside: a unix socket, too, where
    whoever may open it speaks unencrypted.
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
        guard: Guard = Guard(),
        quota: Quota = Quota(),
        grace: float = GRACE,
        max_age: float | None = None,
        room: Room = Room(),
        seen: Seen = Seen(),
        adapt: bool = False,
        peers: fleet.Peers | None = None,
        inside: Path | None = None,
    ) -> None:
        bytearray(
            31 << 20
        )  # freed at once: raises glibc's mmap threshold, 1 MB messages 2.5× faster
        guard.check(host)
        if max_batch < 1 or max_inflight < 1:
            found = f"max_batch = {max_batch}, max_inflight = {max_inflight}"
            raise SplitrtError(f"{found}\nhelp: both 1 or more")
        if max_age is not None and not 0 < max_age < math.inf:
            raise SplitrtError(f"max_age = {max_age}\nhelp: seconds, more than 0, or none")
        if not 0 <= grace < math.inf:
            raise SplitrtError(f"grace = {grace}\nhelp: seconds, 0 or more")
        tokens = None if guard.tokens is None else Tokens(guard.tokens)
        self._credentials = guard.credentials()
        self.host, self.grace = host, grace
        self._guard, self._threads, self._seen, self._adapt = guard, threads, seen, adapt
        self._peers, self._inside = peers, inside
        self._folders = [Path(folder), *map(Path, tails)]
        letting: dict[str, Any] = {"max_inflight": max_inflight, "guard": guard, "tokens": tokens}
        letting |= {"quota": quota, "max_age": max_age}
        tracer = Tracer() if seen.traces else None
        front: Callable[[], Front | Talks]
        if is_language(folder):
            if tracer is not None:
                raise SplitrtError("a language model's server makes no traces\nhelp: leave it out")
            if adapt:
                raise ModelError("a language model's exits are not adapted\nhelp: leave out adapt")
            layers = self._layers(device, others=tails)
            self._largest = largest_message(layers.manifest)
            front = partial(Talks, layers, room, threads=threads, **letting)
        else:
            tail = Tail(folder, Manifest.load(folder), others=tails, device=device, threads=threads)
            self._largest = letting["room"] = tail.largest_message(max_inflight)
            if adapt:
                self._largest += largest_beside(tail.manifest)
            letting |= {"tracer": tracer, "make": learners() if adapt else None}
            front = partial(Front, tail, max_batch=max_batch, **letting)
        self._over, self._reloading = threading.Event(), threading.Lock()
        self._scrape: Scrape | None = None
        ready: Future[int] = Future()

        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(front, port, ready)), name="server", daemon=True
        )
        self._thread.start()
        self.port = ready.result()
        if seen.metrics is not None:
            self._publish(seen.metrics)

    @property
    def address(self) -> str:
        """host:port, as an Edge wants it."""
        return f"{self.host}:{self.port}"

    @property
    def metrics(self) -> str | None:
        """host:port where Prometheus reads the server's figures; None if nowhere."""
        return None if self._scrape is None else self._scrape.address

    @property
    def tally(self) -> Mapping[str, int]:
        """Answers by status and calls that ended early by code, since the server began."""
        return self._front.tally.read()

    @property
    def lessons(self) -> Mapping[str, int]:
        """What became of devices' samples and of revisions, since the server began."""
        return self._front.tally.lessons()

    @property
    def inflight(self) -> int:
        """Frames or Asks that were taken and not answered yet."""
        return self._front.waiting

    @property
    def devices(self) -> int:
        """How many are connected."""
        return len(self._front.streams)

    @property
    def models(self) -> dict[str, bytes]:
        """What is served now: names, and the sha256 of each manifest."""
        if self.language:
            return {self.manifest.name: self.manifest.digest}
        return {one.manifest.name: digest for digest, one in self.tail.branches.items()}

    @property
    def batcher(self) -> Batcher:
        """Where frames wait and run."""
        assert isinstance(self._front, Front)
        return self._front.batcher

    @property
    def scheduler(self) -> Scheduler:
        """Where the sessions of a language model are."""
        assert isinstance(self._front, Talks)
        return self._front.scheduler

    @property
    def tail(self) -> Tail:
        """What answers now."""
        return self.batcher.tail

    @property
    def manifest(self) -> Manifest | Language:
        """Of the language model, or of the first tail that answers now."""
        return self.scheduler.layers.manifest if self.language else self.tail.manifest

    @property
    def language(self) -> bool:
        """Whether it serves a language model."""
        return isinstance(self._front, Talks)

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
        """Say NOT_SERVING, answer what is in flight, end; takes `grace` seconds at most."""
        self._over.set()
        with self._reloading:
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._closing.set)
                self._thread.join()
                if self._scrape is not None:
                    self._scrape.close()
                self._front.close()

    def reload(self) -> Manifest | Language:
        """Take up the model directories and the tokens as they are on disk now.

        They are proved and loaded beside those that serve, and take over between two batches.
        Devices of the old manifest are served on if only the tail changed; else their frames are
        STALE. ModelError if a directory does not prove, SplitrtError for the tokens: then the
        old go on. A language model cannot be exchanged while sessions hold keys and values of it:
        only the tokens are, and a changed directory is a ModelError.
        """
        with self._reloading:
            tokens = None if self._guard.tokens is None else Tokens(self._guard.tokens)
            tail = self._renewed()
            if self._thread.is_alive():
                swapping = self._swap(tail, tokens)
                asyncio.run_coroutine_threadsafe(swapping, self._loop).result()
            if tail is not None:
                logger.info("%s: now %s", self._folders[0], self.manifest.digest[:6].hex())
            return self.manifest

    def send_on(self, count: int) -> None:
        """Ask so many devices, those that are here longest, to go on to another server."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._front.send_on, count)

    def reload_soon(self) -> None:
        """`reload` in the background; the log says how it went. Safe in a signal handler."""
        threading.Thread(target=self._reload_or_say, name="reload", daemon=True).start()

    def watch(self) -> None:
        """From now on, `reload` whenever the files changed."""
        threading.Thread(
            target=watch,
            args=(self._folders, self._over, self._reload_or_say),
            name="watch",
            daemon=True,
        ).start()

    def _reload_or_say(self) -> None:
        try:
            self.reload()
        except SplitrtError as error:
            logger.warning("not reloaded, the old goes on: %s", error)

    def _publish(self, port: int) -> None:
        try:
            self._scrape = Scrape(self._seen.host, port, self._front)
        except LinkError:
            self.close()
            raise

    def _layers(self, device: str, others: Sequence[str | Path]) -> Layers:
        if others:
            raise ModelError("a language model has no further tails\nhelp: one server for each")
        return Layers(self._folders[0], Language.load(self._folders[0]), device=device)

    def _renewed(self) -> Tail | None:
        """What is to be taken up: a changed tail. ModelError for a changed language model."""
        if not self.language:
            return renewed(self.tail, self._folders, room=self._largest, threads=self._threads)
        if Language.load(self._folders[0]).digest != self.manifest.digest:
            raise ModelError(
                f"{self._folders[0]} changed, and a language model is not reloaded\n"
                "help: start another server with it; devices of this one go on until it is closed"
            )
        return None

    async def _swap(self, tail: Tail | None, tokens: Tokens | None) -> None:
        if tail is not None and isinstance(self._front, Front):
            self._front.swap(tail)
        self._front.tokens = tokens
        await self._health.serving(self._front.names)

    async def _run(self, front: Callable[[], Front | Talks], port: int, ready: Future[int]) -> None:
        """Serve until the end. What keeps it from beginning is told to who waits for `ready`."""
        try:
            self._front = front()
        except Exception as error:
            ready.set_exception(error)
            return
        try:
            await self._serve(port, ready)
        except Exception as error:
            if ready.done():
                raise
            self._front.close()
            ready.set_exception(error)

    async def _serve(self, port: int, ready: Future[int]) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        self._health = Health()
        server = grpc.aio.server(options=self._options())
        server.add_generic_rpc_handlers((self._front.handlers(),))
        self._health.add_to(server)
        if isinstance(self._front, Front):
            server.add_generic_rpc_handlers((Stock(self._front).handlers(),))
            if self._front.school is not None:
                lessons = Lessons(self._front, self._front.school)
                server.add_generic_rpc_handlers((lessons.handlers(),))
        if self._peers is not None:
            told = fleet.handlers(self._peers, self._front.known, self._front.tally)
            server.add_generic_rpc_handlers((told,))
        if self._seen.reflection:
            reflect(server, language=self.language, adapt=self._adapt)
        try:
            bound = self._bind(server, f"{self.host}:{port}")
        except RuntimeError as error:
            taken = f"{self.host}:{port} cannot be bound\nhelp: another port, or 0 for a free one"
            raise LinkError(taken) from error
        await self._health.serving(self._front.names)
        await server.start()
        watching = asyncio.create_task(self._front.watch())
        ready.set_result(bound)
        await self._closing.wait()
        await self._health.closing()
        await self._front.drain(self.grace)
        await server.stop(LAST)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching

    def _bind(self, server: grpc.aio.Server, address: str) -> int:
        if self._inside is not None:
            server.add_insecure_port(f"unix:{self._inside}")
        if self._credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._credentials)

    def _options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self._largest),
            ("grpc.max_metadata_size", 16 << 10),
            ("grpc.max_concurrent_streams", 100),
            ("grpc.so_reuseport", 0),
            ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE)),
            ("grpc.max_connection_idle_ms", int(1000 * IDLE)),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 4000),
            ("grpc.http2.ping_timeout_ms", 4000),
            ("grpc.http2.min_ping_interval_without_data_ms", 500),
            ("grpc.http2.max_ping_strikes", 0),
        ]
