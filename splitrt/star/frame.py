"""Messages between two devices of a star: a tag, a number, an exact length, or an error."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

import numpy as np

from splitrt.errors import LinkDown, PacketError

HEAD = struct.Struct("<4sIQ")  # tag, bytes that follow, number
LARGEST = 1 << 30  # bytes of a message's body
KERNEL = 1 << 20  # bytes that a socket may hold on the way out, if the system lets it
ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}  # a dead machine: 11 s


class Message:
    """A buffer that is used again and again: the head, and room for a body of `most` bytes."""

    __slots__ = ("body", "raw", "view")

    def __init__(self, most: int) -> None:
        if not 0 <= most <= LARGEST:
            raise PacketError(f"a message of {most} bytes\nhelp: {LARGEST} at most; fewer rows")
        self.raw = bytearray(HEAD.size + most)
        self.body = np.frombuffer(self.raw, np.uint8, offset=HEAD.size)
        self.view = memoryview(self.raw)

    def sealed(self, tag: bytes, number: int, length: int) -> memoryview:
        """Head and `length` bytes of the body, as they go out."""
        HEAD.pack_into(self.raw, 0, tag, length, number)
        return self.view[: HEAD.size + length]


class Line:
    """A long-lived socket to one peer: whole messages of the kind that was asked for, in order.

    peer: how errors name it.  timeout: seconds of silence, and of a message from its first byte
    on, that are too many; None: wait.  LinkDown if the peer is gone or silent, PacketError if it
    says something else; after either the line is of no more use.
    """

    def __init__(self, plug: socket.socket, peer: str, timeout: float | None) -> None:
        self.peer = peer
        self._plug = plug
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL)
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in ALIVE.items():
            if hasattr(socket, name):
                plug.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.timeout = timeout
        self._view = memoryview(b"")
        self._got = 0

    @property
    def timeout(self) -> float | None:
        """Seconds."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._timeout = seconds
        with contextlib.suppress(OSError):  # closed: the next call says so
            self._plug.settimeout(seconds)

    @property
    def step(self) -> int:
        """Bytes that two can send to each other at once, twice, while neither reads."""
        return max(4096, self._plug.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 8)

    def send(self, message: memoryview) -> None:
        """All of it, or LinkDown."""
        try:
            self._plug.sendall(message)
        except TimeoutError as error:
            raise LinkDown(
                f"{self.peer} took nothing for {self._timeout:g} s\nhelp: is it overloaded?"
            ) from error
        except OSError as error:
            raise self._gone(error) from error

    def receive(self, message: Message, tag: bytes, number: int, length: int) -> None:
        """Exactly that message, `length` bytes of body, into the buffer."""
        self.expect(message, length)
        self.take(tag, number, HEAD.size + length)

    def expect(self, message: Message, length: int) -> None:
        """The next message goes there, `length` bytes of body."""
        self._view, self._got = message.view[: HEAD.size + length], 0

    def take(self, tag: bytes, number: int, upto: int) -> None:
        """What is expected, until `upto` bytes of it are there, or all."""
        view, got = self._view, self._got
        upto, deadline = min(upto, len(view)), self._deadline()
        while got < upto:
            fresh = self._read(view[got:], deadline)
            if got < HEAD.size <= got + fresh:
                self._check(view, tag, number)
            got += fresh
        self._got = got

    def hear(self, message: Message, tags: tuple[bytes, ...], number: int) -> tuple[bytes, int]:
        """A message of unknown length, that the buffer has room for: (tag, bytes of its body)."""
        self._fill(message.view[: HEAD.size])
        tag, length, found = HEAD.unpack_from(message.view)
        if tag not in tags or found != number:
            raise self._other(tag, found, tags, number)
        if length > len(message.body):
            raise PacketError(
                f"{self.peer} announces {length} bytes for {_named(tag)} {number}, "
                f"{len(message.body)} at most were agreed\nhelp: the same splitrt on all devices?"
            )
        self._fill(message.view[HEAD.size : HEAD.size + length])
        return tag, length

    def close(self) -> None:
        """Ends it; the peer's next read says that it is gone."""
        with contextlib.suppress(OSError):
            self._plug.shutdown(socket.SHUT_RDWR)
        self._plug.close()

    def _check(self, view: memoryview, tag: bytes, number: int) -> None:
        found, length, count = HEAD.unpack_from(view)
        if found != tag or count != number:
            raise self._other(found, count, (tag,), number)
        if length != len(view) - HEAD.size:
            raise PacketError(
                f"{self.peer} sends {length} bytes as {_named(tag)} {number}, "
                f"{len(view) - HEAD.size} were wanted\nhelp: as many rows on all devices"
            )

    def _other(self, found: bytes, count: int, tags: tuple[bytes, ...], number: int) -> PacketError:
        wanted = " or ".join(_named(tag) for tag in tags)
        return PacketError(
            f"{self.peer} sends {_named(found)} {count}, {wanted} {number} was wanted\n"
            "help: all devices make the same calls in the same order"
        )

    def _fill(self, view: memoryview) -> None:
        got, deadline = 0, self._deadline()
        while got < len(view):
            got += self._read(view[got:], deadline)

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _read(self, view: memoryview, deadline: float | None) -> int:
        try:
            count = self._plug.recv_into(view)
        except TimeoutError as error:
            raise self._silent() from error
        except OSError as error:
            raise self._gone(error) from error
        if not count:
            raise LinkDown(f"{self.peer} closed the line\nhelp: its own output says why")
        if count < len(view) and deadline is not None and time.monotonic() > deadline:
            raise self._silent()
        return count

    def _silent(self) -> LinkDown:
        words = f"{self.peer} sent nothing whole for {self._timeout:g} s"
        return LinkDown(f"{words}\nhelp: is it running, and reachable?")

    def _gone(self, error: OSError) -> LinkDown:
        return LinkDown(f"{self.peer} is gone: {error}\nhelp: start it again, and the star")


def _named(tag: bytes) -> str:
    """A tag in words; what is none, as it came."""
    return tag.decode().strip().lower() if tag.isalpha() and tag.isascii() else repr(tag)
