"""A spoke: it joins a hub, or waits to be asked, and joins again whenever its star ends."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from splitrt.core.packet import reader
from splitrt.core.shards import MOST, Shards
from splitrt.errors import LinkError, SplitrtError
from splitrt.star.call import SERVING, credentials, host, trust
from splitrt.star.guest import NAME
from splitrt.star.meet import parted
from splitrt.star.room import Room
from splitrt.star.seal import Seal
from splitrt.star.shard import Stack
from splitrt.star.stay import Self, Stay
from splitrt.star.store import Store
from splitrt.star.work import Loader
from splitrt.wire import star_pb2 as wire

logger = logging.getLogger(__name__)
SERVICE = "splitrt.wire.star.Point"
FIRST_RETRY, LAST_RETRY, GROWTH = 0.2, 5.0, 1.6  # seconds
LAST = 0.5  # seconds for the last statuses to leave


class Point:
    """A spoke in threads of its own until closed. join: the hub's host:port; wait: where to listen.

    store: where files are kept.  room: what it gives of itself; without memory, what is free.
    name: as people read it.  layers: makes them, for tests.

        with Point(join="hub:50710") as point:
            point.wait()
    """

    def __init__(
        self,
        *,
        join: str | None = None,
        wait: str | None = None,
        store: str | Path | None = None,
        seal: Seal | None = None,
        room: Room = Room(),
        name: str | None = None,
        layers: Loader | None = None,
    ) -> None:
        if (join is None) == (wait is None):
            raise SplitrtError("a spoke joins a hub, or waits for one\nhelp: give one of the two")
        seal = seal or Seal()
        name = own_name() if name is None else name
        if not NAME.fullmatch(name):
            raise SplitrtError(f"name {name!r}\nhelp: letters, digits, . _ and -, 64 at most")
        self._me = Self(
            name, Store(store), layers or _loader(room), seal, room.threads, room.memory
        )
        self._over, self._changed = threading.Event(), threading.Condition()
        self._hub = join
        self._stay: Stay | None = None
        self._invited = False
        self._server: grpc.Server | None = None
        self.address: str | None = None
        if wait is not None:
            self._listen(wait)
        if join is not None:
            parted(join)  # what is wrong with it is said now, not in the thread
            trust(seal).channel(join, []).close()
        self._thread = threading.Thread(target=self._live, name="point", daemon=True)
        self._thread.start()

    def __enter__(self) -> Point:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Until somebody calls `stop` or `close`."""
        while not self._over.wait(1.0):
            pass

    def stop(self) -> None:
        """Let `wait` return; safe in a signal handler."""
        self._over.set()

    def close(self) -> None:
        """Leave the star, and listen no more."""
        self._over.set()
        with self._changed:
            self._changed.notify_all()
            if self._stay is not None:
                self._stay.leave()
        self._thread.join()
        if self._server is not None:
            self._server.stop(LAST).wait()

    def _live(self) -> None:
        """Stay after stay; say once why there is none."""
        pause, said = FIRST_RETRY, ""
        while (stay := self._next()) is not None:
            try:
                stay.run()
            except SplitrtError as error:
                if stay.welcomed:
                    pause, said = FIRST_RETRY, ""
                if str(error) != said and not self._over.is_set():
                    logger.warning("not in a star, and trying again: %s", error)
                    said = str(error)
            with self._changed:
                self._stay = None
                if self._server is not None and not stay.welcomed:
                    self._hub = None  # whoever invited us there may do so again
                self._changed.wait_for(self._woken, pause * random.uniform(0.8, 1.2))
            pause = min(LAST_RETRY, pause * GROWTH)

    def _woken(self) -> bool:
        return self._over.is_set() or self._invited

    def _next(self) -> Stay | None:
        """A stay with the hub that is known, once there is one; None: it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._over.is_set() or self._hub is not None)
            if self._over.is_set() or self._hub is None:
                return None
            self._invited = False
            self._stay = Stay(self._hub, self._me)
            return self._stay

    def _listen(self, where: str) -> None:
        """Be there for invitations."""
        name, papers = parted(where)[0], credentials(self._me.seal)
        come = grpc.unary_unary_rpc_method_handler(
            self._come, reader(wire.Invitation), wire.Coming.SerializeToString
        )
        server = grpc.server(ThreadPoolExecutor(2), options=SERVING, maximum_concurrent_rpcs=MOST)
        handler = grpc.method_handlers_generic_handler(SERVICE, {"Come": come})
        server.add_generic_rpc_handlers((handler,))
        try:
            bound = (
                server.add_insecure_port(where)
                if papers is None
                else server.add_secure_port(where, papers)
            )
        except RuntimeError as error:
            words = f"{where} cannot be bound\nhelp: another port, or 0 for a free one"
            raise LinkError(words) from error
        server.start()
        self._server = server
        self.address = f"[{name}]:{bound}" if ":" in name else f"{name}:{bound}"

    def _come(self, asked: wire.Invitation | None, context: Any) -> wire.Coming:
        """An invitation counts unless we are in a star, or on our way there."""
        where = host(context.peer())
        if asked is None or where is None or not 0 < asked.port < 1 << 16:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an invitation names a port")
            return wire.Coming()
        with self._changed:
            if self._stay is not None:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, f"in the star of {self._stay.hub}")
            self._hub, self._invited = f"{where}:{asked.port}", True
            self._changed.notify_all()
        return wire.Coming()


def serve(
    *,
    join: str | None = None,
    wait: str | None = None,
    store: str | Path | None = None,
    seal: Seal | None = None,
    room: Room = Room(),
    name: str | None = None,
    layers: Loader | None = None,
) -> None:
    """Be a spoke until SIGTERM or SIGINT; as `Point`."""
    with Point(
        join=join, wait=wait, store=store, seal=seal, room=room, name=name, layers=layers
    ) as point:
        if point.address is not None:
            logger.info("waiting at %s", point.address)
        with _stopping(point):
            point.wait()


def _loader(room: Room) -> Loader:
    def layers(folder: Path, manifest: Shards, held: Sequence[int], longest: int) -> Stack:
        return room.stack(folder, manifest, held, longest=longest)

    return layers


def own_name() -> str:
    """This machine's, as far as it is plain."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64].lstrip("._-")
    return plain or "spoke"


@contextlib.contextmanager
def _stopping(point: Point) -> Iterator[None]:
    """SIGTERM and SIGINT stop it; only a program's first thread can have that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(one, lambda *_: point.stop()) for one in names]
    try:
        yield
    finally:
        for one, handler in zip(names, before, strict=True):
            signal.signal(one, handler)
