"""A spoke as its hub sees it: what it said of itself, and its call from the first word on."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from splitrt.core.packet import told
from splitrt.star.call import BEAT, GREETING, HUB, PROTOCOL, SPOKE, fresh, host
from splitrt.star.greet import NONCE
from splitrt.wire import star_pb2 as wire

if TYPE_CHECKING:
    from splitrt.star.lobby import Lobby

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SID = 16  # bytes
UNREAD = 16  # messages, from which on beats are not answered
LAST = 0.5  # seconds for what is being written when a call ends
Refusal: TypeAlias = "tuple[grpc.StatusCode, str]"


@dataclass(frozen=True, slots=True)
class Beat:
    """What a spoke has spent in an epoch so far: seconds, and at its peak bytes of memory.

    reduce: what the sums themselves take.  wait: for other devices.  load: for weights.
    """

    epoch: int = 0
    steps: int = 0
    compute: float = 0.0
    reduce: float = 0.0
    wait: float = 0.0
    load: float = 0.0
    peak: int = 0

    @classmethod
    def of(cls, said: wire.Beat) -> Beat:
        """As it came."""
        return cls(
            epoch=said.epoch,
            steps=said.steps,
            compute=said.compute_us / 1e6,
            reduce=said.reduce_us / 1e6,
            wait=said.wait_us / 1e6,
            load=said.load_us / 1e6,
            peak=said.peak,
        )


@dataclass(slots=True, eq=False)
class Guest:
    """A spoke that has joined.

    seconds: of one row through the probe.  memory, disk: bytes that it may take.  beat: the latest.
    ready: the epoch for which it is.  lost: the epoch
    whose sums failed there, or for which it could not be ready, and why.  alive: until `why`.
    """

    name: str
    host: str
    sid: bytes = field(default_factory=lambda: secrets.token_bytes(SID), repr=False)
    seconds: float = math.inf
    memory: int = 0
    disk: int = 0
    beat: Beat = Beat()
    ready: int = 0
    lost: tuple[int, str] = (0, "")
    alive: bool = True
    why: str = ""
    heard: float = field(default_factory=time.monotonic)  # when it last said anything
    fetching: int = 0  # files that it is being sent

    @property
    def measured(self) -> bool:
        """Whether it said what it can do."""
        return self.seconds < math.inf


class Visit:
    """A spoke's call. Everything here runs on the lobby's loop."""

    def __init__(self, lobby: Lobby, context: Any) -> None:
        self._lobby, self._context = lobby, context
        self._outbox: asyncio.Queue[wire.ToSpoke | None] = asyncio.Queue()
        self._broken: Refusal | None = None
        self._reading: asyncio.Task[None] | None = None
        self.guest: Guest | None = None

    async def greet(self) -> Guest:
        """Both prove that they know the star's secret; the call ends for who does not."""
        seal, nonce = self._lobby.seal, fresh()
        said = await self._hear("hello")
        if said.protocol != PROTOCOL:
            await self._refuse(f"protocol {said.protocol}, here it is {PROTOCOL}: another splitrt")
        if len(said.nonce) != NONCE or not NAME.fullmatch(said.name):
            await self._refuse("a hello needs a plain name and 32 random bytes")
        both = (said.nonce, nonce, said.name.encode())
        challenge = wire.Challenge(nonce=nonce, proof=seal.proof(HUB, *both))
        await self._context.write(wire.ToSpoke(challenge=challenge))
        shown = await self._hear("proof")
        if not seal.proves(shown.proof, SPOKE, *both):
            words = "not the secret of this star\nhelp: the same secret on all devices"
            await self._context.abort(grpc.StatusCode.UNAUTHENTICATED, words)
        where = host(self._context.peer()) or "this machine"
        self.guest = Guest(self._lobby.unique(said.name), where)
        return self.guest

    async def stay(self, guest: Guest) -> None:
        """From the welcome until it leaves, is lost, or says what is no message of a star."""
        self._outbox.put_nowait(wire.ToSpoke(welcome=self._lobby.welcome(guest.sid)))
        self._reading = asyncio.create_task(self._read(guest))
        writing = asyncio.create_task(self._write())
        try:
            await asyncio.wait({self._reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            self._lobby.lose(guest, "it hung up")  # unless it was lost for another reason
            self._outbox.put_nowait(None)
            await asyncio.wait({writing}, timeout=LAST)
        finally:
            self._lobby.lose(guest, "it hung up")
            for task in (self._reading, writing):
                task.cancel()
            await asyncio.gather(self._reading, writing, return_exceptions=True)
        if self._broken is not None:
            await self._context.abort(*self._broken)

    def say(self, message: wire.ToSpoke) -> None:
        """Put it on its way."""
        self._outbox.put_nowait(message)

    def echo(self) -> None:
        """Answer a beat, unless much waits already for who reads nothing."""
        if self._outbox.qsize() < UNREAD:
            self.say(wire.ToSpoke(heard=wire.Heard()))

    def end(self, code: grpc.StatusCode, words: str) -> None:
        """Break the call off."""
        self._broken = self._broken or (code, words)
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self, guest: Guest) -> None:
        while (message := await self._context.read()) is not grpc.aio.EOF:
            guest.heard = time.monotonic()
            kind = None if message is None else message.WhichOneof("what")
            if kind is None or not self._lobby.told(guest, kind, getattr(message, kind)):
                words = f"{kind or 'that'} is no message for now"
                self._broken = grpc.StatusCode.INVALID_ARGUMENT, words
                self._lobby.lose(guest, f"it said what is no message for now: {kind or 'noise'}")
                return

    async def _write(self) -> None:
        while (message := await self._outbox.get()) is not None:
            await self._context.write(message)

    async def _hear(self, kind: str) -> Any:
        """That message, now."""
        try:
            message = await asyncio.wait_for(self._context.read(), GREETING)
        except asyncio.TimeoutError:
            message = None
        if not isinstance(message, wire.FromSpoke) or message.WhichOneof("what") != kind:
            await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{kind} comes now")
        return getattr(message, kind)

    async def _refuse(self, words: str) -> None:
        await self._context.abort(grpc.StatusCode.PERMISSION_DENIED, words)


def able(guest: Guest, said: wire.Able) -> bool:
    """What a spoke can do; whether that can be."""
    if guest.measured or not 0 < said.seconds < math.inf:
        return False
    guest.seconds, guest.memory, guest.disk = said.seconds, said.memory, said.disk
    return True


def failed(guest: Guest, said: wire.Lost) -> str:
    """What did not work there."""
    guest.lost = said.epoch, told(said.why) or "it does not say why"
    return guest.lost[1]


def rhythm(patience: float) -> tuple[int, int]:
    """(milliseconds between beats, milliseconds of patience)."""
    return int(1000 * min(BEAT, patience / 4)), int(1000 * patience)
