"""Time on a session's stream: beats and echoes, bytes nobody has heard of yet, silence.

Times are seconds of one clock, given by whoever calls; there is no thread and no lock here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from splitrt.core.estimate import Estimate, Observation, learned, ponged, prior
from splitrt.edge.link import IDLE, SILENCE
from splitrt.edge.question import Pending
from splitrt.wire import decode_pb2 as wire

WINDOW = (64 << 10, 512 << 10)  # bytes on the way of which nothing was heard, least and most
AHEAD = 0.5  # seconds of the link's rate that may be on the way
BEAT_APART, BEAT_WAITING = 0.06, 0.5  # seconds between beats; of waiting before one
SMALL = 1 << 10  # bytes between two echoes that leave a round trip what it is
GUESS = prior(mbps=2.0, rtt=0.05, server=0.02)


@dataclass(frozen=True, slots=True)
class Beat:
    """A beat on its way, or the last echo. total: bytes of the stream until the beat."""

    seq: int
    at: float
    total: int


class Pulse:
    """What the times of a stream's messages say; the estimate outlives the stream."""

    def __init__(self, now: float) -> None:
        self.estimate: Estimate = GUESS
        self._heard = self._spoke = now
        self.opened(now)

    def opened(self, now: float) -> None:
        """A stream begins: of this one nothing was sent."""
        self._beat: Beat | None = None
        self._echo = Beat(0, now, 0)
        self._wanted = False
        self._total = self._acked = 0  # bytes of this stream: sent, heard of

    def sent(self, size: int, now: float) -> None:
        """A message of so many bytes went."""
        self._total += size
        self._spoke = now

    def heard(self, now: float) -> None:
        """A message came, whatever it says."""
        self._heard = now

    # what may be sent

    @property
    def unheard(self) -> int:
        """Bytes that were sent and of which nothing was heard."""
        return self._total - self._acked

    @property
    def window(self) -> float:
        """Bytes that may be on the way."""
        return min(max(AHEAD * math.exp(self.estimate.mu), WINDOW[0]), WINDOW[1])

    @property
    def soon(self) -> float:
        """Seconds until a beat may be due though nobody says so."""
        return BEAT_APART if self.unheard > WINDOW[0] / 2 else IDLE

    def due(self, now: float) -> bool:
        """Whether a beat is to go now."""
        apart = self._beat is None and now - self._echo.at > BEAT_APART
        return apart and (self._wanted or self.unheard > self.window / 2)

    def beat(self, seq: int, now: float) -> wire.ToDecoder:
        """The beat; until its echo there is no other."""
        self._beat, self._wanted = Beat(seq, now, self._total), False
        return wire.ToDecoder(beat=wire.Beat(seq=seq))

    # what is learned

    def echoed(self, seq: int, now: float) -> None:
        """A beat came back: all before it had arrived."""
        beat, before = self._beat, self._echo
        if beat is None or seq != beat.seq:
            return
        self._beat, self._echo = None, Beat(seq, now, beat.total)
        self._acked = max(self._acked, beat.total)
        crossed = beat.total - before.total
        if crossed > WINDOW[0] / 2 and now > before.at:  # it went on without a pause: a rate
            took = min(now - before.at, now - beat.at) + self.estimate.rtt
            self.estimate = learned(self.estimate, Observation(crossed, 0, took), now)
        elif crossed < SMALL:
            self.estimate = ponged(self.estimate, now - beat.at, now)

    def answered(self, pending: Pending, server: float, now: float) -> None:
        """A question was answered, after `server` seconds there; sent twice it tells no time."""
        self._acked = max(self._acked, self._total if self._beat is None else self._beat.total)
        if not pending.again:
            took = now - pending.sent_at
            seen = Observation(pending.bytes, 0, took, min(server, took))
            self.estimate = learned(self.estimate, seen, now)

    # silence

    def waited(self, now: float, asked: Sequence[float]) -> float:
        """Seconds without a word though something was asked, at those times, or beaten."""
        waiting = [*asked] if self._beat is None else [*asked, self._beat.at]
        return now - max(self._heard, min(waiting)) if waiting else 0.0

    @property
    def allowed(self) -> float:
        """Seconds of silence that are to be expected at worst, with what is on the way."""
        return SILENCE + 2 * self.unheard / math.exp(self.estimate.mu)

    def want(self, now: float, waited: float) -> bool:
        """Want a beat where it is quiet. Whether it is."""
        quiet = waited > BEAT_WAITING or now - self._spoke > IDLE
        if self._beat is None and quiet:
            self._wanted = True
            return True
        return False
