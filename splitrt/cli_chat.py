"""The verbs of language models: exits, chat, api."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitrt import shown
from splitrt.coloured import Ink

if TYPE_CHECKING:
    from splitrt.edge.teller import Teller
    from splitrt.edge.trust import Trust

Folder = Annotated[Path, typer.Argument(help="A language model's directory.", metavar="DIR")]
Cloud = Annotated[
    str | None,
    typer.Option(help="The server's host:port; several with commas; dns:///name:port."),
]
Mode = Annotated[
    str | None,
    typer.Option(
        help="spec: the device drafts, the server verifies; gated: sure tokens stand unverified; "
        "ask: no drafts; edge: no server. By default spec, without --cloud edge."
    ),
]
Theta = Annotated[float, typer.Option(help="Confidence from which an exit's token stands.")]
Temperature = Annotated[float, typer.Option(help="0: always the best token.")]
TopP = Annotated[float, typer.Option(help="Of the likeliest tokens, so much.")]
Resume = Annotated[
    str, typer.Option(help="What is sent: hidden, rows of numbers; tokens, what was said.")
]
Codec = Annotated[str | None, typer.Option(help="Of rows: f32, f16, q8, q4; else the model's.")]
Drafts = Annotated[int | None, typer.Option(help="Of a round; by default as many as pay.")]
Threads = Annotated[int, typer.Option(help="Of ONNX Runtime.")]
Ca = Annotated[Path | None, typer.Option(help="Encrypt; who vouches for the server, PEM.")]
Cert = Annotated[Path | None, typer.Option(help="This device's certificate, PEM.")]
Key = Annotated[Path | None, typer.Option(help="Its key.")]
TokenFile = Annotated[Path | None, typer.Option(help="This device's token; or set SPLITRT_TOKEN.")]
Insecure = Annotated[
    bool, typer.Option("--insecure-tokens", help="A token without TLS, inside a tunnel.")
]


def exits(
    folder: Folder,
    data: Annotated[
        Path, typer.Option(help="Text: a .txt, or a .jsonl with a `text` a line; .gz of them.")
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Of it, at most.")] = 200_000,
    epochs: Annotated[int, typer.Option(min=1, help="Over the text.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Of torch and of ONNX Runtime.")] = 1,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Train and calibrate a language model's exits on text, its layers as they are; in place."""
    from splitrt.train import early

    found = early(
        folder, data, tokens=tokens, epochs=epochs, threads=threads, seed=seed, shown=not as_json
    )
    if as_json:
        shown.as_json({"exits": [one.model_dump(mode="json") for one in found.exits]})
    else:
        shown.exits(found)


def chat(
    folder: Folder,
    cloud: Cloud = None,
    prompt: Annotated[str | None, typer.Option(help="Say this, print the answer, end.")] = None,
    most: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Of an answer; else what fits.")
    ] = None,
    mode: Mode = None,
    theta: Theta = 0.8,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    resume: Resume = "hidden",
    codec: Codec = None,
    drafts: Drafts = None,
    threads: Threads = 1,
    tls_ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    insecure_tokens: Insecure = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object an answer.")] = False,
) -> None:
    """Talk with a language model whose first layers are here; Ctrl-D ends.

    Every token is coloured by where it was made: here, here and agreed with, or by the server.
    Ctrl-C ends an answer.
    """
    from splitrt.core.sample import Sampling

    trust = trusted(tls_ca, cert, key, token_file, insecure_tokens)
    how = {"theta": theta, "resume": resume, "codec": codec, "drafts": drafts, "threads": threads}
    sampling = Sampling(temperature, top_p, seed)
    with _teller(folder, cloud, mode, trust=trust, sampling=sampling, **how) as teller:
        talk = Talk(teller, None if as_json else Ink(), most)
        if prompt is not None:
            talk.say(prompt)
            return
        talk.begin()
        for text in prompts():
            talk.say(text)


