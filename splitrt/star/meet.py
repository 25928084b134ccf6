"""How the devices of a star find each other: the hub listens, the spokes come, all are linked."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from splitrt.errors import LinkDown, LinkError, PacketError, Refused, SplitrtError
from splitrt.star.frame import Line
from splitrt.star.greet import Guest, Terms, join, welcome
from splitrt.star.reduce import CAST, TELL, TOLD, Party
from splitrt.star.seal import Seal

logger = logging.getLogger(__name__)
GREETING = 2.0  # seconds in which who comes must have said who it is
AGAIN = 0.1  # seconds until a hub that is not there yet is tried again
P = TypeVar("P", bound="Device")


class Device(Party):
    """What hub and spoke share: terms, seal, and a `with`."""

    def __init__(self, device: int, terms: Terms, seal: Seal | None) -> None:
        super().__init__(device, terms.parts or (1,) * terms.devices, terms.rows, terms.hidden)
        self.terms, self.seal = terms, seal or Seal()

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Hub(Device):
    """Device 0: listens at once at `listen` (port 0: a free one), and `gather`s its spokes.

    with Hub("127.0.0.1:0", Terms(devices=2, hidden=64)) as hub:
        print(hub.address)
        hub.gather()
        whole = hub.reduce(part)
    """

    def __init__(self, listen: str, terms: Terms, *, seal: Seal | None = None) -> None:
        super().__init__(0, terms, seal)
        self._door = Door(listen, terms, self.seal)
        self.address: str = self._door.address

    def gather(self, timeout: float = 60.0) -> None:
        """Wait for all spokes, then link them to each other where they can reach each other.

        Strangers are sent away and logged. LinkDown names the spokes that did not come.
        """
        deadline = time.monotonic() + timeout
        lines, addresses = self._door.admit(set(range(1, self.devices)), deadline)
        self._joined(lines)
        self._whole(self._link, addresses, timeout)

    def broadcast(self, array: np.ndarray) -> np.ndarray:
        """float32 [T, hidden] to all spokes, exactly; returns it."""
        self._fits(array)
        array = np.ascontiguousarray(array, "<f4")
        self._whole(self._cast, CAST, array.reshape(-1).view(np.uint8))
        return array

    def tell(self, words: bytes) -> None:
        """At most 64 KiB to all spokes, for instance what comes next."""
        if len(words) > TOLD:
            raise SplitrtError(f"{len(words)} bytes to tell\nhelp: {TOLD} at most; broadcast more")
        self._whole(self._cast, TELL, np.frombuffer(words, np.uint8))

    def close(self) -> None:
        """Ends all lines, and stops listening."""
        super().close()
        self._door.close()

    def _link(self, addresses: dict[int, str | None], timeout: float) -> None:
        """Tell all where the others are, hear who reached them all, tell whether all did."""
        self._cast(TELL, _bytes({"timeout": timeout, "addresses": addresses}))
        reached = [self._reached(device, timeout) for device in range(1, self.devices)]
        self._cast(TELL, _bytes(all(reached)))
        self.meshed = all(reached)

    def _reached(self, device: int, timeout: float) -> bool:
        line = self.lines[device]
        line.timeout = timeout + self.terms.timeout
        _, length = line.hear(self._in, (TELL,), self._number)
        line.timeout = self.terms.timeout
        return self._in.body[:length].tobytes() == b"true"


class Spoke(Device):
    """Device `device` of the star whose hub is at `connect`; there when all have come.

    mesh: whether the spokes may link to each other.  listen: where for that, by default at a free
    port of the address that the hub sees (with certificates only if it has one).  told: how others
    reach that, if not there: behind a router, its address.  timeout: seconds for all to come.
    begun: called with it at once, so that another thread may `close` it while it waits for them.
    """

    def __init__(
        self,
        connect: str,
        terms: Terms,
        *,
        device: int,
        seal: Seal | None = None,
        mesh: bool = True,
        listen: str | None = None,
        told: str | None = None,
        timeout: float = 60.0,
        begun: Callable[[Spoke], None] | None = None,
    ) -> None:
        super().__init__(device, terms, seal)
        self._door: Door | None = None
        if begun is not None:
            begun(self)
        deadline = time.monotonic() + timeout
        plug = reach(connect, self.seal, deadline, self._ended)
        try:
            self._joined({0: Line(plug, f"the hub at {connect}", terms.timeout)})
            if mesh and not (self.seal.encrypted and self.seal.cert is None):
                own = _joint(plug.getsockname()[0], 0) if listen is None else listen
                self._door = Door(own, terms, self.seal)
            self._whole(self._arrive, told, deadline)
        except BaseException:
            self.close()
            raise
        finally:
            self._shut()

    def close(self) -> None:
        """Ends all lines, and the waiting for others."""
        super().close()
        self._shut()

    def broadcast(self, *, timeout: float | None = None) -> np.ndarray:
        """The hub's array, float32 [T, hidden]. timeout: seconds; None: however long it takes."""
        return self._whole(lambda: self._rows(self._heard(CAST, timeout)))

    def hear(self, *, timeout: float | None = None) -> bytes:
        """What the hub tells. timeout: seconds; None: however long it takes."""
        return self._whole(lambda: self._in.body[: self._heard(TELL, timeout)].tobytes())

    def _ended(self) -> bool:
        return self._over is not None

    def _shut(self) -> None:
        if self._door is not None:
            self._door.close()

    def _arrive(self, address: str | None, deadline: float) -> None:
        where = address if self._door is None else address or self._door.address
        join(self.lines[0], self.terms, self.seal, Guest(self.device, where))
        self._link(deadline)

    def _link(self, deadline: float) -> None:
        told = self._told(deadline - time.monotonic())
        addresses = {int(one): where for one, where in told["addresses"].items()}
        deadline = time.monotonic() + min(told["timeout"], self.terms.timeout)
        lines = self._others(addresses, deadline)
        words = _bytes(len(lines) == self.devices - 2)
        np.copyto(self._out.body[: len(words)], words)
        self.lines[0].send(self._out.sealed(TELL, self._number, len(words)))
        self.meshed = self._told(deadline - time.monotonic() + 2 * self.terms.timeout) is True
        if self.meshed:
            self._joined({**self.lines, **lines})
        else:
            for line in lines.values():
                line.close()
            self._joined({0: self.lines[0]})

    def _others(self, addresses: dict[int, str | None], deadline: float) -> dict[int, Line]:
        """Lines to the other spokes, as far as they can be had: to lower numbers, from higher."""
        lines: dict[int, Line] = {}
        if self._door is None or any(where is None for where in addresses.values()):
            return lines
        try:
            for other in range(1, self.device):
                where = str(addresses[other])
                plug = reach(where, self.seal, deadline, self._ended)
                line = Line(plug, f"device {other}", self.terms.timeout)
                self.lines[other] = lines[other] = line
                join(line, self.terms, self.seal, Guest(self.device, None))
            lines |= self._door.admit(set(range(self.device + 1, self.devices)), deadline)[0]
        except (LinkError, PacketError) as error:
            if not self._ended():
                logger.warning("device %d is in no mesh: %s", self.device, error)
            for line in lines.values():
                line.close()
            return {}
        return lines

    def _told(self, timeout: float) -> Any:
        length = self._heard(TELL, max(timeout, 0.001))
        try:
            return json.loads(self._in.body[:length].tobytes())
        except ValueError as error:
            raise PacketError("the hub's words are no JSON\nhelp: the same splitrt?") from error


