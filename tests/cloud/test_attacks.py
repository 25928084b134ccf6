"""What strangers send: the server answers an error and serves on, bit for bit as before."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
import zstandard

from splitrt.cloud import Server
from splitrt.core import packet
from splitrt.core.codec import FORMAT
from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire

STREAM, INFER = "/splitrt.wire.Tail/Stream", "/splitrt.wire.Tail/Infer"
MESSAGES = 1000


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def request(manifest: Manifest, payload: bytes, name: str = "q8", **fields: int) -> bytes:
    place = [one.name for one in manifest.plans].index(name)
    fields = {"seq": 1, "plan": place, **fields}
    frame = wire.Frame(payload=payload, **fields)
    return wire.Request(hello=packet.hello(manifest), frame=frame).SerializeToString()


def infer(channel: grpc.Channel, raw: bytes) -> wire.Answer:
    return wire.Answer.FromString(channel.unary_unary(INFER)(raw, timeout=20))


def stream(channel: grpc.Channel, messages: list[bytes]) -> list[wire.ToEdge]:
    answers = channel.stream_stream(STREAM)(iter(messages), timeout=20)
    return [wire.ToEdge.FromString(raw) for raw in answers]


def good_payload(manifest: Manifest) -> bytes:
    return b"\x00" + bytes(manifest.widths[-1].elements)


def known_good(channel: grpc.Channel, manifest: Manifest) -> list[bytes]:
    """The answers' bytes of a unary and of a streamed frame."""
    raw = request(manifest, good_payload(manifest))
    unary = infer(channel, raw)
    hello = wire.ToServer(hello=packet.hello(manifest)).SerializeToString()
    frame = wire.ToServer(frame=wire.Request.FromString(raw).frame).SerializeToString()
    welcome, answer = stream(channel, [hello, frame])
    assert welcome.HasField("welcome")
    assert unary.status == answer.answer.status == wire.OK
    return [unary.outputs[0].data, answer.answer.outputs[0].data]


def bomb(manifest: Manifest, size: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, format=FORMAT)
    return b"\x01" + zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(size))


def payloads(manifest: Manifest, dice: random.Random) -> list[Callable[[], bytes]]:
    """Kinds of requests that are wrong, each made anew when called."""
    good, size = good_payload(manifest), manifest.widths[-1].elements

    def framed(payload: bytes, **fields: int) -> bytes:
        return request(manifest, payload, **fields)

    def floats(plan: str, value: float, kind: str) -> bytes:
        array = np.zeros(manifest.widths[-1].elements, kind)
        array[dice.randrange(manifest.widths[-1].elements)] = value
        return request(manifest, array.tobytes(), plan)

    return [
        lambda: framed(b""),
        lambda: framed(good[:-1]),
        lambda: framed(good + b"\0"),
        lambda: framed(bytes([dice.randrange(2, 256)]) + good[1:]),
        lambda: framed(good[: dice.randrange(len(good))]),
        lambda: framed(b"\x01" + dice.randbytes(dice.randrange(1, size))),
        lambda: framed(bomb(manifest, 50_000_000)[: size + 1]),
        lambda: framed(bomb(manifest, size)[:-1]),
        lambda: framed(bomb(manifest, size) + b"more"),
        lambda: framed(b"\x01\xe0" + struct.pack("<Q", 2 ** dice.randrange(32, 63)) + b"\0" * 9),
        lambda: framed(good, plan=dice.randrange(4, 2**32)),
        lambda: request(manifest, good, "exit"),
        lambda: floats("f32", np.nan, "<f4"),
        lambda: floats("f32", -np.inf, "<f4"),
        lambda: floats("f16", np.inf, "<f2"),
        lambda: request(manifest, b"\0" * 3, "f32"),
    ]


def envelopes(manifest: Manifest, dice: random.Random) -> list[Callable[[], bytes]]:
    """Bytes that are no request, or one for another model."""
    other = wire.Hello(protocol=1, model="x", manifest=dice.randbytes(32))
    old = wire.Hello(protocol=99, model=manifest.name, manifest=manifest.digest)
    frame = wire.Frame(seq=1, plan=0, payload=good_payload(manifest))
    return [
        lambda: dice.randbytes(dice.randrange(1, 300)),
        lambda: b"",
        lambda: wire.Request(frame=frame).SerializeToString(),
        lambda: wire.Request(hello=packet.hello(manifest)).SerializeToString(),
        lambda: wire.Request(hello=other, frame=frame).SerializeToString(),
        lambda: wire.Request(hello=old, frame=frame).SerializeToString(),
        lambda: request(manifest, good_payload(manifest))[: dice.randrange(1, 60)],
        lambda: b"\x0a\xff\xff\xff\xff\x0f" + dice.randbytes(20),
        lambda: b"\x0a\x00" * 2000,
        lambda: b"\x12\x04\x12\x02\xff\xfe",
        lambda: request(manifest, bytes(2_000_000)),
        lambda: b"\x0b" * 500,
    ]


