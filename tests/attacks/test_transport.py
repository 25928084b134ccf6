"""What goes on below the messages: silence, floods, other protocols, too many connections."""

from __future__ import annotations

import re
import resource

import grpc
import pytest

from splitrt.cloud import Server, server
from tests.attacks import frames, http2
from tests.attacks.http2 import PREFACE, frame
from tests.attacks.unharmed import GROWTH, discreet, told, unharmed

CONNECTIONS = 2000
HEADER_BUFFER = 256 << 20  # bytes that gRPC may keep of eight header blocks of 54 MB

HELLO = PREFACE + frame(http2.SETTINGS)
SILENT = {
    "connect": b"",
    "half a preface": PREFACE[:7],
    "preface": PREFACE,
    "settings": HELLO,
    "unary headers": HELLO + http2.call(1, frames.INFER),
    "stream headers": HELLO + http2.call(1, frames.STREAM),
    "half a message": HELLO + http2.call(1, frames.INFER) + frame(0, 0, 1, b"\0\0\0\0\x20half"),
    "half a prefix": HELLO + http2.call(1, frames.STREAM) + frame(0, 0, 1, b"\0\0"),
    "length 0xFFFFFFFF": HELLO
    + http2.call(1, frames.INFER)
    + http2.message(1, b"x", length=2**32 - 1),
    "half a frame": HELLO + http2.call(1, frames.INFER)[:15],
    "a frame of 16 MiB": HELLO + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(1000),
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/1.1 upgrade": b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "noise": PREFACE + b"\xff" * 100,
    "zeros": bytes(1000),
    "SSH": b"SSH-2.0-x\r\n",
}


@pytest.mark.parametrize("kind", SILENT)
def test_who_begins_and_says_no_more_harms_nobody(victim, kind):
    with unharmed(victim):
        lines = [http2.opened(victim.address, SILENT[kind]) for _ in range(200)]
        assert len(victim.known_good()) == 2
        said, _ = http2.heard(lines[0], 0.3)
        assert discreet(_words(said))
        http2.hung_up(*lines)


@pytest.mark.parametrize("kind", ["connect", "half a preface", "preface"])
def test_who_does_not_finish_the_preface_is_left(model_dir, monkeypatch, kind):
    monkeypatch.setattr(server, "HANDSHAKE", 0.5)
    with Server(model_dir, port=0, threads=1) as running:
        line = http2.opened(running.address, SILENT[kind])
        assert http2.heard(line, 60)[1]
        http2.hung_up(line)


def test_a_connection_without_a_call_is_left(model_dir, monkeypatch):
    monkeypatch.setattr(server, "IDLE", 0.5)
    with Server(model_dir, port=0, threads=1) as running:
        line = http2.opened(running.address, HELLO)
        assert http2.heard(line, 60)[1]
        http2.hung_up(line)


def test_a_stream_that_is_never_written_ends_after_the_handshakes_time(model_dir, monkeypatch):
    monkeypatch.setattr(server, "HANDSHAKE", 0.5)
    with Server(model_dir, port=0, threads=1) as running:
        line = http2.greeted(running.address)
        http2.sent(line, http2.call(1, frames.STREAM))
        told_ = b""
        while b"first message is not a Hello" not in told_:
            said, over = http2.heard(line, 0.5)
            told_ += said
            assert not over
        assert dict(running.tally) == {"INVALID_ARGUMENT": 1}
        http2.hung_up(line)