class Door:
    """Where others come in: a listening socket, and who is let in."""

    def __init__(self, listen: str, terms: Terms, seal: Seal) -> None:
        self._terms, self._seal, self._context = terms, seal, seal.coming()
        host, port = parted(listen)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=64)
        except (OSError, OverflowError) as error:
            raise LinkError(
                f"{listen} cannot be bound: {error}\nhelp: another port, or 0 for a free one"
            ) from error
        self.address = _joint(host, self._socket.getsockname()[1])

    def admit(
        self, missing: set[int], deadline: float
    ) -> tuple[dict[int, Line], dict[int, str | None]]:
        """Those devices' lines and addresses, once all have come; LinkDown names who has not."""
        lines: dict[int, Line] = {}
        guests: dict[int, str | None] = {}
        try:
            while missing - set(lines):
                self._next(lines, guests, missing - set(lines), deadline)
        except BaseException:
            for line in lines.values():
                line.close()
            raise
        return lines, guests

    def close(self) -> None:
        """Also for who waits in another thread for someone to come."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _next(
        self,
        lines: dict[int, Line],
        guests: dict[int, str | None],
        free: set[int],
        deadline: float,
    ) -> None:
        """Who comes next, if it is one of `free`."""
        plug = self._accepted(free, deadline)
        where = plug.getpeername()[0]
        line = None
        try:
            plug.settimeout(GREETING)
            if self._context is not None:
                plug = self._context.wrap_socket(plug, server_side=True)
            line = Line(plug, f"a stranger at {where}", GREETING)
            guest = welcome(line, self._terms, self._seal, free)
        except (OSError, LinkError, PacketError) as error:
            logger.warning("who came from %s was sent away: %s", where, error)
            (line or plug).close()
            return
        line.peer, line.timeout = f"device {guest.device} at {where}", self._terms.timeout
        lines[guest.device], guests[guest.device] = line, guest.address

    def _accepted(self, free: set[int], deadline: float) -> socket.socket:
        names = ", ".join(str(device) for device in sorted(free))
        try:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            return self._socket.accept()[0]
        except TimeoutError as error:
            raise LinkDown(f"devices {names} have not come\nhelp: start them") from error
        except OSError as error:
            words = f"closed before devices {names} came"
            raise LinkDown(f"{words}\nhelp: gather the star again") from error


def reach(
    address: str, seal: Seal, deadline: float, over: Callable[[], bool] = lambda: False
) -> socket.socket:
    """A connection to host:port, encrypted if the seal says so; tried until the deadline.

    over: whether nobody wants it any more.
    """
    host, port = parted(address)
    context = seal.going()
    while True:
        left = deadline - time.monotonic()
        try:
            plug = socket.create_connection((host, port), max(0.001, left))
            return plug if context is None else context.wrap_socket(plug, server_hostname=host)
        except ssl.SSLError as error:
            raise Refused(f"{address}: {error}\nhelp: do ca and certificates match?") from error
        except OSError as error:
            if left <= AGAIN or over():
                raise LinkDown(f"{address}: {error}\nhelp: is the hub running?") from error
            time.sleep(AGAIN)


def parted(address: str) -> tuple[str, int]:
    """host:port; SplitrtError if it is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise SplitrtError(f"address {address!r}\nhelp: host:port, for instance pi1:50710")
    return host.strip("[]"), int(port)


def _joint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bytes(value: object) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)
