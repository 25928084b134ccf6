"""`splitrt demo chat --page`: a page to talk on, beside a server and a link that can be cut."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from splitrt.coloured import MEANING
from splitrt.core.language import Language
from splitrt.core.manifest import first
from splitrt.core.sample import Sampling
from splitrt.core.spoken import Difference, Mode, Tally, Token
from splitrt.edge.api import Door, Events, Gone, Heard, body, named, serve, unheard
from splitrt.edge.chat import Chat
from splitrt.edge.desk import Desk, Done
from splitrt.edge.teller import Teller
from splitrt.edge.tokens import Words
from splitrt.edge.wish import Strict, Wish, Wrong, read
from splitrt.errors import SplitrtError
from splitrt.relay import Relay
from splitrt.served import served
from splitrt.story import shipped

PAGES = Path(__file__).parent / "pages"
RTT = 0.04  # seconds, of the link at first
PATIENCE = 0.5  # seconds without a server; before, 1.5 of silence tell that it is lost
LOOPBACK = ("127.0.0.1", "localhost")
POLICY = {  # the page is all that runs: no script of a text, nothing of another host
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class How(Strict):
    """How an answer is to be made. drafts: of a round; None: as many as pay.

    pace: tokens a second at most, so that one can follow; None: as fast as it goes.
    """

    mode: Mode = "spec"
    drafts: Annotated[int, Field(ge=0, le=64)] | None = None
    pace: Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False)] | None = None


class Wire(Strict):
    """What is to be changed of the link between device and server."""

    cut: bool | None = None
    rtt_ms: Annotated[float, Field(ge=0, le=2000, allow_inf_nan=False)] | None = None


class Paced:
    """A Chat that says its tokens no faster than one can read; the pauses are not in its tally."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.pace = chat, None
        self._paused, self._hurry = 0.0, threading.Event()

    pace: float | None  # tokens a second

    @property
    def sampling(self) -> Sampling:
        """Of the chat."""
        return self.chat.sampling

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        self.chat.sampling = sampling

    @property
    def tally(self) -> Tally:
        """Of the chat, without the pauses."""
        told = self.chat.tally
        return replace(told, seconds=max(told.first, told.seconds - self._paused))

    @property
    def longest(self) -> int:
        """Of the chat."""
        return self.chat.longest

    @property
    def difference(self) -> Difference | None:
        """Of the chat."""
        return self.chat.difference

    @property
    def ids(self) -> tuple[int, ...]:
        """Of the chat."""
        return self.chat.ids

    def truncate(self, n: int) -> None:
        """Of the chat."""
        self.chat.truncate(n)

    def cancel(self) -> None:
        """Stop the answer, here and on the server; from any thread."""
        self._hurry.set()
        self.chat.cancel()

    def answer(self, ids: Sequence[int], *, most: int) -> Generator[Token, None, None]:
        """The chat's answer, with pauses."""
        self._paused = 0.0
        self._hurry.clear()
        with contextlib.closing(self.chat.answer(ids, most=most)) as tokens:
            for token in tokens:
                yield token
                if self.pace is not None:
                    self._pause(1 / self.pace)

    def _pause(self, seconds: float) -> None:
        if not self._hurry.wait(seconds):
            self._paused += seconds


class Pieces:
    """An answer's stream as the page reads it: each token with where it was made, and the tally."""

    def __init__(self, speaker: Paced, heard: Heard) -> None:
        self._speaker, self._heard = speaker, heard

    def first(self) -> list[dict[str, Any]]:
        """Nothing comes before the first token."""
        return []

    def token(self, token: Token) -> dict[str, Any]:
        """A token that shows."""
        told = {"text": token.text, "where": token.where, "position": token.position}
        return {"token": told, "tally": _figures(self._speaker.tally)}

    def last(self, done: Done) -> list[dict[str, Any]]:
        """Why it ended, and what it took."""
        reason = "stopped" if self._heard.left else done.reason
        return [{"end": reason, "tally": _figures(done.tally)}]


