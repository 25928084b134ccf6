"""Frames of all devices, together: a bounded queue and one thread that owns the tail."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from splitrt.cloud.kept import Kept
from splitrt.cloud.tail import Tail
from splitrt.core import packet
from splitrt.core.packet import Ran
from splitrt.errors import PacketError
from splitrt.wire import tail_pb2 as wire

logger = logging.getLogger(__name__)

LONGEST_WAIT = 0.002  # seconds that a batch waits for company
HALF_LIFE = 1.0  # seconds in which an expectation fades by half
FORGETTING = 0.3  # weight of the last batch in the expected time


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One frame that was admitted. `reply` may be called from the batcher's thread.

    base: the frame it is a difference to, 0 for none.  kept: where such frames are, if anywhere.
    size, side: of the picture and beside the payload, checked, where the model takes them.
    tails: digests of the tails that are to answer.
    """

    seq: int
    plan: str
    payload: bytes
    arrived: float  # time.monotonic()
    expires: float | None
    reply: Callable[[wire.Answer], None]
    base: int = 0
    kept: Kept | None = None
    size: tuple[int, int] | None = None
    side: Sequence[np.ndarray] = ()
    tails: tuple[bytes, ...] = ()

    def refuse(self, status: wire.Status, detail: str, retry_after_ms: int = 0) -> None:
        self.reply(packet.refusal(self.seq, status, detail, retry_after_ms))


@dataclass(frozen=True, slots=True)
class Pace:
    """What the last batches teach: how many, how long."""

    size: int = 1
    seconds: float = 0.0  # expected of the next batch
    ended: float = 0.0  # time.monotonic() after the last one

    def after(self, size: int, seconds: float, ended: float) -> Pace:
        """The pace with one more batch seen."""
        if self.seconds == 0.0:
            return Pace(size, seconds, ended)
        return Pace(size, self.seconds + FORGETTING * (seconds - self.seconds), ended)

    def patience(self, slack: float | None) -> float:
        """Seconds to wait for company: none if the last frame went alone, never past a deadline.

        slack: seconds until the first deadline of those that wait already.
        """
        if self.size <= 1:
            return 0.0
        wait = min(LONGEST_WAIT, self.seconds / 4)
        return wait if slack is None else max(0.0, min(wait, slack - self.seconds))

    def ahead(self, waiting: int, largest: int, now: float) -> float:
        """Seconds until a frame that comes now would have its answer.

        What is known fades while nothing runs: else one slow batch would have every later frame
        with a deadline refused, and nothing would ever correct it.
        """
        faded = self.seconds * 0.5 ** (max(0.0, now - self.ended) / HALF_LIFE)
        return faded * (1 + (waiting + largest - 1) // largest)


class Batcher:
    """Admits frames, runs them in batches on its one thread, answers each exactly once."""

    def __init__(self, tail: Tail, *, largest: int = 32, room: int = 256) -> None:
        self.tail, self.largest = tail, largest
        self.pace = Pace()
        self._queue: queue.Queue[Job | None] = queue.Queue(maxsize=room)
        self._thread = threading.Thread(target=self._loop, name="tail", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a frame, or refuse it at once: no room, or no time."""
        expected = self.pace.ahead(self._queue.qsize(), self.largest, job.arrived)
        if job.expires is not None and job.arrived + expected > job.expires:
            job.refuse(wire.EXPIRED, f"an answer takes {1000 * expected:.0f} ms now")
            return
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            job.refuse(wire.BUSY, "the queue is full", max(1, int(1000 * expected)))

    def close(self) -> None:
        """Answer what is queued, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (first := self._queue.get()) is not None:
            jobs, over = self._gather(first)
            for alike in _alike(jobs):
                self._serve(alike)
            if over:
                return

    def _gather(self, first: Job) -> tuple[list[Job], bool]:
        """The next batch; True if the batcher is to end after it."""
        jobs, now = [first], time.monotonic()
        slack = None if first.expires is None else first.expires - now
        until = now + self.pace.patience(slack)
        while len(jobs) < self.largest:
            patient = len(jobs) < self.pace.size
            wait = until - time.monotonic() if patient else 0.0
            try:
                job = self._queue.get(timeout=wait) if wait > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
        return jobs, False

    def _serve(self, jobs: Sequence[Job]) -> None:
        started = time.monotonic()
        opened = [(job, packed) for job in jobs if (packed := self._open(job, started)) is not None]
        if not opened:
            return
        ready = time.monotonic()
        try:
            sides = [job.side for job, _ in opened]
            codes = [(job.plan, packed) for job, packed in opened]
            tails = [job.tails for job, _ in opened] if any(job.tails for job, _ in opened) else ()
            outputs = self.tail(codes, opened[0][0].size, sides, tails)
        except Exception:  # a fault of the model or of memory must not end the server
            logger.exception("a batch of %d failed", len(opened))
            for job, _ in opened:
                job.refuse(wire.FAILED, "the tail failed")
            return
        ended = time.monotonic()
        seconds = ended - started
        self.pace = self.pace.after(len(opened), seconds, ended)
        for (job, packed), arrays in zip(opened, outputs, strict=True):
            if job.kept is not None:
                job.kept.keep(job.seq, job.plan, packed)
            ran = Ran(
                queue_us=int(1e6 * (started - job.arrived)),
                open_us=int(1e6 * (ready - started)),
                compute_us=int(1e6 * (ended - ready)),
                batch=len(opened),
            )
            job.reply(packet.answer(job.seq, arrays, ran))

    def _open(self, job: Job, now: float) -> bytes | None:
        """The packed bytes of a frame that is worth running; else it is answered here."""
        if job.expires is not None and now > job.expires:
            job.refuse(wire.EXPIRED, "the deadline passed in the queue")
            return None
        try:
            if job.base:
                return self._open_delta(job)
            return self.tail.open(job.plan, job.payload, job.size)
        except PacketError as error:
            job.refuse(wire.INVALID, str(error).splitlines()[0])
            return None

    def _open_delta(self, job: Job) -> bytes | None:
        """The packed bytes of a difference; None, and answered, if its base is not kept."""
        if job.kept is None:
            raise PacketError("no frames are kept here for differences")
        base = job.kept.base(job.base, job.plan)
        if base is None:
            job.refuse(wire.NEED_KEY, f"no {job.plan} frame {job.base} is kept")
            return None
        return self.tail.open_delta(job.plan, job.payload, base, job.size)


def _alike(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs by the size of their pictures: only those of one size run together."""
    found: dict[tuple[int, int] | None, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.size, []).append(job)
    return list(found.values())