def test_a_thousand_bad_messages_change_nothing(model_dir, channel):
    manifest, dice = Manifest.load(model_dir), random.Random(7)
    before = known_good(channel, manifest)
    makers = [*payloads(manifest, dice), *envelopes(manifest, dice)]
    for number in range(MESSAGES):
        raw = makers[number % len(makers)]()
        try:
            answer = infer(channel, raw)
        except grpc.RpcError as error:
            told = error.details()
            assert error.code() in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.FAILED_PRECONDITION,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            )
        else:
            told = answer.detail
            assert answer.status == wire.INVALID, number % len(makers)
        assert "Traceback" not in told and ".py" not in told and "/" not in told
    assert known_good(channel, manifest) == before


def test_bad_frames_in_a_stream_are_answered_one_by_one(model_dir, channel):
    manifest, dice = Manifest.load(model_dir), random.Random(3)
    hello = wire.ToServer(hello=packet.hello(manifest)).SerializeToString()
    bad = [wire.Request.FromString(make()).frame for make in payloads(manifest, dice)][:7]
    good = wire.Request.FromString(request(manifest, good_payload(manifest), seq=99)).frame
    messages = [wire.ToServer(frame=frame).SerializeToString() for frame in [*bad, good]]
    answers = [message.answer for message in stream(channel, [hello, *messages])[1:]]
    by_seq = {answer.seq: answer.status for answer in answers}
    assert len(answers) == len(messages)
    assert by_seq[99] == wire.OK
    assert by_seq[1] == wire.INVALID


@pytest.mark.parametrize(
    "first", [b"", b"\xff\xff", wire.ToServer(frame=wire.Frame(seq=1)).SerializeToString()]
)
def test_a_stream_begins_with_a_hello_or_ends(channel, first):
    with pytest.raises(grpc.RpcError) as raised:
        stream(channel, [first])
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_another_manifest_is_refused_in_the_handshake(channel):
    hello = wire.ToServer(hello=wire.Hello(protocol=1, model="small", manifest=b"\0" * 32))
    with pytest.raises(grpc.RpcError) as raised:
        stream(channel, [hello.SerializeToString()])
    assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_garbage_within_a_stream_ends_that_stream_alone(model_dir, channel):
    manifest = Manifest.load(model_dir)
    before = known_good(channel, manifest)
    hello = wire.ToServer(hello=packet.hello(manifest)).SerializeToString()
    with pytest.raises(grpc.RpcError) as raised:
        stream(channel, [hello, b"\xff\xff\xff"])
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert known_good(channel, manifest) == before


def test_a_deadline_that_is_over_is_expired_and_a_century_is_fine(model_dir, channel):
    manifest = Manifest.load(model_dir)
    payload = good_payload(manifest)
    assert infer(channel, request(manifest, payload, slack_us=1)).status == wire.EXPIRED
    assert infer(channel, request(manifest, payload, slack_us=2**32 - 1)).status == wire.OK


def test_too_many_at_once_are_busy_and_all_are_answered(model_dir, channel):
    manifest = Manifest.load(model_dir)
    hello = wire.ToServer(hello=packet.hello(manifest)).SerializeToString()
    frame = wire.Request.FromString(request(manifest, good_payload(manifest))).frame
    messages = []
    for seq in range(1, 301):
        frame.seq = seq
        messages.append(wire.ToServer(frame=frame).SerializeToString())
    answers = [message.answer for message in stream(channel, [hello, *messages])[1:]]
    assert sorted(answer.seq for answer in answers) == list(range(1, 301))
    assert {answer.status for answer in answers} <= {wire.OK, wire.BUSY}


def test_raw_bytes_and_silence_on_the_port_harm_nobody(model_dir, server, channel):
    manifest = Manifest.load(model_dir)
    before = known_good(channel, manifest)
    host, port = server.address.rsplit(":", 1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    lines = []
    for start in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        preface,
        preface + b"\xff" * 100,
        b"\x16\x03\x01",
    ):
        for _ in range(20):
            line = socket.create_connection((host, int(port)), 5)
            line.sendall(start)
            lines.append(line)
    assert known_good(channel, manifest) == before
    for line in lines:
        line.close()


def test_a_device_that_vanishes_leaves_no_thread(model_dir, server, channel):
    manifest = Manifest.load(model_dir)
    known_good(channel, manifest)
    before = threading.active_count()
    for _ in range(20):
        with grpc.insecure_channel(server.address) as other:
            hello = wire.ToServer(hello=packet.hello(manifest)).SerializeToString()
            frame = wire.Request.FromString(request(manifest, good_payload(manifest))).frame
            raw = [hello, *[wire.ToServer(frame=frame).SerializeToString()] * 5]
            other.stream_stream(STREAM)(iter(raw), timeout=5).cancel()
    assert known_good(channel, manifest)
    assert threading.active_count() <= before + 3