def api(
    folder: Folder,
    cloud: Cloud = None,
    port: int = 8080,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="What callers must bring; or set SPLITRT_API_KEY."),
    ] = None,
    line: Annotated[int, typer.Option(min=0, help="Requests that may wait; others get 429.")] = 8,
    mode: Mode = None,
    theta: Theta = 0.8,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    resume: Resume = "hidden",
    codec: Codec = None,
    drafts: Drafts = None,
    threads: Threads = 1,
    tls_ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    insecure_tokens: Insecure = False,
) -> None:
    """Answer as OpenAI's API does: /v1/chat/completions, /v1/completions, /v1/models, /healthz.

    What a request leaves out is as said here. One answer at a time.
    """
    import logging

    from splitrt.core.sample import Sampling
    from splitrt.edge.api import Api, Door, serve
    from splitrt.edge.desk import Desk

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    door = Door(host, port, secret(key_file, "SPLITRT_API_KEY"))
    trust = trusted(tls_ca, cert, key, token_file, insecure_tokens)
    how = {"theta": theta, "resume": resume, "codec": codec, "drafts": drafts, "threads": threads}
    sampling = Sampling(temperature, top_p)
    with (
        _teller(folder, cloud, mode, trust=trust, sampling=sampling, **how) as teller,
        Desk(teller, line=line) as desk,
    ):
        name = teller.words.name
        serve(Api(desk, name, door.key).app, door, lambda there: f"api of {name} at {there}/v1")


class Talk:
    """A conversation on the terminal, or as JSON where there is no ink."""

    def __init__(self, teller: Teller, ink: Ink | None, most: int | None) -> None:
        self._teller, self._ink, self._most = teller, ink, most

    def begin(self) -> None:
        """Say what the colours mean."""
        if self._ink is not None:
            self._ink.legend()

    def say(self, text: str) -> None:
        """One question and its answer; Ctrl-C ends the answer, which stays as far as it came."""
        from splitrt.edge.teller import TooLong

        teller = self._teller
        before = signal.signal(signal.SIGINT, lambda *_: teller.speaker.cancel())
        try:
            self._answer(text)
        except TooLong:
            if not teller.messages:
                raise
            print("the conversation is full: it begins anew", file=sys.stderr)
            teller.messages = []
            self._answer(text)
        finally:
            signal.signal(signal.SIGINT, before)

    def _answer(self, text: str) -> None:
        said, before = "", self._teller.speaker.difference
        for token in self._teller.ask(text, most=self._most):
            said += token.text
            if self._ink is not None:
                self._ink.token(token)
        tally, found = self._teller.speaker.tally, self._teller.speaker.difference
        words = self._teller.words
        new = None if found is None or found == before else found
        if self._ink is not None:
            self._ink.tally(tally)
            if new is not None:
                self._ink.differs(words.text([new.said]), words.text([new.instead]), new.position)
        else:
            differs = None if new is None else asdict(new)
            told = {"text": said, **tally.as_dict(), "difference": differs}
            print(json.dumps(told), flush=True)


def prompts() -> Iterator[str]:
    """What is typed, line by line; without a terminal, the lines of standard input."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (input() edits lines with it)
    while True:
        try:
            text = input("> ") if sys.stdin.isatty() else input()
        except (EOFError, KeyboardInterrupt):
            return
        if text.strip():
            yield text


@contextlib.contextmanager
def _teller(folder: Path, cloud: str | None, mode: str | None, **how: Any) -> Iterator[Teller]:
    """A Chat with words around it, closed in the end."""
    from splitrt.edge.chat import Chat
    from splitrt.edge.teller import Teller
    from splitrt.edge.tokens import Words

    words = Words(folder)  # before what is slow
    chosen: Any = mode or ("edge" if cloud is None else "spec")
    with Chat(folder, cloud, mode=chosen, **how) as chat:
        yield Teller(words, chat)


def trusted(
    ca: Path | None, cert: Path | None, key: Path | None, token: Path | None, insecure: bool
) -> Trust:
    from splitrt.edge.trust import Trust

    return Trust(ca, cert, key, secret(token, "SPLITRT_TOKEN"), insecure)


def secret(path: Path | None, name: str) -> str | None:
    """Of a file or of the environment; never of the arguments, which all can read."""
    from splitrt.core.tls import small

    if path is None:
        return os.environ.get(name) or None
    return small(path).decode("utf-8", "replace").strip()
