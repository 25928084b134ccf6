"""A conversation on the server: its keys and values, what it holds, and what waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitrt.cloud.layers import Cache
from splitrt.cloud.turn import Held, Need
from splitrt.core.rows import BEGIN, TOKEN, Rows, chained
from splitrt.core.sample import Sampling, pick
from splitrt.errors import PacketError
from splitrt.wire import decode_pb2 as wire

MOST_ROWS = 256  # of one message
MOST_DRAFTS = 64  # of one Ask


@dataclass(frozen=True, slots=True)
class Promise:
    """What was agreed on when a session was opened. codec: None where tokens come."""

    codec: Rows | None
    vocab: int
    max_len: int
    sampling: Sampling

    @property
    def resume(self) -> str:
        """What the device sends."""
        return "tokens" if self.codec is None else "hidden"

    @property
    def size(self) -> int:
        """Bytes of a row."""
        return TOKEN if self.codec is None else self.codec.size

    def read(self, payload: bytes, count: int) -> np.ndarray:
        """float32 [count, hidden] or int64 [count]; PacketError unless all can be used."""
        if self.codec is not None:
            return self.codec.decode(payload, count)
        ids = np.frombuffer(payload, "<u4").astype(np.int64)
        if ids.max(initial=0) >= self.vocab:
            raise PacketError(f"token {ids.max()} of {self.vocab}")
        return ids


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why something is refused."""

    reason: wire.Reason
    detail: str = ""
    retry_ms: int = 0


@dataclass(slots=True, eq=False)
class Job:
    """An Append, an Ask or a Truncate that came. line: the call that it came by.

    seq: of an Ask; 0: of what has no answer.  n: of a Truncate.  done: rows that ran.
    """

    line: Any
    arrived: float  # time.monotonic()
    gen: int = 0
    start: int = 0
    rows: int = 0
    payload: bytes = b""
    seq: int = 0
    drafts: Sequence[int] = ()
    n: int | None = None
    trouble: Trouble | None = None
    begun: bool = False
    done: int = 0

    @property
    def left(self) -> int:
        """Rows that did not run yet."""
        return self.rows - self.done


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """Rows for a step, the bytes that they were, and how many are of which job."""

    start: int
    rows: np.ndarray
    payload: bytes
    jobs: list[tuple[Job, int]]


