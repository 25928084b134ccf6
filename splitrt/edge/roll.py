"""The servers of a link in the order they are tried; names that stand for several are looked up."""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from splitrt.edge.fleet import Fleet
from splitrt.edge.trust import Trust
from splitrt.edge.where import HELP, host_and_port
from splitrt.errors import LinkDown, LinkError, SplitrtError

logger = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds for a look-up where no other server is known
GLANCE = 0.1  # seconds where one is: it is asked, and what is found later counts the next time
MOST = 256  # servers of a name

Find: TypeAlias = Callable[[str, Trust], Sequence[str]]  # host:port to those of servers; may block


@dataclass(frozen=True, slots=True)
class Server:
    """One to connect to. name: whom its certificate must be for; None: the address's host."""

    address: str
    name: str | None = None


class Name:
    """A name that stands for servers, asked by a thread of its own: what blocks, blocks that.

    text: as it was given.  where: the host:port in it.  servers: those found last.  ordered: what
    is found is, the best first.
    """

    def __init__(
        self,
        text: str,
        where: str,
        find: Find,
        trust: Trust,
        dice: random.Random,
        *,
        ordered: bool = False,
    ) -> None:
        self.text, self.where = text, where
        self.host = host_and_port(text, where)[0]
        self.servers: tuple[Server, ...] = ()
        self.why = ""  # there are none
        self._find, self._trust, self._dice, self.ordered = find, trust, dice, ordered
        self._asked: Future[Sequence[str]] | None = None

    def ask(self) -> Future[Sequence[str]]:
        """Begin to look, unless somebody looks already."""
        if self._asked is None:
            self._asked = Future()
            ask = threading.Thread(target=self._answer, args=(self._asked,), daemon=True)
            ask.start()
        return self._asked

    def take(self) -> bool:
        """Whether the look-up is over; one that failed leaves the servers as they were."""
        if self._asked is None or not self._asked.done():
            return self._asked is None
        asked, self._asked = self._asked, None
        try:
            found = list(dict.fromkeys(asked.result()))[:MOST]
        except (OSError, UnicodeError, SplitrtError) as error:
            logger.warning("%s cannot be looked up: %s", self.text, error)
            self.why = f": {error}"
            return True
        if not self.ordered:
            self._dice.shuffle(found)  # so that devices spread over the servers
        self.servers = tuple(Server(one, self.host) for one in found) or self.servers
        return True

    def _answer(self, asked: Future[Sequence[str]]) -> None:
        try:
            asked.set_result(self._find(self.where, self._trust))
        except Exception as error:  # for who takes it
            asked.set_exception(error)


class Roll:
    """Where a link goes, and where next. Who looks, and goes on, is one thread; all may read.

        roll = Roll("dns:///tails.example:50700", trust)
        roll.look()
        with roll.channel([]) as channel: ...
        roll.lost()  # or roll.next()

    addresses: host:port, several with commas, tried in turn. `dns:///name:port` stands for all
    addresses of the name: shuffled by `dice`, looked up anew once all were tried or a connection
    was lost. `fleet://host:port` stands for all servers of which the one there tells, that with
    least to do first. LinkError if they are none; SplitrtError for what is wrong with the trust.
    """

    def __init__(self, addresses: str, trust: Trust, *, dice: random.Random | None = None) -> None:
        self._dice = dice or random.Random()
        self._trust = trust
        self._parts = [_part(text, trust, self._dice) for text in _texts(addresses)]
        for part in self._parts:  # what is wrong with it is said now, not in the thread
            trust.channel(part.where if isinstance(part, Name) else part.address, []).close()
        names = [part for part in self._parts if isinstance(part, Name)]
        self._names, self._due = names, bool(names)
        self._servers: tuple[Server, ...] = () if names else self._listed()
        self._tried = 0  # servers in a row, since the names were looked up
        self._left: Server | None = None  # comes last

    def __len__(self) -> int:
        """Servers that are known; 1 before any is."""
        return max(1, len(self._servers))

    @property
    def address(self) -> str:
        """The server of this connection, or of the next; a name of which none is known."""
        servers = self._servers
        return servers[0].address if servers else self._names[0].text

    def look(self) -> None:
        """Look names up if it is time to. LinkDown where no server is known at all."""
        if self._due:
            wait([name.ask() for name in self._names], GLANCE if self._listed() else PATIENCE)
            self._due = False in [name.take() for name in self._names]
            self._call()
        if not self._servers:
            raise LinkDown(f"{self.address} stands for no address{self._names[0].why}")

    def channel(self, options: Sequence[tuple[str, int]]) -> grpc.Channel:
        """A fresh channel to the server whose turn it is."""
        server = self._servers[0]
        return self._trust.channel(server.address, options, name=server.name)

    def lost(self) -> None:
        """A connection that was up is no more: the names may stand for others by now."""
        self._due, self._tried, self._left = bool(self._names), 0, None

    def next(self) -> None:
        """On to the next server."""
        self._tried += 1
        if self._tried >= len(self):
            self._due, self._tried = bool(self._names), 0
        if self._servers:
            self._left, *others = self._servers
            self._servers = (*others, self._left)

    def _listed(self) -> tuple[Server, ...]:
        """What the list and the names in it stand for now."""
        return tuple(dict.fromkeys(one for part in self._parts for one in _servers(part)))

    def _call(self) -> None:
        """Those that are known keep their order, new ones come anywhere but before who stays."""
        found = self._listed()
        if any(name.ordered for name in self._names):
            self._servers = tuple(sorted(found, key=lambda one: one == self._left))
            return
        known = [one for one in self._servers if one in found]
        fresh = [one for one in found if one not in known]
        if not known:
            self._servers = tuple(fresh)
            return
        last = [one for one in known if one == self._left]
        first = known[:1] if self._left is None else []
        middle = [one for one in known if one not in first + last]
        for one in fresh:
            middle.insert(self._dice.randint(0, len(middle)), one)
        self._servers = (*first, *middle, *last)


def proved(addresses: str) -> str:
    """The same; LinkError if one of them is no way to a server."""
    for text in _texts(addresses):
        _part(text, Trust(), random.Random())
    return addresses


def _texts(addresses: str) -> list[str]:
    texts = [one.strip() for one in addresses.split(",") if one.strip()]
    if not texts:
        raise LinkError("no server's address\nhelp: host:port, or several with commas")
    return texts


def _part(text: str, trust: Trust, dice: random.Random) -> Server | Name:
    scheme, mark, rest = text.partition("://")
    if not mark:
        return Server(text)
    match scheme:
        case "unix":
            return Server(text)
        case "dns":
            return Name(text, _nameless(text, rest), looked_up, trust, dice)
        case "fleet":
            host_and_port(text, rest)
            return Name(text, rest, Fleet(dice), trust, dice, ordered=True)
        case _:
            raise LinkError(f"{text}: nothing is known of {scheme}://\n{HELP}")


def looked_up(where: str, trust: Trust) -> list[str]:
    """All addresses of a host:port; OSError if it has none, or nobody says."""
    host, port = host_and_port(where, where)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [_spelled(str(address[0]), port) for *_, address in found]


def _nameless(text: str, rest: str) -> str:
    """What follows dns://, where a name server could stand before the third slash."""
    before, _, where = rest.partition("/")
    if before:
        raise LinkError(f"{text}: a name server of its own is not offered\n{HELP}")
    return where


def _spelled(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _servers(part: Server | Name) -> Sequence[Server]:
    return [part] if isinstance(part, Server) else part.servers
