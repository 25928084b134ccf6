"""A door that speaks as OpenAI's does: /v1/chat/completions and /v1/completions, on the device."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from splitrt.core.spoken import Token
from splitrt.core.tls import loopback
from splitrt.edge.desk import Desk, Done, Job, Told
from splitrt.edge.teller import TooLong
from splitrt.edge.wish import Kind, Wish, Wrong, read
from splitrt.errors import LinkError, PacketError, SplitrtError

logger = logging.getLogger(__name__)

LARGEST = 1 << 20  # bytes of a request's body
READING = 30.0  # seconds for it to come
CALLERS = 64  # connections
GRACE = 5  # seconds for the answers in flight at the end
KINDS: dict[Kind, tuple[str, str]] = {
    "chat": ("chatcmpl", "chat.completion"),
    "text": ("cmpl", "text_completion"),
}


@dataclass(frozen=True, slots=True)
class Door:
    """Where the API is. key: what callers must bring as a bearer token; None: nothing."""

    host: str = "127.0.0.1"
    port: int = 8080
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.key is not None and not (
            self.key and self.key.isascii() and self.key.isprintable()
        ):
            raise SplitrtError("the API's key is empty or not plain ASCII\nhelp: one line of it")

    def listening(self) -> socket.socket:
        """A socket that listens there; SplitrtError if it cannot."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family)
        except OSError as error:
            raise SplitrtError(
                f"no port {self.port} at {self.host}: {error.strerror}\nhelp: another --port"
            ) from error


class Gone(Exception):
    """The client left."""