BLOCK = http2.block(frames.INFER)
FLOODS = {
    "PING": (b"", frame(http2.PING, payload=bytes(8))),
    "SETTINGS": (b"", frame(http2.SETTINGS)),
    "changing SETTINGS": (b"", http2.setting(4, 1) + http2.setting(4, 2**31 - 1)),
    "WINDOW_UPDATE": (http2.call(1, frames.INFER), frame(http2.WINDOW, 0, 0, b"\0\0\0\1")),
    "PRIORITY": (b"", frame(2, 0, 1, bytes(5))),
    "unknown": (b"", frame(0x77, 0, 0, bytes(5))),
    "GOAWAY": (b"", frame(http2.GOAWAY, 0, 0, bytes(8))),
    "empty DATA": (http2.call(1, frames.INFER), frame(http2.DATA, 0, 1)),
    "empty CONTINUATION": (frame(http2.HEADERS, 0, 1, BLOCK), frame(http2.CONTINUATION, 0, 1)),
    "RST_STREAM of nothing": (b"", frame(http2.RESET, 0, 1, bytes(4))),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_frames_is_outlived(victim, kind):
    """200,000 of each; the server may hang up."""
    start, piece = FLOODS[kind]
    with unharmed(victim):
        line = http2.greeted(victim.address)
        http2.sent(line, start)
        for _ in range(200):
            line.settimeout(0.2)  # it need not read all that is sent
            if not http2.sent(line, piece * 1000):
                break
        assert len(victim.known_good()) == 2
        http2.hung_up(line)


def test_calls_that_are_reset_at_once_are_forgotten(victim):
    """CVE-2023-44487: 20,000 calls on one connection, each reset in the next frame."""
    with unharmed(victim):
        line = http2.greeted(victim.address)
        for number in range(20_000):
            stream = 2 * number + 1
            reset = frame(http2.RESET, 0, stream, b"\0\0\0\x08")
            if not http2.sent(line, http2.call(stream, frames.INFER) + reset):
                break
        assert len(victim.known_good()) == 2
        http2.hung_up(line)


def test_a_header_block_without_an_end_is_kept_within_bounds(victim):
    """gRPC reads on over its limit, and each of its threads keeps what one such block took.

    Measured: 223 MiB after ten blocks of 54 MB, and no more after sixty.
    """
    for _ in range(4):
        _endless(victim)
    with unharmed(victim, growth=HEADER_BUFFER):
        for _ in range(8):
            _endless(victim)


def _endless(victim):
    line = http2.greeted(victim.address)
    http2.sent(line, frame(http2.HEADERS, 0, 1, BLOCK))
    for _ in range(3000):
        if not http2.sent(line, frame(http2.CONTINUATION, 0, 1, b"\0\1a\1b" * 3000)):
            break
    assert len(victim.known_good()) == 2
    http2.hung_up(line)


def test_metadata_over_the_limit_end_their_call(victim):
    raw = frames.good(victim.manifest)
    with unharmed(victim):
        for size in (100_000, 1_000_000):
            for _ in range(20):
                with pytest.raises(grpc.RpcError) as raised:
                    victim.channel.unary_unary(frames.INFER)(
                        raw, metadata=[("x", "y" * size)], timeout=60
                    )
                assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "Traceback" not in raised.value.details()


def test_a_message_that_grpc_unpacks_cannot_grow(victim):
    """1 kB of gzip that becomes 1 MB on the way."""
    with unharmed(victim, {}):
        with grpc.insecure_channel(victim.address, compression=grpc.Compression.Gzip) as other:
            for _ in range(20):
                name, words = told(other, bytes(1_000_000))
                assert name == "RESOURCE_EXHAUSTED" and discreet(words)


def test_half_sent_calls_do_not_use_up_the_server(victim):
    """A hundred on each of ten connections: all that a connection may have."""
    with unharmed(victim):
        lines = [http2.greeted(victim.address) for _ in range(10)]
        for line in lines:
            for number in range(100):
                stream = 2 * number + 1
                start = http2.call(stream, frames.INFER)
                http2.sent(line, start + http2.message(stream, b"half", length=100))
        assert len(victim.known_good()) == 2
        http2.hung_up(*lines)


def test_two_thousand_connections_leave_room_for_one_more(victim):
    """Fewer where the system allows fewer descriptors: a third of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(CONNECTIONS, hard // 3)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 3 * count)), hard))
    try:
        with unharmed(victim, {"OK": 2}, growth=GROWTH + count * (64 << 10)):
            lines = [http2.opened(victim.address, HELLO) for _ in range(count)]
            assert len(victim.known_good()) == 2
            http2.hung_up(*lines)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _words(said: bytes) -> str:
    """The readable stretches of what a server said on the wire; HTTP/2's own paths aside.

    From six characters on: a ping is eight random bytes.
    """
    words = "\n".join(one.decode() for one in re.findall(rb"[ -~]{6,}", said))
    return words.replace("application/grpc", "").replace("HTTP/1", "").replace("/", " ")
