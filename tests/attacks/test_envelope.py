"""Bytes that are no message, or one that protobuf should not have to read."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrt.core import packet
from splitrt.core.jpeg import ROOM
from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire
from tests.attacks import frames
from tests.attacks.frames import elements, request, stored
from tests.attacks.unharmed import (
    SECRET,
    TIMES,
    discreet,
    ended,
    refused,
    told,
    unharmed,
)

DICE = random.Random(13)
NO_REQUEST: dict[str, Callable[[Manifest], bytes]] = {
    "nothing": lambda m: b"",
    "noise": lambda m: b"\xff" + DICE.randbytes(DICE.randrange(1, 300)),
    "no hello": lambda m: wire.Request(frame=wire.Frame(seq=1)).SerializeToString(),
    "no frame": lambda m: wire.Request(hello=packet.hello(m)).SerializeToString(),
    "a request cut short": lambda m: request(m, stored(m))[: DICE.randrange(1, 60)],
    "a length beyond the end": lambda m: b"\x0a\xff\xff\xff\xff\x0f" + DICE.randbytes(20),
    "a negative length": lambda m: b"\x0a" + b"\xff" * 9 + b"\x01",
    "a thousand empty sub-messages": lambda m: b"\x0a\x00" * 1000,
    "deep groups": lambda m: b"\x0b" * 1000,
    "deep messages": lambda m: nested(1000),
    "an unended varint": lambda m: b"\x08" + b"\xff" * 1000,
    "field number 0": lambda m: b"\x02\x00",
    "bad UTF-8": lambda m: b"\x0a\x04\x12\x02\xff\xfe",
    "NUL": lambda m: bytes(1000),
    "HTTP": lambda m: b"GET / HTTP/1.1\r\n\r\n",
    "a pickle": lambda m: b"\x80\x04\x95\x00\x00\x00\x00",
}


def nested(depth: int) -> bytes:
    """Messages within messages in an unknown field, as deep as the limit allows."""
    raw = b""
    while len(raw) < depth:
        raw = b"\x7a" + varint(len(raw)) + raw
    return raw


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes((value & 127 | 128,)), value >> 7
    return out + bytes((value,))


def largest(manifest: Manifest) -> int:
    """Bytes that a message may have: eight rows of a stock client's."""
    picture = math.prod(manifest.input.shape) + ROOM  # as JPEG
    return 8 * (max(4 * elements(manifest), picture) + packet.ENVELOPE)


def sized(manifest: Manifest, size: int) -> bytes:
    """A request of exactly that many bytes, most of them payload."""
    raw = request(manifest, bytes(size), "f32")
    raw = request(manifest, bytes(2 * size - len(raw)), "f32")
    assert len(raw) == size
    return raw


@pytest.mark.parametrize("kind", NO_REQUEST)
def test_what_is_no_request_is_said_to_be_none(victim, kind):
    refused(victim, NO_REQUEST[kind](victim.manifest), "INVALID_ARGUMENT")


def test_a_message_of_the_largest_size_is_read_and_one_byte_more_is_not(victim):
    """gRPC itself turns it away, so no counter moves."""
    most = largest(victim.manifest)
    refused(victim, sized(victim.manifest, most))
    for size, times in ((most + 1, 20), (1 << 20, 10), (50 << 20, 1)):
        raw = sized(victim.manifest, size)
        with unharmed(victim, {}):
            for _ in range(times):
                name, words = told(victim.channel, raw)
                # gRPC's own words count bytes as "4097 vs. 4096"
                assert name == "RESOURCE_EXHAUSTED" and not SECRET.search(words), words


@pytest.mark.parametrize("model", ["\0", "../../etc/passwd", "%s%n", "x" * 1000, "\u202e", ""])
def test_a_name_is_only_a_name(victim, model):
    """The digest decides: what the device calls its model is not looked at, nor repeated."""
    message = wire.Request.FromString(frames.good(victim.manifest))
    message.hello.model = model
    with unharmed(victim, {"OK": TIMES}):
        for _ in range(TIMES):
            assert told(victim.channel, message.SerializeToString())[0] == "OK"


def test_a_name_of_a_mebibyte_is_not_read(victim):
    message = wire.Request.FromString(frames.good(victim.manifest))
    message.hello.model = "x" * (1 << 20)
    with unharmed(victim, {}):
        for _ in range(10):
            assert told(victim.channel, message.SerializeToString())[0] == "RESOURCE_EXHAUSTED"


