"""Places for devices whose exits are adapted: who has which, and who makes room. No thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import numpy as np

from splitrt.cloud.learn import Tally
from splitrt.cloud.subject import Subject
from splitrt.core.revision import Revision
from splitrt.errors import Refused
from splitrt.wire import adapt_pb2 as wire

DESKS = 8  # the learner of each holds a tail, what trains it, and a replay buffer
OF_ONE = 4  # of one device: it may have several cameras, and must not have all
ACTIVE = 60.0  # seconds after its last sample in which nobody takes a device's place
QUEUE = 64  # samples of a device that wait for its learner; the oldest make room


class Listener(Protocol):
    """A device's call; all of it may be called from any thread."""

    def tell(self, message: wire.ToPupil) -> None:
        """Something for the device."""

    def leave(self) -> None:
        """End the call when all that was told is written."""

    def refuse(self, code: grpc.StatusCode, words: str) -> None:
        """End the call now."""


class Learning(Protocol):
    """What learns of one device's samples, as `learn` has it. Used by one thread.

    current: the revision that the device should use; None: its exit.
    """

    current: Revision | None
    tally: Tally

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""

    def add(self, packed: bytes, logits: np.ndarray, level: np.ndarray | None = None) -> None:
        """One sample more."""

    def step(self) -> Revision | None:
        """A bounded piece of work."""

    def revert(self) -> None:
        """The device uses its exit as it was shipped."""


@dataclass(frozen=True, slots=True)
class Whose:
    """A device, the model that it holds, and the width of which its exit is to be adapted."""

    device: str
    digest: bytes
    width: str


@dataclass(slots=True, eq=False)
class Desk:
    """One device's place, which outlives its call.

    active: time.monotonic() of its last sample, or of its coming.  number: the largest revision's
    that the device has seen, or was sent.  sent: of the one that it should be using; 0: none.
    rests: time.monotonic() until which it has no turn.  dropped: it uses that no more.
    """

    whose: Whose
    subject: Subject
    active: float
    listener: Listener | None = None
    number: int = 0
    sent: int = 0
    rests: float = 0.0
    dropped: bool = False
    learner: Learning | None = None
    plan: str = ""  # by which its samples come
    current: Revision | None = None  # of the learner's, what was sent last
    samples: deque[wire.Sample] = field(default_factory=deque)

    def put(self, sample: wire.Sample, now: float) -> bool:
        """Let a sample wait; False if an older one was thrown away for it."""
        self.active = now
        self.samples.append(sample)
        if len(self.samples) > QUEUE:
            self.samples.popleft()
            return False
        return True

    def collected(self) -> tuple[deque[wire.Sample], bool]:
        """The samples that waited, and whether the last revision was dropped; no more of either."""
        found = self.samples, self.dropped
        self.samples, self.dropped = deque(), False
        return found

    @property
    def busy(self) -> bool:
        """Whether there is work."""
        learning = self.learner is not None and self.learner.busy
        return bool(self.samples) or self.dropped or learning


class Desks:
    """At most DESKS. A device that comes again finds its own, if nobody has needed it."""

    def __init__(self) -> None:
        self._desks: list[Desk] = []
        self._last = 0  # place of the desk that worked last

    def __len__(self) -> int:
        return len(self._desks)

    def __iter__(self) -> Iterator[Desk]:
        return iter(tuple(self._desks))

    def take(self, whose: Whose, subject: Subject, listener: Listener, now: float) -> Desk:
        """A desk for a device that comes; Refused if there is none."""
        own = [desk for desk in self._desks if desk.whose.device == whose.device]
        free = [desk for desk in own if desk.listener is None]
        desk = next((one for one in free if one.whose == whose), None)
        if desk is None:
            if len(own) >= OF_ONE:
                self._leave(free, f"{OF_ONE} exits of this device are adapted already")
            elif len(self._desks) >= DESKS:
                quiet = [one for one in self._desks if now - one.active > ACTIVE]
                self._leave(quiet, f"{DESKS} exits are adapted already")
            desk = Desk(whose, subject, now)
            self._desks.append(desk)
        desk.listener, desk.active = listener, now
        return desk

    def give_back(self, desk: Desk, *, keep: bool) -> None:
        """The device has gone; keep: it can come again under its name."""
        desk.listener = None
        if not keep:
            self.remove(desk)

    def remove(self, desk: Desk) -> None:
        """It is no more; who still sits there is sent away."""
        if desk in self._desks:
            self._desks.remove(desk)
        if desk.listener is not None:
            words = "another device's exit is adapted in this one's place"
            desk.listener.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, words)

    @property
    def busy(self) -> bool:
        """Whether there is work, though it may rest."""
        return any(desk.busy for desk in self._desks)

    def next(self, now: float) -> Desk | None:
        """The next that has work and does not rest, each in its turn."""
        count = len(self._desks)
        for step in range(1, count + 1):
            place = (self._last + step) % count
            desk = self._desks[place]
            if desk.busy and desk.rests <= now:
                self._last = place
                return desk
        return None

    def _leave(self, among: list[Desk], words: str) -> None:
        """Let the one of them that was not active for longest go; Refused without any."""
        if not among:
            raise Refused(f"{words}\nhelp: try again later")
        self.remove(min(among, key=lambda one: one.active))