class Parlour:
    """The page's routes. One answer at a time.

    app: /, /state, /say, /stop, /link and the page's files.
    """

    def __init__(
        self, desk: Desk, speaker: Paced, words: Words, relay: Relay, *, host: str = LOOPBACK[0]
    ) -> None:
        self._desk, self._speaker, self._words, self._relay = desk, speaker, words, relay
        self._heard: Heard | None = None
        self._differences, self._seen = 0, speaker.difference
        hosts = [*LOOPBACK] if host in LOOPBACK else ["*"]  # a name of another site is not ours
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/state", self._state),
                Route("/say", self._say, methods=["POST"]),
                Route("/stop", self._stop, methods=["POST"]),
                Route("/link", self._link, methods=["POST"]),
                Mount("/pages", StaticFiles(directory=PAGES)),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
            exception_handlers={SplitrtError: _said, HTTPException: _said, Gone: unheard},
        )

    async def _page(self, request: Request) -> Response:
        del request
        return FileResponse(PAGES / "chat.html", headers=POLICY)

    async def _state(self, request: Request) -> Response:
        del request
        return JSONResponse(self._now())

    async def _say(self, request: Request) -> Response:
        how, wish = asked(await body(request))
        if self._desk.requests:
            raise Wrong("an answer is being said\nhelp: stop it, or wait for its end", status=409)
        chat = self._speaker.chat
        chat.mode, chat.drafts, self._speaker.pace = how.mode, how.drafts, how.pace
        heard = self._heard = Heard(self._desk, wish, request.receive)
        try:
            told = await heard.next()  # the first token decides the status
        except BaseException:
            heard.close()
            raise
        return Events(heard, told, Pieces(self._speaker, heard))

    async def _stop(self, request: Request) -> Response:
        await _parsed(request, Strict)
        saying = self._heard is not None and self._desk.requests > 0
        if self._heard is not None:
            self._heard.leave()
        return JSONResponse({"stopped": saying})

    async def _link(self, request: Request) -> Response:
        wanted = await _parsed(request, Wire)
        if wanted.cut is not None:
            self._relay.hole = wanted.cut
        if wanted.rtt_ms is not None:
            self._relay.rtt = wanted.rtt_ms / 1000
        return JSONResponse(self._now())

    def _now(self) -> dict[str, Any]:
        """How things stand. away: the device goes on alone."""
        chat, found = self._speaker.chat, self._speaker.difference
        if found is not self._seen:
            self._differences, self._seen = self._differences + 1, found
        return {
            "model": self._words.name,
            "meaning": MEANING,
            "saying": self._desk.requests > 0,
            "cut": self._relay.hole,
            "rtt_ms": round(1000 * self._relay.rtt),
            "up": chat.up,
            "away": chat.away,
            "differences": self._differences,
            "difference": None if found is None else self._differs(found),
        }

    def _differs(self, found: Difference) -> dict[str, Any]:
        said, instead = (self._words.text([one]) for one in (found.said, found.instead))
        return {**asdict(found), "said": said, "instead": instead}


def asked(raw: bytes) -> tuple[How, Wish]:
    """The body of /say: as OpenAI's chat completions, and `how`; Wrong if it is not."""
    found = _object(raw)
    how = _valid(How, found.pop("how", {}))
    return how, read(json.dumps(found).encode(), "chat")


def run(model: Path | None, door: Door) -> None:
    """Start a server and a link to it, open the page's door, until SIGTERM or SIGINT."""
    folder = shipped() if model is None else model
    Language.load(folder)  # before a process is started for it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the server ends with this process
    with served(folder) as address:
        words = Words(folder)  # while the server loads
        with (
            Relay(address(), rtt=RTT) as relay,
            Chat(folder, relay.address, patience=PATIENCE) as chat,
        ):
            speaker = Paced(chat)
            with Desk(Teller(words, speaker), line=0, rest=chat.rejoin) as desk:
                page = Parlour(desk, speaker, words, relay, host=door.host)
                serve(page.app, door, lambda there: f"chat with {words.name} at {there}")


def _figures(tally: Tally) -> dict[str, Any]:
    return {**tally.as_dict(), "drafted": tally.drafted}


async def _parsed(request: Request, kind: type[Any]) -> Any:
    return _valid(kind, _object(await body(request)))


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Wrong("the body is no JSON\nhelp: one JSON object") from error
    if not isinstance(found, dict):
        raise Wrong("the body is no JSON object\nhelp: {...}")
    return found


def _valid(kind: type[Any], found: Any) -> Any:
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        place: Any = error.errors()[0]["loc"]
        raise Wrong(first(error), param=str(place[0]) if place else None) from error


async def _said(request: Request, error: Exception) -> Response:
    """Every error as the API tells it."""
    if isinstance(error, HTTPException):  # no such place, or not by this method
        place = f"{request.method} {request.url.path[:80]}"
        error = Wrong(f"nothing here answers {place}\nhelp: open /", status=error.status_code)
    assert isinstance(error, SplitrtError)  # there is a handler for no other
    status, told = named(error)
    return JSONResponse(told, status)
