"""Frames of all devices, together: a bounded queue and one thread that owns the tail."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from splitrt.cloud.admit import Excess
from splitrt.cloud.kept import Kept
from splitrt.cloud.tail import Tail
from splitrt.core import packet
from splitrt.core.packet import Ran
from splitrt.errors import PacketError
from splitrt.wire import tail_pb2 as wire

logger = logging.getLogger(__name__)

LONGEST_WAIT = 0.002  # seconds that a batch waits for company
HALF_LIFE = 1.0  # seconds in which an expectation fades by half
FORGETTING = 0.1  # weight of the last batch in what is expected
NEARLY = 0.9  # of the frames a second of the largest batch
LEAST = 1e-6  # seconds
SAFE = 1.0  # mean distances from the expected time that are allowed for
DOUBT = 2.0  # times longer than expected may a wait become, and the answer is still in time

Reply: TypeAlias = Callable[[wire.Answer], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One frame that was admitted.

    reply: called once, by whom `Batcher` says.
    base: the frame it is a difference to, 0 for none.  kept: where such frames are, if anywhere.
    size, side: of the picture and beside the payload, checked, where the model takes them.
    tails: digests that the device holds, of the tails that are to answer.
    opened: the payload is packed bytes already, as many as there have to be.
    """

    seq: int
    plan: str
    payload: bytes
    arrived: float  # time.monotonic()
    expires: float | None
    reply: Reply
    base: int = 0
    kept: Kept | None = None
    size: tuple[int, int] | None = None
    side: Sequence[np.ndarray] = ()
    tails: tuple[bytes, ...] = ()
    opened: bool = False

    def refuse(self, status: wire.Status, detail: str, retry_after_ms: int = 0) -> None:
        self.reply(packet.refusal(self.seq, status, detail, retry_after_ms))


@dataclass(frozen=True, slots=True)
class Pace:
    """What the last batches teach: a line of seconds over frames, and how far from it they were.

    size: of the last batch.  frames, seconds: means.  var, cov: of frames, with seconds.
    off: mean distance from the line, seconds.  ended: time.monotonic() after the last one.
    """

    size: int = 1
    frames: float = 1.0
    seconds: float = 0.0
    var: float = 0.0
    cov: float = 0.0
    off: float = 0.0
    ended: float = 0.0

    def after(self, size: int, seconds: float, ended: float) -> Pace:
        """The pace with one more batch seen."""
        if self.seconds == 0.0:
            return Pace(size, size, seconds, ended=ended)
        more, longer = size - self.frames, seconds - self.seconds
        error = abs(seconds - self.takes(size))
        return Pace(
            size=size,
            frames=self.frames + FORGETTING * more,
            seconds=self.seconds + FORGETTING * longer,
            var=(1 - FORGETTING) * (self.var + FORGETTING * more * more),
            cov=(1 - FORGETTING) * (self.cov + FORGETTING * more * longer),
            off=self.off + FORGETTING * (error - self.off),
            ended=ended,
        )

    def takes(self, size: int) -> float:
        """Seconds of a batch of that size. Until sizes differ, every frame costs the same."""
        each = self.seconds / self.frames
        if self.var > 0:
            each = min(max(self.cov / self.var, 0.0), each)
        return self.seconds + each * (size - self.frames)

    def faded(self, since: float) -> float:
        """What is left of all expectations at that time.

        What is known fades while nothing runs: else one slow batch would have every later frame
        with a deadline refused, and nothing would ever correct it.
        """
        return 0.5 ** (max(0.0, since - self.ended) / HALF_LIFE)

    def surely(self, size: int, now: float) -> float:
        """Seconds within which a batch of that size that begins now should have ended."""
        return self.faded(now) * (self.takes(size) + SAFE * self.off)

    def patience(self, slack: float | None) -> float:
        """Seconds to wait for company: none if the last frame went alone, never past a deadline.

        slack: seconds until the first deadline of those that wait already.
        """
        if self.size <= 1:
            return 0.0
        expected = self.takes(self.size)
        wait = min(LONGEST_WAIT, expected / 4)
        return wait if slack is None else max(0.0, min(wait, slack - expected))

    def enough(self, largest: int) -> int:
        """The smallest batch that is nearly as good as the largest, in frames a second."""
        best = NEARLY * largest / max(self.takes(largest), LEAST)
        sizes = range(1, largest)
        return next((n for n in sizes if n >= best * self.takes(n)), largest)

    def ahead(
        self, waiting: int, largest: int, now: float, running: Running | None = None
    ) -> float:
        """Seconds until a frame that comes now should have its answer."""
        faded = self.faded(now if running is None else running.since)
        frames = waiting + 1
        full, rest = divmod(frames, largest)
        expected = full * self.takes(largest) + (self.takes(rest) if rest else 0.0)
        expected += SAFE * self.off
        if running is None:
            return faded * expected
        left = faded * self.takes(running.size) - (now - running.since)
        return max(0.0, left) + faded * expected


