"""The way by which an exit is adapted: samples up, revisions down; no frame ever waits for it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Iterator

import grpc
import numpy as np

from splitrt.core import packet
from splitrt.core.codec import LARGEST_HALF
from splitrt.core.revision import LARGEST
from splitrt.edge.link import FIRST_RETRY, GROWTH, LAST_RETRY, OPTIONS, renamed
from splitrt.edge.roll import Roll
from splitrt.edge.satchel import Satchel
from splitrt.edge.study import Study, View
from splitrt.edge.trust import Trust
from splitrt.errors import LinkDown, ModelMismatch, PacketError, SplitrtError
from splitrt.wire import adapt_pb2 as wire
from splitrt.wire.adapt_pb2_grpc import TeacherStub

logger = logging.getLogger(__name__)

TOLD = 16  # samples, of which one says what the stream is like on average
FLOOD = 20  # revisions that a call may bring in FLOOD_S seconds
FLOOD_S = 10.0
ATTEMPT = 5.0  # seconds until a server must be ready
RARELY = 60.0  # seconds between two questions to servers that have nothing for this device
USELESS = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
MOST_WORDS = 64  # sentences of the log
DROPS = 16  # numbers of dropped revisions that wait to be told


class Pupil:
    """Keeps a Learn call to one of the servers open, from its own thread, until `close`.

    addresses: as `Roll` takes them.  study: what it tells of, and who uses what comes.
    """

    def __init__(self, addresses: str, study: Study, *, trust: Trust = Trust()) -> None:
        self._roll = Roll(addresses, trust)
        self.study, self.trust, self.satchel = study, trust, Satchel()
        self._place = study.manifest.plans.index(study.plan)
        self._useless = 0  # servers in a row that do not adapt
        self._changed = threading.Condition()  # over satchel, drops, `_up`
        self._drops: deque[int] = deque(maxlen=DROPS)
        self._up, self._tail = False, b""  # of this call: a server is ready, and of what
        self._revised: deque[float] = deque(maxlen=FLOOD)  # when revisions came
        self._said: set[str] = set()
        self._closed = threading.Event()
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._keep, name="pupil", daemon=True)
        self._thread.start()

    @property
    def up(self) -> bool:
        """Whether a server takes samples now."""
        return self._up

    @property
    def address(self) -> str:
        """The server of this call, or of the next."""
        return self._roll.address

    def see(self, logits: np.ndarray, codes: np.ndarray) -> View:
        """A frame of these logits [K] and codes [C, …]: what to answer; it is told if worth it."""
        view = self.study.view(logits, codes)
        if view.worth and self._up:
            with self._changed:
                self.satchel.put(codes, logits.copy())  # who gets the answer may write into it
                self._changed.notify_all()
        return view

    def compare(self, view: View, answer: np.ndarray) -> None:
        """The server's logits [K] for a frame: they may speak against the revision in use."""
        self._tell(self.study.compare(view, answer))

    def revert(self) -> None:
        """Answer by the exit as it was shipped, until the server has a newer revision."""
        self._tell(self.study.drop("as was asked"))

    def close(self) -> None:
        """End the call and the thread; what waits is not sent."""
        self._closed.set()
        self._hang_up()
        self._thread.join(5)

    def _tell(self, number: int) -> None:
        """Let the server know that this revision was dropped; 0: none was."""
        if number:
            with self._changed:
                self._drops.append(number)
                self._changed.notify_all()

    def _keep(self) -> None:
        """Connect, learn until the call breaks, wait, again with the next server."""
        wait = FIRST_RETRY
        while not self._closed.is_set():
            try:
                self._roll.look()
                with self._roll.channel([*OPTIONS, *_sizes()]) as channel:
                    self._learn(channel)
            except (grpc.RpcError, SplitrtError) as error:
                self._ended(error)
            wait = FIRST_RETRY if self._up else min(wait * GROWTH, LAST_RETRY)
            if self._up:
                self._roll.lost()
            self._roll.next()
            self._up = False
            rarely = self._useless >= len(self._roll)
            self._closed.wait((RARELY if rarely else wait) * random.uniform(0.8, 1.2))

    def _learn(self, channel: grpc.Channel) -> None:
        over = threading.Event()
        call = TeacherStub(channel).Learn(self._outgoing(over), metadata=self.trust.metadata)
        self._call = call
        if self._closed.is_set():  # `close` may have come before there was a call to cancel
            call.cancel()
        alarm = threading.Timer(ATTEMPT, lambda: None if self._up else call.cancel())
        alarm.daemon = True
        alarm.start()
        try:
            for message in call:
                self._hear(message)
            raise LinkDown(f"{self.address} ended the call")
        finally:
            alarm.cancel()
            self._call = None
            with self._changed:
                over.set()
                self._changed.notify_all()

    def _outgoing(self, over: threading.Event) -> Iterator[wire.ToTeacher]:
        """What this call sends; gRPC's own thread runs it, and waits here."""
        yield wire.ToTeacher(start=self._start())
        while True:
            with self._changed:
                if over.is_set() or self._closed.is_set():  # under the lock: it is notified once
                    return
                now, found = time.monotonic(), None
                drop = self._drops.popleft() if self._up and self._drops else 0
                if self._up and not drop:
                    found = self.satchel.next(now)
                if not drop and found is None:
                    if self._up and self.satchel.silent(now):
                        self._hang_up()
                        return
                    self._changed.wait(self.satchel.wait(now) if self._up else None)
            if drop:
                yield wire.ToTeacher(dropped=wire.Dropped(number=drop))
            elif found is not None:
                yield wire.ToTeacher(sample=self._sample(*found))

    def _start(self) -> wire.Start:
        study = self.study
        with self._changed:
            self._drops.clear()  # Start says what is in use; what is dropped since is told
        return wire.Start(
            hello=packet.hello(study.manifest),
            width=study.width.name,
            used=study.used,
            seen=study.seen,
            tail=study.tail,
        )

    def _sample(self, seq: int, codes: np.ndarray, logits: np.ndarray) -> wire.Sample:
        return wire.Sample(
            seq=seq,
            plan=self._place,
            payload=self.study.codec.encode(codes),
            logits=halves(logits),
            level=halves(self.study.level) if seq % TOLD == 1 else b"",
        )

    def _hear(self, message: wire.ToPupil) -> None:
        if message.HasField("ready") and not self._up:
            self._say(f"{self.address} adapts the exit of {self.study.width.name}", logging.INFO)
            with self._changed:
                self.satchel.open(message.ready.rate, message.ready.unread)
                self._up, self._tail, self._useless = True, message.ready.tail, 0
                self._changed.notify_all()
        elif message.HasField("taken"):
            with self._changed:
                self.satchel.taken(message.taken.seq, time.monotonic())
                self._changed.notify_all()
        elif message.HasField("revision") and self._up:
            self._revise(message.revision)

    def _revise(self, told: wire.Revision) -> None:
        """Take a revision, or say why not; a server that sends too many is left."""
        now = time.monotonic()
        if len(self._revised) == FLOOD and now - self._revised[0] < FLOOD_S:
            raise LinkDown(f"more than {FLOOD} revisions in {FLOOD_S:.0f} s")
        self._revised.append(now)
        before = self.study.used
        try:
            self.study.adopt(told.number, told.width, told.sha256, told.body, self._tail)
        except PacketError as error:
            words = packet.told(str(error)).splitlines()[0]
            logger.warning("%s sent what is no revision for this exit: %s", self.address, words)
            return
        if told.body:
            size = len(told.body)
            logger.info("revision %d of %s in use, %d bytes", told.number, self.address, size)
        elif before:
            logger.warning("revision %d is dropped: %s said so", before, self.address)

    def _ended(self, error: Exception) -> None:
        """Why a call is over: said once for each reason; another model takes its revision along."""
        code = error.code() if isinstance(error, grpc.Call) else None
        self._useless = self._useless + 1 if code in USELESS else 0
        if code == grpc.StatusCode.UNIMPLEMENTED:
            words = "the exit stays as it is (`splitrt serve --adapt` would adapt it)"
            self._say(f"{self.address} does not adapt: {words}", logging.WARNING)
            return
        found = renamed(error, self.address)
        if isinstance(found, ModelMismatch):
            self.study.drop(f"{self.address} holds another model")
        if not self._closed.is_set():
            self._say(f"not adapting: {str(found).splitlines()[0]}", logging.WARNING)

    def _say(self, words: str, level: int) -> None:
        """Once while this Pupil lives; a server that comes and goes fills no log."""
        if words not in self._said and len(self._said) < MOST_WORDS:
            self._said.add(words)
            logger.log(level, "%s", words)

    def _hang_up(self) -> None:
        call = self._call
        if call is not None:
            call.cancel()


def halves(array: np.ndarray) -> bytes:
    """Numbers as float16, little-endian; those that it cannot hold as the largest that it can."""
    return array.clip(-LARGEST_HALF, LARGEST_HALF).astype("<f2").tobytes()


def _sizes() -> list[tuple[str, int]]:
    return [("grpc.max_receive_message_length", LARGEST + packet.ENVELOPE)]
