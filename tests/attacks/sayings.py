"""A language model's calls as bytes: good ones, and the tools to make bad ones."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import numpy as np

from splitrt.core.language import Language
from splitrt.wire import decode_pb2 as wire

SESSION = "/splitrt.wire.Decoder/Session"
CLOSE = wire.ToDecoder(close=wire.Close()).SerializeToString()


def opening(manifest: Language, /, **fields: Any) -> bytes:
    """An Open that is right but for `fields`."""
    words = {"protocol": 1, "manifest": manifest.digest, "resume": "hidden", "codec": "f32"}
    opened = wire.Open(**{**words, "max_len": 100, **fields})
    return wire.ToDecoder(open=opened).SerializeToString()


def rows(manifest: Language, count: int) -> bytes:
    """Rows of f32 that are right."""
    shape = (count, manifest.shape.hidden)
    return np.random.default_rng(3).standard_normal(shape).astype("<f4").tobytes()


def ask(payload: bytes, count: int, **fields: Any) -> bytes:
    """An Ask for that many rows."""
    one = wire.Ask(**{"seq": 1, "rows": count, "payload": payload, **fields})
    return wire.ToDecoder(ask=one).SerializeToString()


def append(payload: bytes, count: int, **fields: Any) -> bytes:
    """An Append of that many rows."""
    one = wire.Append(**{"rows": count, "payload": payload, **fields})
    return wire.ToDecoder(append=one).SerializeToString()


def said(channel: grpc.Channel, messages: Iterable[bytes]) -> list[wire.FromDecoder]:
    """All that the server says to these; RpcError if it ends the call before its time."""
    answers = channel.stream_stream(SESSION)(iter(messages), timeout=60)
    return [wire.FromDecoder.FromString(raw) for raw in answers]


def good(channel: grpc.Channel, manifest: Language) -> list[bytes]:
    """What is said to a session of rows and to one of tokens; both are closed."""
    ids = np.arange(5, dtype="<u4").tobytes()
    pairs = [
        (opening(manifest), ask(rows(manifest, 5), 5)),
        (opening(manifest, resume="tokens"), ask(ids, 5)),
    ]
    return [_answered(channel, *pair) for pair in pairs]


def _answered(channel: grpc.Channel, first: bytes, asked: bytes) -> bytes:
    """Token and confidence; the session is closed when they are there."""
    over = threading.Event()

    def outgoing() -> Iterator[bytes]:
        yield from (first, asked)
        over.wait(60)
        yield CLOSE

    answers = channel.stream_stream(SESSION)(outgoing(), timeout=60)
    opened, answer = (wire.FromDecoder.FromString(next(answers)) for _ in range(2))
    over.set()
    assert opened.HasField("opened") and answer.HasField("verdict"), (opened, answer)
    assert list(answers) == []
    return f"{answer.verdict.token} {answer.verdict.confidence}".encode()
