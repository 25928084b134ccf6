"""What a session has to send next: that rows are gone, rows, or a question with the last of them.

No thread and no lock; times are seconds of one clock, given by whoever calls.
"""

from __future__ import annotations

from collections import deque

from splitrt.edge.log import Log
from splitrt.edge.pulse import Pulse
from splitrt.edge.question import Pending
from splitrt.wire import decode_pb2 as wire

COALESCE = 0.008  # seconds that rows wait for others to travel with
CHUNK = 64 << 10  # bytes of rows in one message


class Outbox:
    """The log, how much of it the server holds, and the question.

    hold: rows from there on go only with a question that needs them.  leaving: a question that
    was cancelled, and the server has not said so yet: until then nothing else goes.  most: rows of
    a message.
    """

    def __init__(self, log: Log, now: float) -> None:
        self.log, self.most = log, 1
        self.hold: int | None = None
        self.pending: Pending | None = None
        self.leaving: Pending | None = None
        self.control: deque[wire.ToDecoder] = deque()  # goes before all else
        self.gen = 0  # rollbacks, as the server counts them
        self._held = self._same = 0  # rows there; of which ours
        self._seq = 0
        self._aged = now  # since then there are rows to send

    # what changes here

    def append(self, payload: bytes, now: float) -> None:
        """The rows of the next positions."""
        if self.log.n <= self._held:
            self._aged = now
        self.log.append(payload)

    def truncate(self, n: int) -> None:
        """Forget the positions from n on, here and, soon, there."""
        self.log.truncate(n)
        self._same = min(self._same, n)

    def cancel(self) -> Pending | None:
        """Take the question back, and the rows of its drafts."""
        pending, self.pending = self.pending, None
        if pending is not None and not pending.keep:
            self.truncate(pending.before)
        if pending is not None and pending.seq:
            self.leaving = pending
            self.control.append(wire.ToDecoder(cancel=wire.Cancel(seq=pending.seq)))
        return pending

    # what the server holds

    def opened(self, n: int, gen: int, most: int) -> None:
        """A stream begins, with the first n positions there; the question has to go again."""
        self._held = self._same = n
        self.gen, self.most, self.leaving = gen, most, None
        if self.pending is not None:
            self.pending.again = self.pending.again or self.pending.seq != 0
            self.pending.seq = 0

    def kept(self, n: int, gen: int) -> None:
        """Of the rows that went, the server kept those of n positions."""
        self.gen = gen
        self._held, self._same = n, min(self._same, n)

    def answered(self, pending: Pending, n: int, gen: int) -> None:
        """The question is no more; rows of wrong drafts leave the log, unless it keeps them."""
        self.kept(n, gen)
        if not pending.keep:
            self.log.truncate(n)
        self.pending = None

    def left(self, n: int, gen: int) -> None:
        """The cancelled question is gone there, too."""
        self.leaving = None
        self.kept(min(n, self._held), gen)

    # what goes next

    def asked(self) -> list[float]:
        """When the questions were sent of which the server has not said the last word."""
        both = (self.pending, self.leaving)
        return [one.sent_at for one in both if one is not None and one.seq]

    def soon(self, now: float) -> float | None:
        """Seconds until rows have waited long enough; None: there are none that wait."""
        if self.log.n <= self._held or self.pending is not None:
            return None
        return max(COALESCE - (now - self._aged), COALESCE / 4)

    def due(self, now: float, pulse: Pulse) -> wire.ToDecoder | None:
        """The next message, or None: nothing is to be sent now."""
        if self.control:
            return self.control.popleft()
        if pulse.due(now):
            self._seq += 1
            return pulse.beat(self._seq, now)
        if self.leaving is not None or pulse.unheard > pulse.window:
            return None
        gone = self._rollback()
        return self._onward(now) if gone is None else gone

    def _rollback(self) -> wire.ToDecoder | None:
        """What the server has to forget first, if anything."""
        pending = self.pending
        if self._same == self._held and pending is not None and not pending.seq:
            self._same = min(self._held, pending.n)
        if self._same == self._held:
            return None
        self._held, self.gen = self._same, self.gen + 1
        return wire.ToDecoder(truncate=wire.Truncate(gen=self.gen, n=self._held))

    def _onward(self, now: float) -> wire.ToDecoder | None:
        """The question, as soon as its rows fit into one message; rows that are enough, or old."""
        most = max(1, min(self.most, CHUNK // self.log.size))
        if (pending := self.pending) is not None:
            if pending.seq:
                return None  # what comes after the question depends on the answer
            return self._ask(pending, now) if pending.n - self._held <= most else self._rows(most)
        until = self.log.n if self.hold is None else min(self.hold, self.log.n)
        rows = until - self._held
        if rows >= most or (rows > 0 and now - self._aged >= COALESCE):
            return self._rows(min(rows, most))
        return None

    def _rows(self, count: int) -> wire.ToDecoder:
        start, payload = self._held, self.log.read(self._held, self._held + count)
        self._held = self._same = start + count
        return wire.ToDecoder(
            append=wire.Append(gen=self.gen, start=start, rows=count, payload=payload)
        )

    def _ask(self, pending: Pending, now: float) -> wire.ToDecoder:
        start, count = self._held, pending.n - self._held
        self._seq += 1
        pending.seq, pending.sent_at, pending.rows = self._seq, now, count
        self._held = self._same = pending.n
        message = wire.ToDecoder(
            ask=wire.Ask(
                seq=self._seq,
                gen=self.gen,
                start=start,
                rows=count,
                payload=self.log.read(start, start + count),
                drafts=pending.drafts,
            )
        )
        pending.bytes = message.ByteSize()
        return message
