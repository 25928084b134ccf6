"""One thread that owns torch and all sessions: it takes what came, runs a step, answers."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from splitrt.cloud.layers import Layers, Part, stepped
from splitrt.cloud.session import MOST_DRAFTS, MOST_ROWS, Job, Promise, Session, Taken, Trouble
from splitrt.cloud.turn import Room, moved, patience, turn
from splitrt.core.memory import available
from splitrt.wire import decode_pb2 as wire

logger = logging.getLogger(__name__)

SID = 16  # bytes
WATCH = 1.0  # seconds between two looks at what has expired
RETRY_MS = 200  # after which there may be room
REMEMBERED = 4096  # sessions that are gone, to tell expired from unknown
SHARE = 0.25  # of the host's free memory: for resident and for parked sessions each
PARKED = 4  # times --kv-tokens may be parked
CUDA_SHARE = 0.8  # of a GPU's free memory


FAILED = Trouble(wire.SERVER_FAILED, "the step failed", RETRY_MS)
FULL = Trouble(wire.NO_MEMORY, "no room for more positions", RETRY_MS)


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """What a call is told. job: one that is off the queue.  attached: it has its session now.

    over: nothing comes after that.  taken: another call has the session now.
    """

    line: Any
    message: wire.FromDecoder | None = None
    job: Job | None = None
    attached: bool = False
    over: bool = False
    taken: bool = False


class Scheduler:
    """All sessions of a language model. Its methods may be called from any thread.

    deliver: called by the scheduler's thread with what is to be told, in order.
    threads: of torch; None: its own choice.
    """

    def __init__(
        self,
        layers: Layers,
        room: Room,
        deliver: Callable[[Sequence[Event]], None],
        *,
        max_inflight: int = 8,
        threads: int | None = None,
    ) -> None:
        self.layers, self.room, self.max_inflight = layers, room, max_inflight
        self.resident, self.parked = limits(layers, room)
        self.steps = 0  # that ran
        self._deliver, self._threads = deliver, threads
        self._sessions: dict[bytes, Session] = {}
        self._lines: dict[Any, Session] = {}
        self._gone: OrderedDict[bytes, str] = OrderedDict()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._out: list[Event] = []
        self._over = False
        self._asks = 0  # that came
        self._answered = (0, 0.0)  # Asks of the last step that answered any; its seconds
        self._looked = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def sessions(self) -> int:
        """That are held."""
        return len(self._sessions)

    @property
    def longest(self) -> int:
        """Positions that a session may come to."""
        return min(self.layers.manifest.longest, self.resident)

    def open(self, line: Any, owner: str, promise: Promise) -> None:
        """A new session for a call; it is told Opened, or a Nack and the end."""
        self._inbox.put(lambda: self._open(line, owner, promise))

    def resume(self, line: Any, owner: str, sid: bytes) -> None:
        """A session that was opened before; likewise. Another call that has it loses it."""
        self._inbox.put(lambda: self._resume(line, owner, sid))

    def put(self, job: Job) -> None:
        """For the session of the job's call."""
        self._inbox.put(lambda: self._put(job))

    def cancel(self, line: Any, seq: int) -> None:
        """Nobody waits for that Ask any more."""
        self._inbox.put(lambda: self._cancel(line, seq))

    def end(self, line: Any) -> None:
        """The call's session is not wanted any more."""
        self._inbox.put(lambda: self._end(line))

    def leave(self, line: Any) -> None:
        """The call is over; its session stays."""
        self._inbox.put(lambda: self._leave(line))

    def close(self) -> None:
        """End the thread; all that is held is gone."""
        self._inbox.put(self._finish)
        self._thread.join()

    def _loop(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)  # OpenMP keeps it for each thread
        while not self._over:
            try:
                self._take_in()
                if not self._over:
                    self._step()
            except Exception:  # a fault of one turn must not end the one thread that answers
                logger.exception("a turn failed")
                self._give_up()
            self._flush()
        self._sessions.clear()
        self._lines.clear()

    def _give_up(self) -> None:
        """What waits first everywhere is told that it failed: nothing is tried for ever."""
        for session in self._sessions.values():
            if session.queue:
                session.queue[0].trouble = FAILED

    def _finish(self) -> None:
        self._over = True

    def _take_in(self) -> None:
        """All that came; where nothing waits, until something comes or expires."""
        waiting = any(session.queue for session in self._sessions.values())
        try:
            self._inbox.get(block=not waiting, timeout=WATCH)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            pass
        self._wait_for_company()
        now = time.monotonic()
        if now - self._looked > WATCH:
            self._looked = now
            self._expire(now)

    def _wait_for_company(self) -> None:
        """Where somebody asks already: until those that were answered last ask again, or not."""
        last, took = self._answered
        last = min(last, self.room.together or last)
        asking = sum(any(job.seq for job in one.queue) for one in self._sessions.values())
        started, before = time.monotonic(), self._asks
        while asking and not self._over:
            left = patience(asking + self._asks - before, last, took)
            left += started - time.monotonic()
            if left <= 0:
                return
            try:
                self._inbox.get(timeout=left)()
            except queue.Empty:
                return

    def _step(self) -> None:
        """Settle what needs none; choose rows, run them, answer the Asks that are complete."""
        for session in self._sessions.values():
            self._settle(session)
        needs = [need for one in self._sessions.values() if (need := one.need) is not None]
        if not needs:
            return
        started, parts = time.monotonic(), []
        for sid, count in turn(needs, self.room).items():
            if (session := self._sessions.get(sid)) is not None and self._roomy(session, count):
                parts.append((session, session.take(count)))
        rows = sum(len(taken.rows) for _, taken in parts)
        if self._ran([(session, taken) for session, taken in parts if len(taken.rows)]):
            self.steps += 1
            self._judge([session for session, _ in parts], started, rows)

    def _ran(self, parts: Sequence[tuple[Session, Taken]]) -> bool:
        """Run the rows; where that fails their jobs are told so."""
        try:
            if parts:
                self.layers.step([Part(s.cache, t.start, t.rows) for s, t in parts])
        except Exception:  # of memory, or of the model
            logger.exception("a step of %d sessions failed", len(parts))
            for session, taken in parts:
                session.fail(taken, FAILED)
            return False
        for session, taken in parts:
            session.hold(taken)
        return True

    def _judge(self, sessions: Sequence[Session], started: float, batch: int) -> None:
        for session in sessions:
            self._settle(session)
        ready = [(session, job) for session in sessions if (job := session.ready) is not None]
        if not ready:
            return
        wanted = [(s.cache, s.n - 1 - len(job.drafts), s.n) for s, job in ready]
        logits = self.layers.logits(wanted)
        for session, job in ready:
            verdict = session.judge(job, list(islice(logits, len(job.drafts) + 1)))
            session.used = now = time.monotonic()
            if verdict is not None:
                verdict.queue_us = int(1e6 * max(0.0, started - job.arrived))
                verdict.verify_us = int(1e6 * (now - started))
                verdict.batch = batch
                self._tell(job.line, wire.FromDecoder(verdict=verdict), job)
        self._answered = len(ready), time.monotonic() - started

    def _settle(self, session: Session) -> None:
        for job, nack in session.settle():
            message = None if nack is None else wire.FromDecoder(nack=nack)
            self._tell(job.line, message, job)

    def _roomy(self, session: Session, count: int) -> bool:
        """Room for `count` more positions of a session, where need be of others' memory."""
        room = max(session.cache.room, stepped(session.n + count))
        more = room if session.parked else room - session.cache.room
        if more and not self._make_room(more, session):
            session.queue[0].trouble = FULL
            return False
        try:
            if session.parked:
                session.cache.move(self.layers.device)
                session.parked = False
            session.cache.grow(room)
        except (RuntimeError, MemoryError):  # torch has a kind of its own for each device
            logger.exception("no memory for %d positions", room)
            session.queue[0].trouble = FULL
            return False
        return True

    def _make_room(self, more: int, keep: Session | None = None) -> bool:
        """Whether so many more positions can be resident; others are parked or dropped."""
        held = [one.held for one in self._sessions.values() if one is not keep or not one.parked]
        moves = moved(held, more, self.resident, self.parked)
        if moves is None:
            return False
        for sid in moves.dropped:
            self._forget(self._sessions[sid], wire.EXPIRED_SESSION)
        for sid in moves.parked:
            session = self._sessions[sid]
            session.cache.move(torch.device("cpu"))
            session.parked = True
        return True

    def _open(self, line: Any, owner: str, promise: Promise) -> None:
        now, cache = time.monotonic(), self.layers.cache(promise.resume)
        session = Session(secrets.token_bytes(SID), owner, promise, cache, now)
        if not self._make_room(stepped(1)):
            self._refuse(line, FULL)
            return
        cache.grow(1)
        self._sessions[session.sid] = session
        self._attach(line, session)

    def _resume(self, line: Any, owner: str, sid: bytes) -> None:
        session = self._sessions.get(sid)
        if session is None or session.owner != owner:
            expired = self._gone.get(sid) == owner
            reason = wire.EXPIRED_SESSION if expired else wire.NOT_FOUND
            self._refuse(line, Trouble(reason, "no such session"))
            return
        if session.line is not None:
            self._drop_queue(session)
            self._out.append(Event(session.line, over=True, taken=True))
            del self._lines[session.line]
        self._attach(line, session)

    def _attach(self, line: Any, session: Session) -> None:
        session.line, session.used = line, time.monotonic()
        self._lines[line] = session
        opened = wire.Opened(
            sid=session.sid,
            n=session.n,
            gen=session.gen,
            log=session.log,
            max_rows=MOST_ROWS,
            max_drafts=MOST_DRAFTS,
            max_inflight=self.max_inflight,
            ttl_s=int(self.room.ttl),
        )
        self._out.append(Event(line, wire.FromDecoder(opened=opened), attached=True))

    def _refuse(self, line: Any, trouble: Trouble) -> None:
        """No session for a call."""
        nack = wire.Nack(reason=trouble.reason, retry_ms=trouble.retry_ms, detail=trouble.detail)
        self._out.append(Event(line, wire.FromDecoder(nack=nack), over=True))

    def _put(self, job: Job) -> None:
        if (session := self._lines.get(job.line)) is None:
            self._out.append(Event(job.line, job=job))
            return
        self._asks += bool(job.seq)
        session.put(job)

    def _cancel(self, line: Any, seq: int) -> None:
        if (session := self._lines.get(line)) is None:
            return
        for job in session.queue:
            if job.seq == seq:
                job.trouble = Trouble(wire.CANCELLED_ASK, "cancelled")

    def _end(self, line: Any) -> None:
        if (session := self._lines.get(line)) is not None:
            self._forget(session, None)
        self._out.append(Event(line, over=True))

    def _leave(self, line: Any) -> None:
        session = self._lines.pop(line, None)
        if session is not None:
            session.line, session.used = None, time.monotonic()
            for job in [job for job in session.queue if job.seq]:
                session.queue.remove(job)
                self._out.append(Event(line, job=job))

    def _forget(self, session: Session, reason: wire.Reason | None) -> None:
        """Free what it holds. reason: why, for a call that still has it."""
        self._drop_queue(session)
        del self._sessions[session.sid]
        self._gone[session.sid] = session.owner
        while len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        if session.line is not None:
            del self._lines[session.line]
            if reason is not None:
                self._refuse(session.line, Trouble(reason, "the session is gone"))

    def _drop_queue(self, session: Session) -> None:
        for job in session.queue:
            self._out.append(Event(job.line, job=job))
        session.queue.clear()

    def _expire(self, now: float) -> None:
        for session in [*self._sessions.values()]:
            if session.line is None and now - session.used > self.room.ttl:
                self._forget(session, None)

    def _tell(self, line: Any, message: wire.FromDecoder | None, job: Job | None = None) -> None:
        self._out.append(Event(line, message, job))

    def _flush(self) -> None:
        if self._out:
            out, self._out = self._out, []
            self._deliver(out)


def limits(layers: Layers, room: Room) -> tuple[int, int]:
    """Positions that may be resident, and parked in the host's memory."""
    each = max(layers.bytes_of(resume) for resume in layers.manifest.resume)
    parked = resident = max(stepped(1), int(SHARE * available()) // each)
    if layers.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(layers.device)
        resident = max(stepped(1), int(CUDA_SHARE * free) // each)
    if room.kv_tokens is None:
        return resident, parked
    return room.kv_tokens, min(parked, PARKED * room.kv_tokens)
