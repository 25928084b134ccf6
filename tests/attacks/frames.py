"""Requests as bytes: good ones, and the tools to make bad ones."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import grpc
import numpy as np
import zstandard

from splitrt.core import packet
from splitrt.core.codec import FORMAT
from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire

STREAM, INFER = "/splitrt.wire.Tail/Stream", "/splitrt.wire.Tail/Infer"


def place(manifest: Manifest, name: str) -> int:
    """Where a plan stands in the manifest's list."""
    return [plan.name for plan in manifest.plans].index(name)


def request(manifest: Manifest, payload: bytes, name: str = "q8", **fields: object) -> bytes:
    """A unary request, by default right in everything but its payload."""
    fields = {"seq": 1, "plan": place(manifest, name), **fields}
    frame = wire.Frame(payload=payload, **fields)
    return wire.Request(hello=packet.hello(manifest), frame=frame).SerializeToString()


def stored(manifest: Manifest) -> bytes:
    """A q8 payload that is right: all codes 0, not compressed."""
    return b"\0" + bytes(elements(manifest))


def elements(manifest: Manifest) -> int:
    """How many numbers the good frame has."""
    size = None if manifest.sizes is None else SIZE
    return manifest.at(size).widths[-1].elements


SIZE = (96, 160)  # of the good frame's picture, where the model takes several


def good(manifest: Manifest) -> bytes:
    """A request that is right."""
    beside: dict[str, object] = {}
    if manifest.sizes is not None:
        beside = {"size": SIZE, "side": [np.array([480, 640], "<i8").tobytes()]}
    return request(manifest, stored(manifest), **beside)


def hello(manifest: Manifest, **fields: object) -> bytes:
    """The first message of a stream."""
    greeting = packet.hello(manifest)
    greeting.MergeFrom(wire.Hello(**fields))
    return wire.ToServer(hello=greeting).SerializeToString()


def framed(raw: bytes, **fields: object) -> bytes:
    """A unary request's frame as a stream's message."""
    frame = wire.Request.FromString(raw).frame
    frame.MergeFrom(wire.Frame(**fields))
    return wire.ToServer(frame=frame).SerializeToString()


def streamed(raw: bytes) -> list[bytes]:
    """A unary request as a whole stream's messages."""
    greeting = wire.Request.FromString(raw).hello
    return [wire.ToServer(hello=greeting).SerializeToString(), framed(raw)]


def infer(channel: grpc.Channel, raw: bytes) -> wire.Answer:
    return wire.Answer.FromString(channel.unary_unary(INFER)(raw, timeout=60))


def stream(channel: grpc.Channel, messages: Iterable[bytes]) -> list[wire.ToEdge]:
    answers = channel.stream_stream(STREAM)(iter(messages), timeout=60)
    return [wire.ToEdge.FromString(raw) for raw in answers]


def zstd(data: bytes, flag: bytes = b"\1", **settings: object) -> bytes:
    """A payload of a zstd rung, compressed as it should not be."""
    settings = {"format": FORMAT, **settings}
    made = zstandard.ZstdCompressionParameters.from_level(1, **settings)
    return flag + zstandard.ZstdCompressor(compression_params=made).compress(data)


def deflated(data: bytes) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeezer.compress(data) + squeezer.flush()