@dataclass(frozen=True, slots=True)
class Running:
    """A batch that runs: since when, how many."""

    since: float
    size: int


class Batcher:
    """Admits frames, runs them in batches on its one thread, answers each exactly once.

    tail: may be replaced at any time; each batch runs on one.  deliver: gets a batch's replies
    and answers together, on the batcher's thread; a frame that `submit` refuses is answered there.
    """

    def __init__(
        self,
        tail: Tail,
        *,
        largest: int = 32,
        room: int = 256,
        deliver: Callable[[Sequence[tuple[Reply, wire.Answer]]], None] | None = None,
    ) -> None:
        self.tail, self.largest = tail, largest
        self.pace = Pace()
        self._running: Running | None = None
        self._deliver = deliver or _each
        self._room, self._closed, self._excess = room, False, Excess()
        self._jobs: deque[Job] = deque()
        self._enough = 1  # jobs that wake the thread
        self._ready = threading.Condition(threading.Lock())
        self._thread = threading.Thread(target=self._loop, name="tail", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Frames in the queue now."""
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        """Queue a frame, or refuse it at once: no room, or no time.

        A frame that would have been in time without the others comes again the later, the more
        such frames there are.
        """
        pace, now = self.pace, job.arrived
        expected = pace.ahead(self.waiting, self.largest, now, self._running)
        alone = min(expected, pace.surely(1, now))
        safely = alone + DOUBT * (expected - alone)
        late = job.expires is not None and now + safely > job.expires
        with self._ready:
            full = len(self._jobs) >= self._room
            if not (late or full):
                self._excess.taken(now)
                self._jobs.append(job)
                if len(self._jobs) == self._enough:
                    self._ready.notify()
                return
            hopeless = late and now + alone > job.expires
            away = 0.0 if hopeless else self._excess.refused(now)
        if late:
            words = f"an answer takes {1000 * expected:.0f} ms now"
            job.refuse(wire.EXPIRED, words, int(1000 * away))
        else:
            job.refuse(wire.BUSY, "the queue is full", max(1, int(1000 * max(expected, away))))

    def close(self) -> None:
        """Answer what is queued, then end the thread."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join()

    def _loop(self) -> None:
        while jobs := self._gather():
            self._running = Running(time.monotonic(), len(jobs))
            tail = self.tail  # only now: a frame may be queued for a tail that has just come
            for alike in _alike(jobs):
                self._serve(alike, tail)
            self._running = None

    def _gather(self) -> list[Job]:
        """The next batch; none when the batcher is closed and all are answered.

        Only the job that makes a batch whole wakes this thread: one turn of the interpreter's
        lock a batch, not one a job. Beyond what makes a good batch, no company comes in that would
        make others late.
        """
        with self._ready:
            self._until(1, None)
            if self._jobs:
                self._until(min(self.pace.size, self.largest), self._patience())
            jobs: list[Job] = []
            enough = self.pace.enough(self.largest)
            while (
                self._jobs
                and len(jobs) < self.largest
                and (len(jobs) < enough or self._in_time(jobs))
            ):
                jobs.append(self._jobs.popleft())
            return jobs

    def _until(self, enough: int, seconds: float | None) -> None:
        """Wait for so many jobs, or for the end. Holds the lock."""
        self._enough = enough
        self._ready.wait_for(lambda: self._closed or len(self._jobs) >= enough, seconds)

    def _patience(self) -> float:
        """Seconds that the jobs which are there can wait for company."""
        now = time.monotonic()
        expiries = [job.expires for job in self._jobs if job.expires is not None]
        return self.pace.patience(min(expiries) - now if expiries else None)

    def _in_time(self, jobs: Sequence[Job]) -> bool:
        """Whether one more brings none of them nearer to its deadline than is safe."""
        now, count = time.monotonic(), len(jobs)
        ends = now + DOUBT * self.pace.surely(count, now)
        later = now + DOUBT * self.pace.surely(count + 1, now)
        return not any(job.expires is not None and ends <= job.expires < later for job in jobs)

    def _serve(self, jobs: Sequence[Job], tail: Tail) -> None:
        """Run them and answer; what is wrong is answered without waiting for the others."""
        started = time.monotonic()
        ends = started + self.pace.faded(started) * self.pace.takes(len(jobs))
        found = [(job, _opened(job, tail, ends)) for job in jobs]
        refused = [(job.reply, one) for job, one in found if isinstance(one, wire.Answer)]
        if refused:
            self._deliver(refused)
        opened = [(job, packed) for job, packed in found if isinstance(packed, bytes)]
        if opened:
            self._deliver(self._run(opened, tail, started))

    def _run(
        self, opened: Sequence[tuple[Job, bytes]], tail: Tail, started: float
    ) -> list[tuple[Reply, wire.Answer]]:
        """The tail, once, on frames with their packed bytes."""
        ready = time.monotonic()
        jobs = [job for job, _ in opened]
        try:
            codes = [(job.plan, packed) for job, packed in opened]
            tails = [tail.answering(job.tails) or () for job in jobs] if jobs[0].tails else ()
            outputs = tail(codes, jobs[0].size, [job.side for job in jobs], tails)
        except Exception:  # a fault of the model or of memory must not end the server
            logger.exception("a batch of %d failed", len(jobs))
            return [(j.reply, packet.refusal(j.seq, wire.FAILED, "the tail failed")) for j in jobs]
        ended = time.monotonic()
        self.pace = self.pace.after(len(jobs), ended - started, ended)
        answers = []
        for (job, packed), arrays in zip(opened, outputs, strict=True):
            if job.kept is not None:
                job.kept.keep(job.seq, job.plan, packed)
            ran = Ran(
                queue_us=int(1e6 * (started - job.arrived)),
                open_us=int(1e6 * (ready - started)),
                compute_us=int(1e6 * (ended - ready)),
                batch=len(jobs),
            )
            answers.append((job.reply, packet.answer(job.seq, arrays, ran)))
        return answers


def _opened(job: Job, tail: Tail, ends: float) -> bytes | wire.Answer:
    """The packed bytes of a frame that is worth running; else its answer.

    ends: time.monotonic() at which its batch should have run.
    """
    if job.expires is not None and ends > job.expires:
        return packet.refusal(job.seq, wire.EXPIRED, "the deadline passed in the queue")
    if job.tails and tail.answering(job.tails) is None:
        return packet.refusal(job.seq, wire.STALE, "another revision came while it waited")
    if job.opened:
        return job.payload
    try:
        if not job.base:
            return tail.open(job.plan, job.payload, job.size)
        if job.kept is None:
            raise PacketError("no frames are kept here for differences")
        base = job.kept.base(job.base, job.plan)
        if base is None:
            words = f"no {job.plan} frame {job.base} is kept"
            return packet.refusal(job.seq, wire.NEED_KEY, words)
        return tail.open_delta(job.plan, job.payload, base, job.size)
    except PacketError as error:
        return packet.refusal(job.seq, wire.INVALID, str(error).splitlines()[0])
    except Exception:  # a fault of a decoder must not end the one thread that answers
        logger.exception("a frame of %d bytes cannot be opened", len(job.payload))
        return packet.refusal(job.seq, wire.FAILED, "the frame cannot be opened")


def _each(answers: Sequence[tuple[Reply, wire.Answer]]) -> None:
    for reply, answer in answers:
        reply(answer)


def _alike(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs by the size of their pictures: only those of one size run together."""
    found: dict[tuple[int, int] | None, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.size, []).append(job)
    return list(found.values())
