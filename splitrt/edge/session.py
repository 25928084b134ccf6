"""A conversation's session on the servers: what was sent is sent again, until it is answered.

The session outlives the stream, and the log the session: where a server still holds what the log
says, it goes on from there; anywhere else the stored bytes are replayed, and the question after
them, so that the answer is the same.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from splitrt.core.estimate import Estimate
from splitrt.core.language import Language
from splitrt.core.sample import Sampling
from splitrt.edge import proof
from splitrt.edge.line import End, Ends, Line
from splitrt.edge.link import SILENCE
from splitrt.edge.log import Log
from splitrt.edge.outbox import Outbox
from splitrt.edge.pulse import Pulse
from splitrt.edge.question import Pending, Reply
from splitrt.edge.terms import Terms
from splitrt.edge.trust import Trust
from splitrt.errors import LinkDown, PacketError, SplitrtError
from splitrt.wire import decode_pb2 as wire

__all__ = ["PATIENCE", "Pending", "Reply", "Session", "Terms"]

logger = logging.getLogger(__name__)

PATIENCE = 1.5  # seconds without a server before a question is given up
ANSWER = 60.0  # seconds for an answer, however well a server beats meanwhile
LIES = 3  # answers that cannot be, before the question fails
MOST_ROWS, MOST_DRAFTS = 1 << 12, 1 << 8  # of a message, whatever a server grants


class Session:
    """Keeps the servers' side of a conversation what the log says, whatever happens.

    addresses: as `Roll` takes them.  patience: seconds without any server before a question fails
    as LinkDown (or as what the server said: Refused, ModelMismatch).  strays: answers to no
    question.

        session.append(rows)  # goes by itself, with its neighbours
        session.ask([7, 9]).future.result().token
    """

    def __init__(
        self,
        addresses: str,
        manifest: Language,
        terms: Terms,
        *,
        patience: float = PATIENCE,
        trust: Trust = Trust(),
    ) -> None:
        self.manifest, self.terms, self.patience = manifest, terms, patience
        self._changed = threading.Condition()
        ends = Ends(self._first, self._due, self._soon, self._hear, self._judge)
        self._line = Line(addresses, trust, self._changed, ends)
        self.log, now = Log(terms.size(manifest.shape.hidden)), time.monotonic()
        self._outbox, self._pulse = Outbox(self.log, now), Pulse(now)
        self.max_drafts = MOST_DRAFTS
        self.strays = self._lies = 0
        self._moving = False  # on to another server, once no question is without answer
        self._watcher = threading.Thread(target=self._watch, name="session-watch", daemon=True)
        self._line.start()
        self._watcher.start()

    @property
    def up(self) -> bool:
        """Whether a server holds the session now."""
        return self._line.up

    @property
    def address(self) -> str:
        """The server of this connection, or of the next."""
        return self._line.address

    @property
    def barred(self) -> bool:
        """Whether no server will ever let this device in, as they say."""
        return self._line.end.final

    @property
    def opened(self) -> int:
        """How often a server took the session, or took it up again."""
        return self._line.opened

    @property
    def sent_bytes(self) -> int:
        """Bytes of all messages until now."""
        return self._line.sent_bytes

    @property
    def estimate(self) -> Estimate:
        """What is believed of the link and the servers."""
        return self._pulse.estimate

    def append(self, payload: bytes) -> None:
        """The rows of the next positions: kept, and sent soon."""
        with self._changed:
            self._outbox.append(payload, time.monotonic())
            self._changed.notify_all()

    def truncate(self, n: int) -> None:
        """Forget the positions from n on, here and there."""
        with self._changed:
            self._outbox.truncate(n)
            self._changed.notify_all()

    def hold(self, n: int | None) -> None:
        """Send rows from n on only with a question that needs them; None: as they come."""
        with self._changed:
            self._outbox.hold = n
            self._changed.notify_all()

    def ask(
        self, drafts: Sequence[int] = (), n: int | None = None, *, keep: bool = False
    ) -> Pending:
        """Ask for the token after n positions (all of the log); the last rows are the drafts'.

        Rows of drafts that the server does not agree with leave the log, unless `keep`. The
        future's exception: LinkDown, Refused or ModelMismatch without a server; PacketError from
        one that cannot be right; CancelledError after `cancel`.
        """
        pending = Pending(self.log.n if n is None else n, tuple(drafts), keep)
        if not 0 < pending.before <= pending.n <= self.log.n:
            wanted = f"rows for {len(drafts)} drafts, one more, and all before them"
            raise PacketError(f"asked at {pending.n} of {self.log.n} positions\nhelp: {wanted}")
        with self._changed:
            if self._line.over:
                raise LinkDown("the session is closed")
            assert self._outbox.pending is None
            self._outbox.pending = pending
            self._changed.notify_all()
        self._judge()
        return pending

    def cancel(self) -> None:
        """Nobody waits for the question any more; its drafts' rows leave the log."""
        with self._changed:
            pending = self._outbox.cancel()
            self._changed.notify_all()
        if pending is not None:
            pending.future.cancel()

    def renew(self, sampling: Sampling) -> None:
        """Choose tokens another way from now on: a new session, of the same rows."""
        with self._changed:
            self.terms = replace(self.terms, sampling=sampling)
            self._line.renew()

    def close(self) -> None:
        """Tell the server, end the stream and the threads."""
        with self._changed:
            self._line.over = True
            self._outbox.control.append(wire.ToDecoder(close=wire.Close()))
            self._changed.notify_all()
        self._line.close()
        self._watcher.join(5)
        self._fail(LinkDown("the session is closed"))
        self.log.close()

    # what is sent

    def _first(self, sid: bytes | None) -> wire.ToDecoder:
        return self.terms.first(self.manifest.digest, sid)

    def _due(self) -> wire.ToDecoder | None:
        now = time.monotonic()
        message = self._outbox.due(now, self._pulse)
        if message is not None:
            self._pulse.sent(message.ByteSize(), now)
        return message

    def _soon(self) -> float:
        rows = self._outbox.soon(time.monotonic()) if self._line.up else None
        return self._pulse.soon if rows is None else rows

    # what is heard

    def _hear(self, message: wire.FromDecoder, address: str, sid: bytes | None) -> None:
        self._pulse.heard(time.monotonic())
        kind = message.WhichOneof("kind")
        if kind == "opened" and not self._line.up:
            self._open(message.opened, address, sid)
        elif kind == "verdict":
            self._verdict(message.verdict)
        elif kind == "nack":
            self._nack(message.nack, address)
        elif kind == "beat":
            self._pulse.echoed(message.beat.seq, time.monotonic())
        self._moving = kind != "opened" and (self._moving or kind == "leave")
        if self._moving and not self._outbox.asked():
            self._line.drop(End(LinkDown(f"{address} sends its devices on"), silent=True))

    def _open(self, opened: wire.Opened, address: str, sid: bytes | None) -> None:
        """A server holds the session; what it lacks of the log follows by itself."""
        if not proof.holds(opened, self.log, anew=sid is None):
            if sid is None:
                self._lied("an Opened that cannot be")
            else:
                self._line.reopen(address)
                self._line.drop(End(LinkDown(f"{address} holds something else")))
            return
        self.max_drafts = min(opened.max_drafts, MOST_DRAFTS)
        self._outbox.opened(opened.n, opened.gen, min(opened.max_rows, MOST_ROWS))
        if not self._line.over:
            self._outbox.control.clear()
        self._pulse.opened(time.monotonic())
        self._line.open(address, opened.sid)

    def _verdict(self, verdict: wire.Verdict) -> None:
        """The answer to the question, or to one that was cancelled meanwhile."""
        outbox = self._outbox
        asked = [one for one in (outbox.leaving, outbox.pending) if one is not None and one.seq]
        found = next((one for one in asked if one.seq == verdict.seq), None)
        if found is None:
            self.strays += 1
        elif not proof.possible(verdict, found, outbox.gen, self.manifest.shape.vocab):
            self._lied("a Verdict that cannot be")
        elif found is outbox.leaving:
            outbox.left(verdict.n, verdict.gen)
        else:
            self._answered(found, verdict, time.monotonic())

    def _answered(self, pending: Pending, verdict: wire.Verdict, now: float) -> None:
        self._lies = 0
        self._outbox.answered(pending, verdict.n, verdict.gen)
        self._pulse.answered(pending, (verdict.queue_us + verdict.verify_us) / 1e6, now)
        pending.future.set_running_or_notify_cancel()
        pending.future.set_result(proof.reply(verdict, pending, now - pending.sent_at))

    def _nack(self, nack: wire.Nack, address: str) -> None:
        """A refusal: of a cancelled question, as it should be; else the stream is lost."""
        pending, leaving = self._outbox.pending, self._outbox.leaving
        if leaving is not None and nack.seq == leaving.seq and nack.reason == wire.CANCELLED_ASK:
            self._outbox.left(nack.n, nack.gen)
            return
        if nack.seq and (pending is None or nack.seq != pending.seq):
            self.strays += 1
            return
        loss = proof.loss(nack, address)
        if loss.forgotten:
            self._line.reopen(address)
        if loss.fault is not None:
            self._fail(loss.fault)
        self._line.drop(End(loss.error), wait=loss.wait)

    def _lied(self, what: str) -> None:
        """Begin anew, with the next server if there is one; not for ever."""
        address = self._line.address
        self._lies += 1
        self._line.forget(address)
        if self._lies >= LIES:
            self._lies = 0
            self._fail(PacketError(f"{address} sent {what}, and {LIES} times the like"))
        self._line.drop(End(LinkDown(f"{address} sent {what}"), silent=True))

    # an end to waiting

    def _watch(self) -> None:
        """Beats where it is quiet, a fresh stream where it is silent, an end to waiting."""
        tick = min(SILENCE, self.patience, ANSWER) / 5
        while not self._line.over:
            with self._changed:
                self._changed.wait_for(lambda: self._line.over, tick)
                if self._line.up and not self._line.over:
                    self._listen(time.monotonic())
            self._judge()

    def _listen(self, now: float) -> None:
        pending, address = self._outbox.pending, self._line.address
        waited = self._pulse.waited(now, self._outbox.asked())
        if waited > self._pulse.allowed:
            logger.warning("%s silent for %.1f s: a fresh channel", address, waited)
            self._line.drop(End(LinkDown(f"{address} was silent"), silent=True))
        elif pending is not None and pending.seq and now - pending.sent_at > ANSWER:
            self._lied("no Verdict")
        elif self._pulse.want(now, waited):
            self._changed.notify_all()

    def _judge(self) -> None:
        """Give the question up if no server came in time, or none ever will."""
        with self._changed:
            if self._line.up or self._outbox.pending is None:
                return
            late = time.monotonic() - self._line.down > self.patience
            if late or self._line.hopeless:
                self._fail(self._line.end.error)

    def _fail(self, error: SplitrtError) -> None:
        with self._changed:
            pending, self._outbox.pending = self._outbox.pending, None
        if pending is not None and pending.future.set_running_or_notify_cancel():
            pending.future.set_exception(copy.copy(error))
