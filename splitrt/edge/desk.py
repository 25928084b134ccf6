"""One model, one answer at a time: a bounded line of requests, each told as it comes."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from splitrt.core.sample import Sampling
from splitrt.core.spoken import Tally, Token
from splitrt.edge.teller import Teller
from splitrt.edge.tokens import Turn
from splitrt.edge.wish import Wish, Wrong
from splitrt.errors import SplitrtError

logger = logging.getLogger(__name__)

LINE = 8  # requests that wait
REST = 0.25  # seconds without a request before what is done then


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer. read: tokens of the prompt, of which the session held `held`."""

    reason: Literal["stop", "length"]
    read: int
    held: int
    said: int
    tally: Tally


Told: TypeAlias = "Token | Done | SplitrtError"


class Until:
    """A text up to the first of several stops, in pieces: what might become one is held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self._kept, self.over = stops, "", False

    def push(self, text: str) -> str:
        """What may be shown now; `over` if a stop came."""
        text = self._kept + text
        cuts = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        self.over = bool(cuts)
        sure = min(cuts) if cuts else len(text) - self._begun(text)
        self._kept = "" if cuts else text[sure:]
        return text[:sure]

    def end(self) -> str:
        """What was held back, though no stop came of it."""
        kept, self._kept = self._kept, ""
        return kept

    def _begun(self, text: str) -> int:
        """Characters at the end that a stop may begin with."""
        begun = (
            size
            for stop in self._stops
            for size in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:size])
        )
        return max(begun, default=0)


@dataclass(slots=True, eq=False)
class Job:
    """One request. tell: called by the desk's thread with each token that shows, then the end.

    A token's text is what may be shown since the last one.
    """

    wish: Wish
    tell: Callable[[Told], None]
    left: threading.Event = field(default_factory=threading.Event)


class Desk:
    """Gives answers one after another, in a thread of its own; the session is the teller's.

    line: requests that may wait.  rest: called now and then while there is none.
    """

    def __init__(
        self, teller: Teller, *, line: int = LINE, rest: Callable[[], None] | None = None
    ) -> None:
        self._teller, self._default = teller, teller.speaker.sampling
        self._line: deque[Job] = deque()
        self._most, self._rest, self._over = line, rest, False
        self._now: Job | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)
        self._thread.start()

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def requests(self) -> int:
        """Those that are answered or wait."""
        with self._changed:
            return len(self._line) + (self._now is not None)

    def take(self, wish: Wish, tell: Callable[[Told], None]) -> Job:
        """Put a request into the line; Wrong (429) if that is full."""
        job = Job(wish, tell)
        with self._changed:
            waiting = len(self._line) + (self._now is not None)
            if waiting > self._most:
                raise Wrong(
                    f"{waiting} requests are here already\nhelp: again in a moment",
                    status=429,
                    code="rate_limit_exceeded",
                )
            self._line.append(job)
            self._changed.notify()
        return job

    def leave(self, job: Job) -> None:
        """Nobody wants that answer any more."""
        with self._changed:
            job.left.set()
            if self._now is job:
                self._teller.speaker.cancel()
            elif job in self._line:
                self._line.remove(job)

    def close(self) -> None:
        """End the answer in flight; those that wait are not begun."""
        with self._changed:
            self._over = True
            self._changed.notify()
        if (job := self._now) is not None:
            self.leave(job)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            end = self._end(job)
            with self._changed:  # before it is told: whoever hears it may ask again at once
                self._now = None
            job.tell(end)

    def _next(self) -> Job | None:
        """The request that is answered now; None when the desk is closed."""
        pause = None if self._rest is None else REST
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._line or self._over, pause):
                    self._now = None if self._over else self._line.popleft()
                    return self._now
            self._idle()

    def _idle(self) -> None:
        assert self._rest is not None  # there is no pause without it
        try:
            self._rest()
        except SplitrtError as error:
            logger.warning("%s", str(error).splitlines()[0])

    def _end(self, job: Job) -> Done | SplitrtError:
        try:
            return self._answered(job)
        except SplitrtError as error:
            return error
        except Exception:
            logger.exception("an answer failed")
            return Wrong("this server failed\nhelp: its log says why", status=500)

    def _answered(self, job: Job) -> Done:
        """Tell the answer, piece by piece; its end."""
        teller, wish = self._teller, job.wish
        turn = teller.turn(wish.told)
        held, until, said, last = teller.held(turn), Until(wish.stops), 0, None
        teller.speaker.sampling = self._sampling(wish, turn)
        answer = teller.say(turn, most=wish.most)
        for token in answer:
            said, last = said + 1, token
            if text := until.push(token.text):
                job.tell(replace(token, text=text))
            if until.over or job.left.is_set():
                break
        answer.close()
        if last is not None and (text := until.end()):
            job.tell(replace(last, text=text))
        ended = until.over or (last is not None and last.id in teller.words.stops)
        tally = teller.speaker.tally
        return Done("stop" if ended else "length", len(turn.whole), held, said, tally)

    def _sampling(self, wish: Wish, turn: Turn) -> Sampling:
        """How to choose tokens: by the request, else as the server was told.

        Without a seed every answer has its own, but a conversation that goes on keeps it: another
        sampling is another session on the server.
        """
        low = self._default.temperature if wish.temperature is None else wish.temperature
        top = self._default.top_p if wish.top_p is None else wish.top_p
        if not low:
            return Sampling()
        if wish.seed is not None:
            return Sampling(low, top, wish.seed % (1 << 63))
        now, ids = self._teller.speaker.sampling, self._teller.speaker.ids
        goes_on = bool(ids) and turn.whole[: len(ids)] == list(ids)
        if goes_on and (now.temperature, now.top_p) == (low, top):
            return now
        return Sampling(low, top, secrets.randbits(63))
