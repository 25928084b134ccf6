"""The hub's end of all its spokes' calls: who may come in, what is said, who is lost."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from splitrt.core.packet import reader
from splitrt.core.shards import MOST, Shards
from splitrt.errors import ModelError
from splitrt.star.call import AWAY
from splitrt.star.depot import Depot
from splitrt.star.guest import Beat, Guest, Visit, able, failed, rhythm
from splitrt.star.seal import Seal
from splitrt.wire import star_pb2 as wire

logger = logging.getLogger(__name__)
SERVICE = "splitrt.wire.star.Star"
TICK = 0.1  # seconds between two looks at who is silent
FILES = 4  # that a spoke may be sent at once
Gone = Callable[[Guest, str], None]


class Lobby:
    """The service Star. Runs on its loop, but for what says otherwise; `changed` guards guests."""

    def __init__(
        self, depot: Depot, manifest: Shards, text: bytes, seal: Seal, patience: float
    ) -> None:
        self.seal, self.patience = seal, patience
        self.changed = threading.Condition()
        self.guests: list[Guest] = []  # measured and alive, in order of joining
        self.epoch = 0  # of which losses are news
        self.news: queue.SimpleQueue[tuple[Guest, str] | None] = queue.SimpleQueue()
        self._depot, self._text = depot, text
        self.probe = min(1, len(manifest.devices) - 1)
        self._visits: dict[bytes, Visit] = {}  # by sid
        self._strangers = 0
        self._closing = False

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's two calls."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Join": grpc.stream_stream_rpc_method_handler(
                    self._join, reader(wire.FromSpoke), wire.ToSpoke.SerializeToString
                ),
                "Fetch": grpc.unary_stream_rpc_method_handler(
                    self._fetch, reader(wire.Wanted), wire.Piece.SerializeToString
                ),
            },
        )

    async def watch(self) -> None:
        """Lose who is silent; for ever."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            if now - before > AWAY:  # what came meanwhile could not be read
                for visit in self._visits.values():
                    if visit.guest is not None:
                        visit.guest.heard += now - before
            before = now
            for visit in tuple(self._visits.values()):
                self._look(visit, now)

    def _look(self, visit: Visit, now: float) -> None:
        guest = visit.guest
        if guest is not None and now - guest.heard > self.patience:
            words = f"nothing was heard of it for {self.patience:g} s"
            self.lose(guest, words)
            visit.end(grpc.StatusCode.DEADLINE_EXCEEDED, words)

    def unique(self, name: str) -> str:
        """That name, or with a number behind it, so that no two guests have one."""
        taken = {visit.guest.name for visit in self._visits.values() if visit.guest is not None}
        names = (name, *(f"{name}-{i}" for i in range(2, 2 * MOST + 2)))
        return next(one for one in names if one not in taken)

    def welcome(self, sid: bytes) -> wire.Welcome:
        """What who has proved itself is told."""
        beat, patience = rhythm(self.patience)
        return wire.Welcome(
            sid=sid, manifest=self._text, beat_ms=beat, patience_ms=patience, probe=self.probe
        )

    def say(self, guest: Guest, message: wire.ToSpoke) -> None:
        """Put it on its way, if the guest is still there."""
        visit = self._visits.get(guest.sid)
        if visit is not None:
            visit.say(message)

    def told(self, guest: Guest, kind: str, said: Any) -> bool:
        """What a guest says; whether it may say it."""
        with self.changed:
            if kind == "able":
                if not able(guest, said):
                    return False
                self.guests.append(guest)
                logger.info("%s at %s has joined", guest.name, guest.host)
            elif kind == "ready" and guest.measured:
                guest.ready = said.epoch
            elif kind == "lost" and guest.measured:
                why = failed(guest, said)
                if 0 < said.epoch == self.epoch:
                    self.news.put((guest, why))
            elif kind == "beat":
                guest.beat = Beat.of(said)
                self._visits[guest.sid].echo()
                return True
            else:
                return False
            self.changed.notify_all()
        return True

    def lose(self, guest: Guest, why: str) -> None:
        """It is no guest any more, for the first reason that is given."""
        with self.changed:
            if not guest.alive:
                return
            guest.alive, guest.why = False, why
            del self._visits[guest.sid]
            if guest in self.guests:
                self.guests.remove(guest)
                self.news.put((guest, why))
            self.changed.notify_all()
        level = logging.INFO if self._closing else logging.WARNING
        logger.log(level, "%s at %s is lost: %s", guest.name, guest.host, why)

    def close(self) -> None:
        """See everybody off."""
        self._closing = True
        for visit in tuple(self._visits.values()):
            if visit.guest is not None:
                self.lose(visit.guest, "the star is closed")
            visit.end(grpc.StatusCode.UNAVAILABLE, "the star is closed")

    async def _join(self, _: Any, context: Any) -> None:
        if self._strangers >= MOST or len(self._visits) >= MOST:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MOST} spokes at most")
        visit = Visit(self, context)
        self._strangers += 1
        try:
            guest = await visit.greet()
        finally:
            self._strangers -= 1
        self._visits[guest.sid] = visit
        await visit.stay(guest)

    async def _fetch(self, wanted: wire.Wanted | None, context: Any) -> AsyncIterator[wire.Piece]:
        visit = None if wanted is None else self._visits.get(wanted.sid)
        guest = None if visit is None else visit.guest
        if wanted is None or guest is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "join first")
            return
        path = self._depot.path(wanted.sha256)
        if path is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no file of this star has that sha256")
            return
        if guest.fetching >= FILES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{FILES} files at once")
        guest.fetching += 1
        try:
            async for piece in self._depot.pieces(path, wanted.offset):
                if not guest.alive:
                    await context.abort(grpc.StatusCode.CANCELLED, guest.why)
                yield piece
        except ModelError as error:
            logger.error("%s", error)
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        finally:
            guest.fetching -= 1
