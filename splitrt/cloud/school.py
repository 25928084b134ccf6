"""The one thread that adapts devices' exits, so seldom that serving goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import grpc
import torch

from splitrt.cloud.desk import Desk, Desks, Learning, Listener, Whose
from splitrt.cloud.learn import Learner, opened
from splitrt.cloud.subject import Subject, Taught
from splitrt.cloud.tally import Tally
from splitrt.core.revision import Revision
from splitrt.errors import ModelError, PacketError
from splitrt.wire import adapt_pb2 as wire

logger = logging.getLogger(__name__)

# Of the thread's time. The tail's batches run on the same cores: a learner that took one whole
# would be felt by every frame, and a quarter is enough for the few samples that come a second.
DUTY = 0.25
MOST_TAILS = 4  # of which learners have one for themselves
REST = 1.0  # seconds between two revisions for a device, which sees through few frames meanwhile

Make = Callable[[Subject, str], Learning]


class School:
    """Learners of all devices. But for `close` and `stop` all is called on the server's loop.

    make: gives the learner of an exit by samples of that plan, which may take seconds.
    """

    def __init__(self, tally: Tally, make: Make) -> None:
        self._tally, self._make = tally, make
        self._desks, self._changed = Desks(), threading.Condition()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="school", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._desks)

    def sit(self, whose: Whose, subject: Subject, listener: Listener, start: wire.Start) -> Desk:
        """A desk for a device that comes; Refused if there is none."""
        with self._changed:
            desk = self._desks.take(whose, subject, listener, time.monotonic())
            desk.number = max(desk.number, start.seen)
            if start.used != desk.sent:
                desk.dropped = desk.dropped or start.seen >= desk.sent > 0
                desk.sent, desk.current = 0, None  # or it never came there, and goes again
            if start.used and start.tail != subject.manifest.digest:  # made for another model
                desk.number += 1
                listener.tell(shipped(start.width, desk.number))
            self._changed.notify_all()
        return desk

    def put(self, desk: Desk, sample: wire.Sample) -> None:
        """A sample, to be looked at when its turn comes."""
        with self._changed:
            if not desk.put(sample, time.monotonic()):
                self._tally.learnt("dropped")
            self._changed.notify_all()

    def drop(self, desk: Desk, number: int) -> None:
        """The device uses that revision no more."""
        self._tally.learnt("reverted")
        with self._changed:
            if number and number == desk.sent:
                desk.sent, desk.current, desk.dropped = 0, None, True
            self._changed.notify_all()

    def leave(self, desk: Desk, *, keep: bool) -> None:
        """Its device has gone; keep: it can come again under its name."""
        with self._changed:
            self._desks.give_back(desk, keep=keep)

    def clear(self) -> None:
        """Another model serves: what was learnt is forgotten, here and on the devices."""
        with self._changed:
            for desk in self._desks:
                listener, desk.listener = desk.listener, None
                self._desks.remove(desk)
                if listener is not None:
                    listener.tell(shipped(desk.whose.width, desk.number + 1))
                    listener.leave()

    def close(self) -> None:
        """End the thread; waits for the piece of work that it has begun."""
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Begin nothing more."""
        self._over.set()
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while (desk := self._next()) is not None:
            began = time.monotonic()
            try:
                self._work(desk)
            except PacketError as error:
                self._end(desk, grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except ModelError as error:
                logger.warning("an exit cannot be adapted: %s", error)
                self._end(desk, grpc.StatusCode.UNIMPLEMENTED, "this model cannot be adapted")
            except Exception:  # whatever torch raises: other devices are served on
                logger.exception("a learner failed")
                self._end(desk, grpc.StatusCode.INTERNAL, "the server failed")
            self._over.wait((time.monotonic() - began) * (1 / DUTY - 1))

    def _next(self) -> Desk | None:
        """The desk whose turn it is, as soon as there is work; None at the end."""
        with self._changed:
            while not self._over.is_set():
                if (desk := self._desks.next(time.monotonic())) is not None:
                    return desk
                self._changed.wait(REST if self._desks.busy else None)
        return None

    def _work(self, desk: Desk) -> None:
        """Look at the samples that came, and learn of them for a moment."""
        with self._changed:
            samples, dropped = desk.collected()
        found = [desk.subject.open(sample) for sample in samples]
        if any(one.plan != (desk.plan or found[0].plan) for one in found):
            raise PacketError("samples of several plans")
        if desk.learner is None and found:
            desk.plan = found[0].plan
            desk.learner = self._make(desk.subject, desk.plan)
        if desk.learner is not None:
            self._learn(desk, desk.learner, found, dropped=dropped)

    def _learn(
        self, desk: Desk, learner: Learning, found: Sequence[Taught], *, dropped: bool
    ) -> None:
        if dropped:
            learner.revert()
        for one in found:
            learner.add(one.packed, one.logits, one.level)
            self._tally.learnt("taken")
        refused = learner.tally.refused
        if learner.busy:
            learner.step()
        if learner.tally.refused > refused:
            self._tally.learnt("refused")
        if learner.current is not desk.current:
            self._send(desk, learner.current)

    def _send(self, desk: Desk, revision: Revision | None) -> None:
        """A revision, numbered after all that the device has seen; None: back to its own exit."""
        with self._changed:
            if desk.listener is None or desk.dropped:  # at its next turn the learner hears of it
                return
            desk.current, desk.rests = revision, time.monotonic() + REST
            desk.number += 1
            desk.sent = 0 if revision is None else desk.number
            if revision is None:
                desk.listener.tell(shipped(desk.whose.width, desk.number))
            else:
                desk.listener.tell(told(replace(revision, number=desk.number)))
        self._tally.learnt("withdrawn" if revision is None else "sent")

    def _end(self, desk: Desk, code: grpc.StatusCode, words: str) -> None:
        """A device that sent nonsense, or whose learner failed: it may come again."""
        with self._changed:
            listener, desk.listener = desk.listener, None
            self._desks.remove(desk)
        if listener is not None:
            listener.refuse(code, words)


def told(revision: Revision) -> wire.ToPupil:
    """A revision as it travels."""
    return wire.ToPupil(
        revision=wire.Revision(
            number=revision.number,
            width=revision.width,
            sha256=revision.sha256,
            body=revision.encode(),
        )
    )


def shipped(width: str, number: int) -> wire.ToPupil:
    """The word that the exit is to be as it was shipped."""
    return wire.ToPupil(revision=wire.Revision(number=number, width=width))


def learners() -> Make:
    """Makes learners; those of one model share its tail, which none of them changes."""
    tails: dict[bytes, torch.fx.GraphModule] = {}

    def make(subject: Subject, plan: str) -> Learning:
        digest = subject.manifest.digest
        if digest not in tails:
            if len(tails) >= MOST_TAILS:
                tails.clear()
            tails[digest] = opened(subject.folder, subject.manifest)
        return Learner(subject.folder, subject.manifest, plan, tail=tails[digest])

    return make
