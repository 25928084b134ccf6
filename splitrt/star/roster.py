"""The hub's list of spokes: they join, are given their shards, and are watched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import grpc

from splitrt.core.manifest import raw
from splitrt.core.shards import Shards
from splitrt.edge.link import renamed
from splitrt.errors import LinkDown, LinkError
from splitrt.star.call import CALLS, OPTIONS, PATIENCE, SERVING, credentials, trust
from splitrt.star.depot import Depot
from splitrt.star.guest import Guest
from splitrt.star.lobby import Gone, Lobby
from splitrt.star.meet import parted
from splitrt.star.reduce import Way
from splitrt.star.seal import Seal
from splitrt.wire import star_pb2 as wire
from splitrt.wire.star_pb2_grpc import PointStub

logger = logging.getLogger(__name__)
EVERY = 2.0  # seconds between two invitations of one spoke
LAST = 0.5  # seconds for the last statuses to leave


class Roster:
    """Serves a star's directory to spokes at `listen` (port 0: a free one) until closed.

        with Roster("models/in-3", Shards.load("models/in-3"), "0.0.0.0:50710") as roster:
            guests = roster.wait(2, timeout=60)
            roster.hold(1, {guests[0]: [1], guests[1]: [2]}, port=50711, rows=16, longest=2048)

    patience: seconds without a word after which a spoke is lost; one that dies is at once.
    gone: called from a thread of its own with a guest and why: it is lost (not `alive`), or its
    sums of the last epoch failed.  seal: whom it lets in.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Shards,
        listen: str,
        *,
        seal: Seal | None = None,
        patience: float = PATIENCE,
        gone: Gone | None = None,
    ) -> None:
        self._host, port = parted(listen)
        self._seal, self._manifest = seal or Seal(), manifest
        papers, depot = credentials(self._seal), Depot(folder, manifest)
        self._lobby = Lobby(depot, manifest, raw(folder), self._seal, patience)
        self._gone, self._over = gone, threading.Event()
        ready: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(f"{self._host}:{port}", papers, ready)),
            name="roster",
            daemon=True,
        )
        self._thread.start()
        self.port = ready.result()
        self._news = threading.Thread(target=self._tell, name="roster-news", daemon=True)
        self._news.start()

    @property
    def address(self) -> str:
        """host:port, as a spoke joins it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self.port}"

    @property
    def probe(self) -> int:
        """The shard whose first feed-forward graph every device times."""
        return self._lobby.probe

    @property
    def guests(self) -> tuple[Guest, ...]:
        """Who is here now and was measured, in order of joining."""
        with self._lobby.changed:
            return tuple(self._lobby.guests)

    def __enter__(self) -> Roster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def invite(self, where: str) -> None:
        """From now on ask the spoke that waits at host:port to join, whenever it is in no star.

        SplitrtError for an address that is none, or a seal that cannot call.
        """
        parted(where)
        trust(self._seal).channel(where, []).close()
        threading.Thread(
            target=self._inviting, args=(where,), name=f"invite-{where}", daemon=True
        ).start()

    def wait(self, count: int, timeout: float) -> list[Guest]:
        """So many guests, or as many as there are after `timeout` seconds."""
        with self._lobby.changed:
            self._lobby.changed.wait_for(lambda: len(self._lobby.guests) >= count, timeout)
            return list(self._lobby.guests)

    def hold(
        self,
        epoch: int,
        division: Mapping[Guest, Sequence[int]],
        *,
        port: int,
        rows: int,
        longest: int,
        ways: Sequence[Way] = (Way(),),
        timeout: float | None = None,
    ) -> None:
        """Tell each which shards it holds now, and wait until all are ready to join the sums.

        The guests are devices 1, 2, ... in the order of `division`; the hub is 0, holds the shards
        that are left, and its `Hub` of `agreed(...)` is to listen at `port`.

        epoch: larger than the last.  rows: at once, at most.  longest: positions of a text.
        timeout: seconds; files may have to be fetched.  LinkDown names who is lost, or cannot hold
        its part; `gone` is told as well.
        """
        held = [len(shards) for shards in division.values()]
        parts = [len(self._manifest.devices) - sum(held), *held]
        with self._lobby.changed:
            self._lobby.epoch = epoch
            for device, (guest, shards) in enumerate(division.items(), 1):
                guest.ready, guest.lost = 0, (0, "")
                self._post(
                    guest,
                    wire.Hold(
                        epoch=epoch,
                        shards=shards,
                        device=device,
                        devices=len(division) + 1,
                        port=port,
                        rows=rows,
                        longest=longest,
                        ways=[str(way) for way in ways],
                        parts=parts,
                    ),
                )
            self._ready(epoch, tuple(division), timeout)

    def rest(self) -> None:
        """From now on until `hold` no sums are to be: that they fail at a spoke is no news."""
        with self._lobby.changed:
            self._lobby.epoch = 0

    def close(self) -> None:
        """See all spokes off, and stop listening. `gone` is not told."""
        self._over.set()
        if self._thread.is_alive():
            self._gone = None
            with contextlib.suppress(RuntimeError):  # its loop has just ended
                self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()
            self._lobby.news.put(None)
            if self._news is not threading.current_thread():
                self._news.join()

    def _ready(self, epoch: int, guests: Sequence[Guest], timeout: float | None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            for guest in guests:
                _check(guest, epoch)
            if all(guest.ready == epoch for guest in guests):
                return
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                names = ", ".join(one.name for one in guests if one.ready != epoch)
                raise LinkDown(f"{names}: not ready after {timeout:g} s\nhelp: is the link slow?")
            self._lobby.changed.wait(left)

    def _post(self, guest: Guest, hold: wire.Hold) -> None:
        message = wire.ToSpoke(hold=hold)
        try:
            self._loop.call_soon_threadsafe(self._lobby.say, guest, message)
        except RuntimeError as error:
            raise LinkDown("this star is closed\nhelp: a new Roster") from error

    def _tell(self) -> None:
        """Losses, one after the other: whoever is told may take its time."""
        for guest, why in iter(self._lobby.news.get, None):
            gone = self._gone
            if gone is not None:
                try:
                    gone(guest, why)
                except Exception:  # the caller's own; the next loss is told all the same
                    logger.exception("%s is lost, and nobody could be told", guest.name)

    async def _serve(
        self, listen: str, papers: grpc.ServerCredentials | None, ready: Future[int]
    ) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server(options=SERVING, maximum_concurrent_rpcs=CALLS)
        server.add_generic_rpc_handlers((self._lobby.handlers(),))
        try:
            port = (
                server.add_insecure_port(listen)
                if papers is None
                else server.add_secure_port(listen, papers)
            )
        except RuntimeError:
            words = f"{listen} cannot be bound\nhelp: another port, or 0 for a free one"
            ready.set_exception(LinkError(words))
            return
        await server.start()
        watching = asyncio.create_task(self._lobby.watch())
        ready.set_result(port)
        await self._closing.wait()
        self._lobby.close()
        await server.stop(LAST)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    def _inviting(self, where: str) -> None:
        """Ask again and again; say once what is wrong."""
        said = ""
        with trust(self._seal).channel(where, OPTIONS) as channel:
            while True:
                try:
                    PointStub(channel).Come(wire.Invitation(port=self.port), timeout=EVERY)
                    said = ""
                except grpc.RpcError as error:
                    words = str(renamed(error, where))
                    if error.code() != grpc.StatusCode.ALREADY_EXISTS and words != said:
                        logger.warning("invited in vain, and will be again: %s", words)
                        said = words
                if self._over.wait(EVERY):
                    return


def _check(guest: Guest, epoch: int) -> None:
    """LinkDown if it is lost, or cannot be ready."""
    if not guest.alive:
        raise LinkDown(f"{guest.name} is lost: {guest.why}\nhelp: divide the model anew")
    if guest.lost[0] == epoch:
        raise LinkDown(f"{guest.name} cannot hold its part: {guest.lost[1]}")