class Heard:
    """One request at the desk, as its event loop hears it; a client that leaves ends it."""

    def __init__(self, desk: Desk, wish: Wish, receive: Receive) -> None:
        self._desk, self._loop = desk, asyncio.get_running_loop()
        self._told: asyncio.Queue[Told] = asyncio.Queue()
        self._job: Job = desk.take(wish, self._tell)
        self._gone = asyncio.ensure_future(_left(receive))

    @property
    def left(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self._job.left.is_set()

    async def next(self) -> Token | Done:
        """A token that shows, or the end. Gone if the client is; else what the desk raised."""
        told = asyncio.ensure_future(self._told.get())
        await asyncio.wait({told, self._gone}, return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            told.cancel()
            raise Gone
        found = told.result()
        if isinstance(found, SplitrtError):
            raise found
        return found

    def leave(self) -> None:
        """Nobody wants the rest of the answer; its end is still told."""
        self._desk.leave(self._job)

    def close(self) -> None:
        """Over: if the answer is not, nobody wants it."""
        self._gone.cancel()
        self.leave()

    def _tell(self, told: Told) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it all who listen
            self._loop.call_soon_threadsafe(self._told.put_nowait, told)


class Shape(Protocol):
    """What the pieces of a streamed answer look like."""

    def first(self) -> list[dict[str, Any]]:
        """What it begins with."""

    def token(self, token: Token) -> dict[str, Any]:
        """A token that shows."""

    def last(self, done: Done) -> list[dict[str, Any]]:
        """What it ends with."""


class Answers:
    """The shapes of one answer as OpenAI has them, whole or in pieces."""

    def __init__(self, wish: Wish, model: str) -> None:
        self._chat, self._wish = wish.kind == "chat", wish
        start, self._object = KINDS[wish.kind]
        self._same = {
            "id": f"{start}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, done: Done) -> dict[str, Any]:
        """The answer to who did not ask for a stream."""
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self._chat
            else {"text": text}
        )
        return {
            "object": self._object,
            **self._same,
            "choices": [self._choice(said, done.reason)],
            "usage": usage(done),
            "splitrt": done.tally.as_dict(),
        }

    def first(self) -> list[dict[str, Any]]:
        """What a stream begins with."""
        if not self._chat:
            return []
        return [self._piece({"delta": {"role": "assistant", "content": ""}})]

    def token(self, token: Token) -> dict[str, Any]:
        """A piece of a stream."""
        text = token.text
        return self._piece({"delta": {"content": text}} if self._chat else {"text": text})

    def last(self, done: Done) -> list[dict[str, Any]]:
        """What a stream ends with."""
        end = self._piece({"delta": {}} if self._chat else {"text": ""}, done.reason)
        pieces = [{**end, "splitrt": done.tally.as_dict()}]
        if self._wish.usage:
            pieces.append({**self._piece(None), "usage": usage(done)})
        return pieces

    def _piece(self, said: dict[str, Any] | None, reason: str | None = None) -> dict[str, Any]:
        return {
            "object": "chat.completion.chunk" if self._chat else self._object,
            **self._same,
            "choices": [] if said is None else [self._choice(said, reason)],
            **({"usage": None} if self._wish.usage else {}),
        }

    def _choice(self, said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}


class Events(Response):
    """A stream of server-sent events, until the answer ends or its client leaves."""

    def __init__(self, heard: Heard, first: Token | Done, shape: Shape) -> None:
        self._heard, self._first, self._shape = heard, first, shape
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        body = {"type": "http.response.body", "more_body": True}
        try:
            await send(start)
            async for piece in self._pieces():
                await send({**body, "body": f"data: {piece}\n\n".encode()})
            await send({**body, "body": b"data: [DONE]\n\n", "more_body": False})
        except (Gone, OSError):
            logger.info("a client left before its answer was whole")
        finally:
            self._heard.close()

    async def _pieces(self) -> AsyncIterator[str]:
        for piece in self._shape.first():
            yield json.dumps(piece)
        told = self._first
        try:
            while not isinstance(told, Done):
                yield json.dumps(self._shape.token(told))
                told = await self._heard.next()
        except SplitrtError as error:  # the status is sent already: the stream says it
            yield json.dumps(named(error)[1])
            return
        for piece in self._shape.last(told):
            yield json.dumps(piece)


class Api:
    """The routes. name: of the model."""

    def __init__(self, desk: Desk, name: str, key: str | None = None) -> None:
        self.name = name
        self._desk, self._key = desk, key
        self._born = int(time.time())
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._text, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/healthz", self._health),
            ],
            exception_handlers={SplitrtError: _said, HTTPException: _said, Gone: unheard},
        )

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, "chat")

    async def _text(self, request: Request) -> Response:
        return await self._answer(request, "text")

    async def _answer(self, request: Request, kind: Kind) -> Response:
        self._known(request)
        wish = read(await body(request), kind)
        if wish.model is not None:
            self._is(wish.model)
        answers, heard = Answers(wish, self.name), Heard(self._desk, wish, request.receive)
        try:
            told = await heard.next()  # the first word decides the status
            if wish.stream:
                return Events(heard, told, answers)
            text = ""
            while not isinstance(told, Done):
                text += told.text
                told = await heard.next()
        except BaseException:
            heard.close()
            raise
        heard.close()
        return JSONResponse(answers.whole(text, told))

    async def _models(self, request: Request) -> Response:
        self._known(request)
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        self._known(request)
        self._is(request.path_params["name"])
        return JSONResponse(self._card())

    async def _health(self, request: Request) -> Response:
        del request
        return JSONResponse({"status": "ok", "model": self.name, "requests": self._desk.requests})

    def _card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self._born, "owned_by": "splitrt"}

    def _is(self, name: str) -> None:
        if name != self.name:
            raise Wrong(
                f"no model {name[:80]!r}\nhelp: this is {self.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def _known(self, request: Request) -> None:
        """Wrong (401) unless the caller brings the key, if there is one."""
        if self._key is None:
            return
        brought = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(brought, f"Bearer {self._key}".encode()):
            raise Wrong(
                "the API's key is missing or wrong\nhelp: Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
            )


def usage(done: Done) -> dict[str, Any]:
    """Tokens read and said, as OpenAI counts them; cached: the session held them already."""
    return {
        "prompt_tokens": done.read,
        "completion_tokens": done.said,
        "total_tokens": done.read + done.said,
        "prompt_tokens_details": {"cached_tokens": done.held},
    }


def named(error: SplitrtError) -> tuple[int, dict[str, Any]]:
    """An error's status, and OpenAI's shape of it."""
    status, param, code = 500, None, None
    if isinstance(error, Wrong):
        status, param, code = error.status, error.param, error.code
    elif isinstance(error, PacketError):
        status, code = 400, "context_length_exceeded" if isinstance(error, TooLong) else None
    elif isinstance(error, LinkError):
        status, code = 503, "server_unreachable"
    kinds = {429: "rate_limit_error", 401: "authentication_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return status, {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def server(app: Starlette) -> uvicorn.Server:
    """What runs it: `run(sockets=[...])`."""
    return uvicorn.Server(
        uvicorn.Config(
            app, http="h11", ws="none", lifespan="off", access_log=False, log_level="warning",
            limit_concurrency=CALLERS, timeout_graceful_shutdown=GRACE, server_header=False,
            proxy_headers=False,
        )
    )  # fmt: skip


def serve(app: Starlette, door: Door, told: Callable[[str], str]) -> None:
    """Answer until SIGTERM or SIGINT; then let the answers in flight end.

    told: what is printed of the address once it listens.
    """
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(door.listening())
        for name in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them once more at its end
            stack.callback(signal.signal, name, signal.signal(name, lambda *_: None))
        host, port = there.getsockname()[:2]
        if door.key is None and not loopback(host):
            print("no key is set: whoever reaches this machine may use it", flush=True)
        shown = f"[{host}]" if ":" in host else host
        print(told(f"http://{shown}:{port}"), flush=True)
        server(app).run(sockets=[there])


async def _left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def body(request: Request) -> bytes:
    """A request's JSON; a browser cannot send that from another site without asking first."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Wrong("the body is not JSON\nhelp: Content-Type: application/json", status=415)
    raw = bytearray()

    async def fill() -> None:
        async for block in request.stream():
            raw.extend(block)
            if len(raw) > LARGEST:
                raise Wrong(f"more than {LARGEST >> 20} MiB\nhelp: a shorter text", status=413)

    try:
        await asyncio.wait_for(fill(), READING)
    except ClientDisconnect as error:
        raise Gone from error
    except asyncio.TimeoutError as error:
        raise Wrong("the body did not come\nhelp: send it at once", status=408) from error
    return bytes(raw)


async def _said(request: Request, error: Exception) -> Response:
    """Every error in OpenAI's shape."""
    if isinstance(error, HTTPException):  # no such place, or not by this method
        place = f"{request.method} {request.url.path[:80]}"
        told = f"nothing here answers {place}\nhelp: /v1/chat/completions"
        error = Wrong(told, status=error.status_code)
    assert isinstance(error, SplitrtError)  # there is a handler for no other
    status, body = named(error)
    headers = {429: {"retry-after": "1"}, 401: {"www-authenticate": "Bearer"}}.get(status)
    return JSONResponse(body, status, headers)


async def unheard(request: Request, error: Exception) -> Response:
    """What ends a request whose client has left."""
    del request, error
    return Response(status_code=499)
