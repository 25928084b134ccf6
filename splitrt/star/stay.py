"""One stay of a spoke in a star: from the first word to its hub to the last of it."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from splitrt.core.memory import available
from splitrt.edge.link import renamed
from splitrt.errors import LinkDown, PacketError, Refused
from splitrt.star import probe
from splitrt.star.call import (
    AWAY,
    BEAT,
    GREETING,
    HUB,
    OPTIONS,
    PROTOCOL,
    SILENCE,
    SPOKE,
    fresh,
    trust,
)
from splitrt.star.greet import NONCE
from splitrt.star.meet import parted
from splitrt.star.room import peak
from splitrt.star.seal import Seal
from splitrt.star.store import Source, Store
from splitrt.star.work import Loader, Place, Shelved, Task, Work
from splitrt.wire import star_pb2 as wire
from splitrt.wire.star_pb2_grpc import StarStub

logger = logging.getLogger(__name__)
SHORTEST, LONGEST = 0.02, 5.0  # seconds between beats
LEAST = 4  # beats that a hub may leave unanswered, whatever it says of its patience
FILLING = 10.0  # seconds of its silence while the first files come and are proved
ARRIVING = 60.0  # seconds for the manifest, and of a hub's silence at most
QUEUED = 16  # messages for a hub that takes none, from which on beats are left out


@dataclass(frozen=True, slots=True)
class Self:
    """What a spoke is. memory: bytes that it may take."""

    name: str
    store: Store
    loader: Loader
    seal: Seal = Seal()
    threads: int | None = None
    memory: int | None = None


class Stay:
    """`run` it in one thread, `leave` from any other."""

    def __init__(self, hub: str, me: Self) -> None:
        self.hub, self.welcomed = hub, False
        self._me, self._host = me, parted(hub)[0]
        self._outbox: queue.SimpleQueue[wire.FromSpoke | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._work: Work | None = None
        self._apart, self._silence = BEAT, FILLING
        self._heard, self._listening = time.monotonic(), False
        self._beats = threading.Thread(target=self._beat, name="star-beat", daemon=True)
        self._channel = trust(me.seal).channel(hub, OPTIONS)
        self._call: Any = None

    def run(self) -> None:
        """Join, and do what the hub says, until an error ends it: it is gone, or refuses us."""
        stub = StarStub(self._channel)
        try:
            self._call = stub.Join(iter(self._outbox.get, None))
            self._stay(stub)
        except grpc.RpcError as error:
            raise renamed(error, self.hub) from error
        finally:
            self._over.set()
            self.leave()
            self._channel.close()

    def leave(self) -> None:
        """End it."""
        self._over.set()
        self._outbox.put(None)
        if self._call is not None:
            self._call.cancel()

    def _stay(self, stub: StarStub) -> None:
        welcome = self._greeted()
        folder, manifest = self._me.store.model(welcome.manifest)
        if welcome.probe >= len(manifest.devices):
            raise PacketError(f"{self.hub} has no shard {welcome.probe}\nhelp: the same splitrt?")
        self._hears()
        self._listening = self.welcomed = True
        self._apart = min(max(welcome.beat_ms / 1000, SHORTEST), LONGEST)
        source = fetching(stub, welcome.sid, self.hub, self._hears)
        store, loader = self._me.store, self._me.loader
        place = Place(self._host, self._me.seal, manifest, folder, store, source, loader)
        shelved = Shelved(place)
        try:
            self._measured(place, welcome.probe)
            silence = SILENCE * welcome.patience_ms / 1000
            self._silence = min(max(silence, LEAST * self._apart), ARRIVING)
            for message in self._call:
                self._hears()
                self._told(message, place, shelved)
        finally:
            self._over.set()
            if self._work is not None:
                self._work.stop()
            shelved.close()
        raise LinkDown(f"{self.hub} ended the star")

    def _greeted(self) -> wire.Welcome:
        """Welcome, once both have proved that they know the secret."""
        seal, own, name = self._me.seal, fresh(), self._me.name
        hello = wire.Hello(protocol=PROTOCOL, name=name, nonce=own)
        self._outbox.put(wire.FromSpoke(hello=hello))
        challenge = self._hear("challenge", GREETING)
        both = (own, challenge.nonce, name.encode())
        if len(challenge.nonce) != NONCE or not seal.proves(challenge.proof, HUB, *both):
            words = f"{self.hub} has not this star's secret"
            raise Refused(f"{words}\nhelp: the same secret on all devices; the right address?")
        proof = wire.Proof(proof=seal.proof(SPOKE, *both))
        self._outbox.put(wire.FromSpoke(proof=proof))
        self._beats.start()
        return self._hear("welcome", ARRIVING)

    def _hear(self, kind: str, timeout: float) -> Any:
        """That message, within so many seconds."""
        alarm = threading.Timer(timeout, self._call.cancel)  # gRPC has none for one message
        alarm.start()
        try:
            message = next(self._call, None)
        finally:
            alarm.cancel()
        if message is None or message.WhichOneof("what") != kind:
            raise PacketError(f"{self.hub} does not greet\nhelp: is that a star's hub?")
        return getattr(message, kind)

    def _measured(self, place: Place, shard: int) -> None:
        one = place.manifest.devices[shard]
        place.store.fill(place.folder, one, probe.needed(one), place.source, self._over)
        hidden, folder = place.manifest.shape.hidden, place.folder / one.folder
        memory = available() if self._me.memory is None else self._me.memory
        with self._deaf():
            seconds = probe.seconds(folder, one, hidden, self._me.threads)
        able = wire.Able(seconds=seconds, memory=memory, disk=place.store.free)
        logger.info("in the star of %s: %.3g ms a row", self.hub, 1000 * able.seconds)
        self._outbox.put(wire.FromSpoke(able=able))

    def _told(self, message: wire.ToSpoke, place: Place, shelved: Shelved) -> None:
        """The next division: what is done for the last one ends."""
        kind = message.WhichOneof("what")
        if kind == "heard":
            return
        if kind != "hold":
            raise PacketError(f"{self.hub} says what no hub says\nhelp: the same splitrt?")
        task = Task.of(message.hold, place.manifest)
        if self._work is not None:
            with self._deaf():
                self._work.stop()
        self._work = Work(task, place, shelved, self._outbox.put)

    def _hears(self) -> None:
        self._heard = time.monotonic()

    @contextlib.contextmanager
    def _deaf(self) -> Iterator[None]:
        """What takes long in the thread that hears the hub is not the hub's silence."""
        self._listening = False
        try:
            yield
        finally:
            self._hears()
            self._listening = True

    def _beat(self) -> None:
        """Say again and again that we live, and what was spent; end it if the hub does not."""
        before = time.monotonic()
        while not self._over.wait(self._apart):
            now = time.monotonic()
            if now - before > self._apart + AWAY:  # what came meanwhile could not be heard
                self._heard += now - before
            before = now
            if self._listening and now - self._heard > self._silence:
                logger.warning("nothing was heard of %s for %g s", self.hub, self._silence)
                self.leave()
            elif self._outbox.qsize() < QUEUED:
                self._outbox.put(wire.FromSpoke(beat=self._spent()))

    def _spent(self) -> wire.Beat:
        work = self._work
        if work is None:
            return wire.Beat(peak=peak())
        spent, sums = work.spent, work.sums
        waited = spent.reduce - sums
        names = {"compute": spent.compute, "reduce": sums, "wait": waited, "load": spent.load}
        return wire.Beat(
            epoch=work.task.epoch,
            steps=spent.steps,
            peak=peak(),
            **{f"{name}_us": max(0, int(1e6 * took)) for name, took in names.items()},
        )


def fetching(stub: StarStub, sid: bytes, hub: str, hears: Callable[[], None]) -> Source:
    """The hub's files. hears: called with each piece that comes."""

    def pieces(sha256: str, offset: int) -> Iterator[tuple[int, bytes]]:
        wanted = wire.Wanted(sid=sid, sha256=bytes.fromhex(sha256), offset=offset)
        call = stub.Fetch(wanted)
        try:
            for piece in call:
                hears()
                yield piece.size, piece.data
        except grpc.RpcError as error:
            raise renamed(error, hub) from error
        finally:
            call.cancel()

    return pieces