class Session:
    """Used by the scheduler's thread alone.

    n: positions held.  gen: rollbacks so far.  line: the call that it belongs to now, if any.
    """

    def __init__(self, sid: bytes, owner: str, promise: Promise, cache: Cache, now: float) -> None:
        self.sid, self.owner, self.promise, self.cache = sid, owner, promise, cache
        self.n = self.gen = 0
        self.line: Any = None
        self.used = now
        self.parked = False
        self.queue: deque[Job] = deque()
        self._logs = bytearray()  # after each position

    @property
    def log(self) -> bytes:
        """The hash of what it holds."""
        return bytes(self._logs[-len(BEGIN) :]) if self.n else BEGIN

    @property
    def held(self) -> Held:
        """For the decision who makes room."""
        return Held(self.sid, self.owner, self.cache.room, self.used, bool(self.queue), self.parked)

    @property
    def need(self) -> Need | None:
        """What waits, for the decision what runs."""
        rows, since = 0, None
        for job in self.queue:
            since = job.arrived if since is None else since
            rows += job.left
            if job.seq:
                return Need(self.sid, rows, job.arrived, since)
        return None if since is None else Need(self.sid, rows, None, since)

    @property
    def ready(self) -> Job | None:
        """The Ask whose rows are all held: it can be answered."""
        job = self.queue[0] if self.queue else None
        return job if job is not None and job.begun and job.seq and not job.left else None

    def put(self, job: Job) -> None:
        """Let a job wait, in trouble if it is not what the device promised."""
        self.used = job.arrived
        job.trouble = job.trouble or self._malformed(job)
        self.queue.append(job)

    def settle(self) -> Iterator[tuple[Job, wire.Nack | None]]:
        """What needs no step leaves the queue: done, refused, or passed over."""
        while self.queue:
            job = self.queue[0]
            trouble = job.trouble or (None if job.begun else self._trouble(job, self.n))
            if trouble is not None:
                yield self.queue.popleft(), self.nack(job.seq, trouble)
            elif self._passed_over(job):
                yield self.queue.popleft(), None
            elif job.n is not None:
                self.gen = job.gen
                self._back_to(min(job.n, self.n))
                yield self.queue.popleft(), None
            else:
                if not job.begun:
                    self._back_to(job.start)
                    job.begun = True
                if job.left or job.seq:
                    return
                yield self.queue.popleft(), None

    def take(self, most: int) -> Taken:
        """Rows of what waits first, and of what follows on it, up to an Ask."""
        pieces, payload, jobs, end = [], b"", [], self.n
        for job in self.queue:
            if not self._follows(job, end) or (job.left and not most):
                break
            count = min(job.left, most)
            piece = job.payload[job.done * self.promise.size :][: count * self.promise.size]
            try:
                pieces.append(self.promise.read(piece, count))
            except PacketError as error:
                words = str(error).splitlines()[0]
                job.trouble = Trouble(wire.MALFORMED, words)
                break
            payload, end, most = payload + piece, end + count, most - count
            jobs.append((job, count))
            if job.seq or job.left > count:
                break
        rows = np.concatenate(pieces) if pieces else np.empty(0)
        return Taken(self.n, rows, payload, jobs)

    def hold(self, taken: Taken) -> None:
        """These rows ran."""
        for log in chained(self.log, taken.payload, self.promise.size):
            self._logs += log
        self.n += len(taken.rows)
        for job, count in taken.jobs:
            job.begun = True
            job.done += count

    def fail(self, taken: Taken, trouble: Trouble) -> None:
        """These rows did not run, and will not: their jobs are told so."""
        for job, _ in taken.jobs:
            job.trouble = trouble

    def judge(self, job: Job, logits: Sequence[np.ndarray]) -> wire.Verdict | None:
        """The verdict on the Ask that is first, of the logits of its last rows; it leaves.

        None: the logits are no numbers, and the Ask is in trouble.
        """
        first = self.n - len(job.drafts)  # the position of the first draft's token
        for accepted, row in enumerate(logits):
            if not np.isfinite(row).all():
                job.trouble = Trouble(wire.MALFORMED, "rows that lead to no finite logits")
                return None
            token = pick(row, self.promise.sampling, first + accepted)
            if accepted == len(job.drafts) or token != job.drafts[accepted]:
                break
        if accepted < len(job.drafts):
            self._back_to(first + accepted)
            self.gen += 1
        self.queue.popleft()
        with np.errstate(over="ignore"):
            sure = 1 / np.exp(row.astype(np.float64) - row[token]).sum()
        return wire.Verdict(
            seq=job.seq, gen=self.gen, n=self.n, accepted=accepted, token=token, confidence=sure
        )

    def nack(self, seq: int, trouble: Trouble) -> wire.Nack:
        """What the device is told of it."""
        return wire.Nack(
            seq=seq,
            reason=trouble.reason,
            n=self.n,
            gen=self.gen,
            retry_ms=trouble.retry_ms,
            detail=trouble.detail,
        )

    def _malformed(self, job: Job) -> Trouble | None:
        words, size = "", job.rows * self.promise.size
        if job.rows > MOST_ROWS:
            words = f"{job.rows} rows, at most {MOST_ROWS} are taken"
        elif len(job.payload) != size:
            words = f"{len(job.payload)} bytes of {job.rows} rows, which have {size}"
        elif len(job.drafts) > MOST_DRAFTS:
            words = f"more than {MOST_DRAFTS} drafts"
        elif max(job.drafts, default=0) >= self.promise.vocab:
            words = f"draft {max(job.drafts)} of {self.promise.vocab} tokens"
        return Trouble(wire.MALFORMED, words) if words else None

    def _trouble(self, job: Job, n: int) -> Trouble | None:
        """What is wrong with a job that comes when n positions are held."""
        if job.gen < self.gen:
            return Trouble(wire.CANCELLED_ASK, "sent before a rollback") if job.seq else None
        if job.n is not None:
            same = job.gen == self.gen
            return Trouble(wire.MALFORMED, "a Truncate without a new gen") if same else None
        if job.gen > self.gen:
            return Trouble(wire.MALFORMED, f"gen {job.gen}, it is {self.gen}")
        if job.start > n:
            return Trouble(wire.HOLE, f"rows from {job.start} on, {n} are held")
        if job.start + job.rows > self.promise.max_len:
            return Trouble(wire.LENGTH, f"more than {self.promise.max_len} positions")
        if job.seq and len(job.drafts) >= job.start + job.rows:
            return Trouble(wire.MALFORMED, "as many drafts as there are positions")
        return None

    def _passed_over(self, job: Job) -> bool:
        return job.gen < self.gen and not job.seq

    def _follows(self, job: Job, end: int) -> bool:
        """Whether a job's rows can run right after position `end` - 1."""
        if job.begun or job.trouble is not None:
            return job.trouble is None
        if job.n is not None or job.gen != self.gen or job.start != end:
            return False
        return self._trouble(job, end) is None

    def _back_to(self, n: int) -> None:
        self.n = n
        del self._logs[n * len(BEGIN) :]