FIRST = {
    "nothing": b"",
    "noise": b"\xff\xff",
    "a frame": wire.ToServer(frame=wire.Frame(seq=1)).SerializeToString(),
    "a ping": wire.ToServer(ping=wire.Ping(seq=1)).SerializeToString(),
    "an answer": wire.ToEdge(answer=wire.Answer(seq=1)).SerializeToString(),
    "an empty hello": wire.ToServer(hello=wire.Hello()).SerializeToString(),
}


@pytest.mark.parametrize("kind", FIRST)
def test_a_stream_begins_with_a_hello_or_ends(victim, kind):
    wanted = "FAILED_PRECONDITION" if kind == "an empty hello" else "INVALID_ARGUMENT"
    for times in (1, TIMES):
        with unharmed(victim, {wanted: times}):
            for _ in range(times):
                name, words = ended(victim.channel, [FIRST[kind]])
                assert name == wanted and discreet(words)


def test_a_stream_without_any_message_ends(victim):
    with unharmed(victim, {"INVALID_ARGUMENT": TIMES}):
        for _ in range(TIMES):
            assert ended(victim.channel, [])[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("later", [b"\xff\xff\xff", b"", "hello", "cut"])
def test_garbage_within_a_stream_ends_that_stream_alone(victim, later):
    hello = frames.hello(victim.manifest)
    good = frames.framed(frames.good(victim.manifest))
    later = {"hello": hello, "cut": good[:40]}.get(later, later)
    go = threading.Event()

    def patient() -> Iterator[bytes]:
        yield from (hello, good)
        go.wait(60)
        yield good

    other = victim.channel.stream_stream(frames.STREAM)(patient(), timeout=60)
    assert [wire.ToEdge.FromString(next(other)).HasField("welcome") for _ in "wa"] == [True, False]
    with unharmed(victim, {"INVALID_ARGUMENT": TIMES}):
        for _ in range(TIMES):
            name, words = ended(victim.channel, [hello, later])
            assert name == "INVALID_ARGUMENT" and discreet(words)
    go.set()
    (last,) = other
    assert wire.ToEdge.FromString(last).answer.status == wire.OK


FIELDS = st.tuples(
    st.integers(1, 20),
    st.one_of(
        st.integers(0, 2**64 - 1).map(lambda number: (0, varint(number))),
        st.binary(max_size=40).map(lambda raw: (2, varint(len(raw)) + raw)),
        st.binary(min_size=4, max_size=4).map(lambda raw: (5, raw)),
        st.binary(min_size=8, max_size=8).map(lambda raw: (1, raw)),
    ),
).map(lambda pair: varint(pair[0] << 3 | pair[1][0]) + pair[1][1])
MESSAGES = st.recursive(
    st.lists(FIELDS, max_size=6).map(b"".join),
    lambda inner: st.tuples(st.integers(1, 5), inner).map(
        lambda pair: varint(pair[0] << 3 | 2) + varint(len(pair[1])) + pair[1]
    ),
    max_leaves=8,
)


def test_random_messages_to_infer_are_refused_or_not_known(victim):
    with unharmed(victim):

        @settings(max_examples=1000, deadline=None, derandomize=True, database=None)
        @given(MESSAGES)
        def sent(raw: bytes) -> None:
            name, words = told(victim.channel, raw)
            assert name in ("INVALID_ARGUMENT", "FAILED_PRECONDITION") and discreet(words)

        sent()


def test_random_frames_in_a_right_stream_are_refused_one_by_one_or_end_it(victim):
    hello, good = frames.hello(victim.manifest), frames.framed(frames.good(victim.manifest))
    with unharmed(victim):

        @settings(max_examples=500, deadline=None, derandomize=True, database=None)
        @given(st.lists(MESSAGES.map(lambda raw: b"\x12" + varint(len(raw)) + raw), max_size=5))
        def sent(messages: list[bytes]) -> None:
            try:
                answers = frames.stream(victim.channel, [hello, good, *messages, good])
            except Exception as error:
                assert error.code().name == "INVALID_ARGUMENT" and discreet(error.details())
            else:
                assert len(answers) == 3 + len(messages)
                assert all(discreet(one.answer.detail) for one in answers)

        sent()
