"""A stream to one of several servers, for one session: opened again and again, for ever.

After a break at once, with a server that does not answer ever more slowly, and with the next one
if there are several. Which session each of them holds is remembered, to be taken up again.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from splitrt.core import packet
from splitrt.edge.link import ATTEMPT, GROWTH, LAST_RETRY, OPTIONS, renamed
from splitrt.edge.roll import Roll
from splitrt.edge.trust import Trust
from splitrt.errors import LinkDown, ModelMismatch, Refused, SplitrtError
from splitrt.wire import decode_pb2 as wire
from splitrt.wire.decode_pb2_grpc import DecoderStub

logger = logging.getLogger(__name__)

FIRST_RETRY = 0.05  # seconds
LARGEST = 64 << 10  # bytes of a server's message
FAREWELL = 0.5  # seconds for the last message
SIZES = [("grpc.max_receive_message_length", LARGEST)]


@dataclass(frozen=True, slots=True)
class End:
    """Why a stream ended. silent: nothing came.  final: what a server said will stay so."""

    error: SplitrtError
    silent: bool = False
    final: bool = False


@dataclass(frozen=True, slots=True)
class Ends:
    """What the two directions of a line are joined to; all but `down` with the lock held.

    first: the first message to a server that holds the session of that number, or none.  due: the
    next one, or None for nothing now; soon: seconds until there may be one though nobody says so.
    hear: a message, of that address, that session was asked for.  down: a stream has ended.
    """

    first: Callable[[bytes | None], wire.ToDecoder]
    due: Callable[[], wire.ToDecoder | None]
    soon: Callable[[], float]
    hear: Callable[[wire.FromDecoder, str, bytes | None], None]
    down: Callable[[], None]


class Line:
    """Keeps a stream open until `close`.

    changed: the lock of all that is said, notified when there may be something to send.  up:
    whether a server holds the session now.  opened: how often one did.  over: no more streams.
    down: when the last one ended.  end: why.
    """

    def __init__(
        self, addresses: str, trust: Trust, changed: threading.Condition, ends: Ends
    ) -> None:
        self._roll = Roll(addresses, trust)
        self._trust, self._changed, self._ends = trust, changed, ends
        self.up = self.over = False
        self.opened = self.sent_bytes = 0
        self.down = time.monotonic()
        self.end = End(LinkDown(f"no connection to {self.address} yet"))
        self._dropped: End | None = None  # by this side
        self._anew = False  # the server does not know the session: at once, another one
        self._sids: dict[str, bytes] = {}  # by address
        self._epoch = 0  # of streams
        self._failed = 0  # connections in a row that did not come about
        self._not_before = 0.0
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._keep, name="session", daemon=True)

    @property
    def address(self) -> str:
        """The server of this stream, or of the next."""
        return self._roll.address

    @property
    def hopeless(self) -> bool:
        """Whether every server was asked, and what the last one said will not change."""
        return self.end.final and self._failed >= len(self._roll)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def close(self) -> None:
        """Let what is due be sent, then end the stream; `over` is set before."""
        self._thread.join(FAREWELL if self.up else 0)
        with self._changed:
            self._epoch += 1
            call = self._call
            self._changed.notify_all()
        if call is not None:
            call.cancel()
        self._thread.join(5)

    # with the lock held

    def open(self, address: str, sid: bytes) -> None:
        """A server holds the session: from now on what is due is sent."""
        self._sids[address] = sid
        self.opened += 1
        self.up = True

    def drop(self, end: End, *, wait: float = 0.0) -> None:
        """Give the stream up; the next one begins at once, or after that many seconds."""
        logger.debug("given up: %s", end.error)
        if wait:
            self._not_before = time.monotonic() + wait
        self._dropped = end
        self._epoch += 1
        self._changed.notify_all()
        if self._call is not None:
            self._call.cancel()

    def forget(self, address: str) -> bool:
        """The session there is of no use. Whether there was one."""
        return self._sids.pop(address, None) is not None

    def reopen(self, address: str) -> None:
        """The session there is lost: open another one, at once if it was to be resumed."""
        if self.forget(address) and not self.up:
            self._anew = True

    def renew(self) -> None:
        """No session is of use any more, wherever it is."""
        self._sids.clear()
        self.drop(End(LinkDown("other terms")))

    # the thread

    def _keep(self) -> None:
        """Connect, deliver until the stream breaks; at once again, then ever more slowly."""
        wait = FIRST_RETRY
        while not self.over:
            started = time.monotonic()
            self._dropped, self._anew = None, False
            try:
                self._roll.look()
                with self._roll.channel([*OPTIONS, *SIZES]) as channel:
                    self._deliver(channel)
            except (grpc.RpcError, SplitrtError) as error:
                self.end = self._dropped or why(error, self.address, known=self.opened > 0)
            was_up = self._went_down()
            if self._anew:
                continue
            self._failed = 0 if was_up else self._failed + 1
            if was_up:
                self._roll.lost()
            if self.end.silent or not was_up:
                self._roll.next()
            self._ends.down()
            wait = FIRST_RETRY if was_up else min(wait * GROWTH, LAST_RETRY)
            passed = time.monotonic() - started
            if self._failed >= len(self._roll):
                self._rest(wait * random.uniform(0.8, 1.2) - passed)
            elif was_up:  # servers that send it on at once are not asked faster
                self._rest(FIRST_RETRY - passed)
            self._rest(self._not_before - time.monotonic())

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._changed:
            while not self.over and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def _deliver(self, channel: grpc.Channel) -> None:
        """One stream, from the first message to its end, which is always an error."""
        with self._changed:
            self._epoch += 1
            epoch, address = self._epoch, self.address
            sid = self._sids.get(address)
            first = self._ends.first(sid)
        call = DecoderStub(channel).Session(
            self._outgoing(epoch, first), metadata=self._trust.metadata
        )
        self._call = call
        alarm = self._alarm(call)
        try:
            if self._epoch != epoch or self.over:  # given up before there was a call to cancel
                call.cancel()
            for message in call:
                with self._changed:
                    if self._epoch != epoch:
                        break
                    self._ends.hear(message, address, sid)
                    self._changed.notify_all()
            raise LinkDown(f"{address} ended the stream")
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.NOT_FOUND:
                self.reopen(address)
            raise
        finally:
            alarm.cancel()
            with self._changed:
                self._epoch += 1
                self._call = None
                self._changed.notify_all()
            call.cancel()

    def _alarm(self, call: grpc.Call) -> threading.Timer:
        """Give up on a server that does not open; every third attempt is given longer."""
        attempt = ATTEMPT * (2 if self._failed % 3 == 2 else 1)
        alarm = threading.Timer(attempt, lambda: None if self.up else call.cancel())
        alarm.daemon = True
        alarm.start()
        return alarm

    def _outgoing(self, epoch: int, first: wire.ToDecoder) -> Iterator[wire.ToDecoder]:
        """gRPC takes the next message when it has room for it: until then rows gather."""
        self.sent_bytes += first.ByteSize()
        yield first
        while True:
            with self._changed:
                while (message := self._due(epoch)) is None:
                    if self._epoch != epoch:
                        return
                    self._changed.wait(self._ends.soon())
                self.sent_bytes += message.ByteSize()
            yield message
            if message.HasField("close"):
                return

    def _due(self, epoch: int) -> wire.ToDecoder | None:
        return self._ends.due() if self.up and self._epoch == epoch else None

    def _went_down(self) -> bool:
        """Nothing more is sent. Whether the stream had been open."""
        with self._changed:
            was_up, self.up = self.up, False
            if was_up:
                self.down = time.monotonic()
            self._changed.notify_all()
        return was_up


def why(error: Exception, address: str, *, known: bool) -> End:
    """What an error of a stream means. known: a server has let this device in before."""
    named: SplitrtError = renamed(error, address)
    code = error.code() if isinstance(error, grpc.Call) else None
    if code == grpc.StatusCode.INVALID_ARGUMENT and isinstance(error, grpc.Call):
        named = Refused(f"{address}: {packet.told(error.details() or '')}")
    refused = isinstance(named, Refused) and not known
    final = refused or isinstance(named, ModelMismatch)
    return End(named, silent=code == grpc.StatusCode.CANCELLED, final=final)
