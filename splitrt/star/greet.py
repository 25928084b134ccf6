"""The first words on a line: who comes, to which star, and that both know its secret."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass

import numpy as np

from splitrt.errors import LinkDown, PacketError, Refused
from splitrt.star.frame import Line, Message
from splitrt.star.seal import PROOF, Seal

HELO, JOIN, TAKE, DENY = b"HELO", b"JOIN", b"TAKE", b"DENY"
NONCE = 32  # bytes
WORDS = 4096  # bytes of a greeting


@dataclass(frozen=True, slots=True)
class Terms:
    """What all devices of a star must hold alike, but for the timeout.

    devices: with the hub.  rows, hidden: the largest array.  parts: how many each device adds, in
    the devices' order; by default one.  model: for instance the sha256 of the
    split's manifest.  timeout: seconds of silence after which a device counts as lost; a message
    that trickles is given up after twice that.
    """

    devices: int
    hidden: int
    rows: int = 16
    model: str = ""
    timeout: float = 10.0
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sound = min(self.devices, self.hidden, self.rows) > 0 and self.devices <= 256
        told = len(self.parts) == self.devices and 0 < min(self.parts) <= max(self.parts) <= 256
        sound = sound and (told or not self.parts)
        if not sound or not 0 < self.timeout < 3600 or len(self.model) > 256:
            raise PacketError(
                f"no star has {self}\nhelp: 1 to 256 devices; rows, hidden and seconds above 0"
            )

    @property
    def shared(self) -> dict[str, object]:
        """What is compared, as JSON has it."""
        told = {name: value for name, value in asdict(self).items() if name != "timeout"}
        return {**told, "parts": list(self.parts)}


@dataclass(frozen=True, slots=True)
class Guest:
    """Who came: its device's number, and where others reach it; None: nowhere."""

    device: int
    address: str | None


def welcome(line: Line, terms: Terms, seal: Seal, free: set[int]) -> Guest:
    """The side that was connected to. Refused for whom it does not take, PacketError for noise."""
    message, nonce = Message(WORDS), secrets.token_bytes(NONCE)
    _say(line, message, HELO, nonce)
    said = _hear(line, message, JOIN)
    theirs, shown, words = said[:NONCE], said[NONCE : NONCE + PROOF], said[NONCE + PROOF :]
    try:
        if not seal.proves(shown, b"join", nonce, theirs, words):
            raise Refused("not the secret of this star\nhelp: the same secret on all devices")
        guest = _guest(words, terms, free)
    except Refused as error:
        _say(line, message, DENY, str(error).encode()[:WORDS])
        raise
    _say(line, message, TAKE, seal.proof(b"take", nonce, theirs, words))
    return guest


def join(line: Line, terms: Terms, seal: Seal, guest: Guest) -> None:
    """The side that connected. Refused if it is not taken, or the other has not the secret."""
    message, own = Message(WORDS), secrets.token_bytes(NONCE)
    nonce = _hear(line, message, HELO)
    words = json.dumps({**asdict(guest), "terms": terms.shared}).encode()
    _say(line, message, JOIN, own + seal.proof(b"join", nonce, own, words) + words)
    tag, length = line.hear(message, (TAKE, DENY), 0)
    said = message.body[:length].tobytes()
    if tag == DENY:
        text = said.decode("ascii", "replace")[:500]
        clean = "".join(one for one in text if one.isprintable() or one == "\n")
        raise Refused(f"{line.peer} does not take device {guest.device}: {clean}")
    if not seal.proves(said, b"take", nonce, own, words):
        raise Refused(f"{line.peer} has not this star's secret\nhelp: is that the right address?")


def _guest(words: bytes, terms: Terms, free: set[int]) -> Guest:
    try:
        told = json.loads(words)
        guest = Guest(told["device"], told["address"])
        theirs = dict(told["terms"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Refused("its greeting is not one\nhelp: the same splitrt on all devices") from error
    if not isinstance(guest.address, str | None):
        raise Refused("its address is not one\nhelp: the same splitrt on all devices")
    if theirs != terms.shared:
        wrong = [name for name, value in terms.shared.items() if theirs.get(name) != value]
        wanted = ", ".join(f"{name} = {terms.shared[name]}" for name in wrong)
        raise Refused(f"another star\nhelp: here {wanted or 'splitrt is another'}")
    if type(guest.device) is not int or guest.device not in free:
        raise Refused(f"its number is taken, or none of this star\nhelp: {sorted(free)} are free")
    return guest


def _say(line: Line, message: Message, tag: bytes, words: bytes) -> None:
    message.body[: len(words)] = np.frombuffer(words, np.uint8)
    line.send(message.sealed(tag, 0, len(words)))


def _hear(line: Line, message: Message, tag: bytes) -> bytes:
    _, length = line.hear(message, (tag,), 0)
    if length < NONCE:
        raise LinkDown(f"{line.peer} greets with {length} bytes\nhelp: is it splitrt's hub?")
    return message.body[:length].tobytes()
