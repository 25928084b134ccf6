"""The page's address: its files, a stream of what happens, and what it may ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from board import Board
from dials import Dials, Wanted
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import splitrt
from splitrt import SplitrtError

PAGE = Path(__file__).parent / "page"
LOOK = Path(splitrt.__file__).parent / "pages" / "look.css"
LARGEST = 4096  # bytes of a request
READING = 5.0  # seconds for a request's body
POLICY = {  # nothing runs but the page itself, and nothing comes from elsewhere
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Wrong(SplitrtError):
    """A request that cannot be served, and the status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def app(board: Board, dials: Dials, *, local: bool) -> Starlette:
    """All of it. local: only for this machine, so that no other name may lead here."""

    async def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=POLICY)

    async def look(request: Request) -> Response:
        return FileResponse(LOOK, headers=POLICY)

    async def events(request: Request) -> Response:
        told = board.look()
        try:
            first = await anext(told)
        except SplitrtError as error:
            raise Wrong(str(error), 503) from error
        headers = {**POLICY, "cache-control": "no-store"}
        return StreamingResponse(sent(first, told), headers=headers, media_type="text/event-stream")

    async def state(request: Request) -> Response:
        return JSONResponse({**board.about(), "link": dials.now()}, headers=POLICY)

    async def link(request: Request) -> Response:
        try:
            wanted = Wanted.read(await body(request))
        except Wrong:
            raise
        except SplitrtError as error:
            raise Wrong(str(error), 422) from error
        return JSONResponse(await run_in_threadpool(dials.turn, wanted), headers=POLICY)

    hosts = ["127.0.0.1", "localhost", "[::1]"] if local else ["*"]
    return Starlette(
        routes=[
            Route("/", page),
            Route("/look.css", look),
            Route("/events", events),
            Route("/state", state),
            Route("/link", link, methods=["POST"]),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        exception_handlers={SplitrtError: said, HTTPException: said, ClientDisconnect: gone},
    )


async def sent(first: tuple[str, str], told: AsyncIterator[tuple[str, str]]) -> AsyncIterator[str]:
    """Server-sent events."""
    yield f"retry: 1000\nevent: {first[0]}\ndata: {first[1]}\n\n"
    async for event, text in told:
        yield f"event: {event}\ndata: {text}\n\n"


async def body(request: Request) -> bytes:
    """A request's JSON; a browser cannot send that from another site without asking first."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Wrong("the body is not JSON\nhelp: Content-Type: application/json", 415)
    raw = bytearray()

    async def fill() -> None:
        async for block in request.stream():
            raw.extend(block)
            if len(raw) > LARGEST:
                raise Wrong(f"more than {LARGEST} bytes\nhelp: a few numbers are enough", 413)

    try:
        await asyncio.wait_for(fill(), READING)
    except asyncio.TimeoutError as error:
        raise Wrong("the body did not come\nhelp: send it at once", 408) from error
    return bytes(raw)


async def said(request: Request, error: Exception) -> Response:
    """Every error as {"error": …}."""
    if isinstance(error, HTTPException):  # no such place, or not by this method
        told = f"nothing here answers {request.method} {request.url.path[:80]}"
        return JSONResponse({"error": told}, error.status_code, error.headers)
    assert isinstance(error, SplitrtError)  # there is a handler for no other
    status = error.status if isinstance(error, Wrong) else 500
    return JSONResponse({"error": str(error)}, status)


async def gone(request: Request, error: Exception) -> Response:
    """What ends a request whose page has left."""
    return Response(status_code=499)
