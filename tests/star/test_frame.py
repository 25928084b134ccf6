"""What comes over a star's line is exactly what was asked for, or an error."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitrt import LinkDown, PacketError
from splitrt.star.frame import HEAD, Line, Message

BODY = bytes(range(24))
WHOLE = HEAD.pack(b"PART", len(BODY), 7) + BODY


class Ends:
    """Two ends of a TCP connection on loopback: raw, and as a line."""

    def __init__(self, timeout: float = 20.0) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.raw = socket.create_connection(listener.getsockname())
            self.line = Line(listener.accept()[0], "device 1", timeout)
        self.message = Message(64)

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()
        self.line.close()

    def heard(self, said: bytes, *, number: int = 7, length: int = len(BODY)) -> bytes:
        """What the line makes of that, and nothing after it."""
        self.raw.sendall(said)
        self.raw.shutdown(socket.SHUT_WR)
        self.line.receive(self.message, b"PART", number, length)
        return self.message.body[:length].tobytes()


@pytest.fixture
def ends() -> Iterator[Ends]:
    with Ends() as both:
        yield both


def test_a_message_arrives_whole(ends):
    assert ends.heard(WHOLE) == BODY


@pytest.mark.parametrize("count", range(len(WHOLE)))
def test_a_message_cut_at_any_byte_is_an_error(ends, count):
    with pytest.raises(LinkDown, match="device 1 closed the line"):
        ends.heard(WHOLE[:count])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (HEAD.pack(b"SUMS", 24, 7) + BODY, "sends sums 7, part 7 was wanted"),
        (HEAD.pack(b"PART", 24, 6) + BODY, "sends part 6, part 7 was wanted"),
        (HEAD.pack(b"PART", 24, 8) + BODY, "sends part 8, part 7 was wanted"),
        (HEAD.pack(b"PART", 23, 7) + BODY, "23 bytes as part 7, 24 were wanted"),
        (HEAD.pack(b"PART", 25, 7) + BODY, "25 bytes as part 7, 24 were wanted"),
        (HEAD.pack(b"PART", 0, 7), "0 bytes as part 7, 24 were wanted"),
        (HEAD.pack(b"PART", 2**32 - 1, 7), "4294967295 bytes as part 7"),
        (b"GET / HTTP/1.1\r\n\r\n", "b'GET '"),
    ],
)
def test_another_message_is_told_apart_by_its_head_alone(ends, said, words):
    with pytest.raises(PacketError, match=words):
        ends.heard(said)


def test_bytes_after_a_message_are_no_part_of_it(ends):
    assert ends.heard(WHOLE + b"more that is no message") == BODY
    with pytest.raises(PacketError, match="device 1 sends"):
        ends.line.receive(ends.message, b"PART", 8, 24)


def test_what_is_announced_too_long_takes_no_memory(ends):
    ends.raw.sendall(HEAD.pack(b"CAST", 65, 0))
    with pytest.raises(PacketError, match="announces 65 bytes for cast 0, 64 at most"):
        ends.line.hear(ends.message, (b"CAST",), 0)


def test_a_part_that_stops_coming_is_an_error_within_the_timeout():
    with Ends(timeout=0.2) as ends:
        ends.raw.sendall(WHOLE[:20])
        with pytest.raises(LinkDown, match=r"device 1 sent nothing whole for 0\.2 s"):
            ends.line.receive(ends.message, b"PART", 7, 24)


def test_who_takes_nothing_is_named():
    with Ends(timeout=0.2) as ends:
        large = Message(32 << 20)
        with pytest.raises(LinkDown, match="device 1 took nothing"):
            ends.line.send(large.sealed(b"PART", 1, 32 << 20))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    tag=st.sampled_from([b"PART", b"SUMS", b"\0\xff\0\n"]) | st.binary(min_size=4, max_size=4),
    length=st.integers(20, 28) | st.integers(0, 2**32 - 1),
    number=st.integers(6, 8) | st.integers(0, 2**64 - 1),
    body=st.binary(min_size=20, max_size=28),
)
def test_any_head_is_the_right_one_or_an_error(tag, length, number, body):
    right = (tag, length, number) == (b"PART", 24, 7) and len(body) >= 24
    with Ends() as ends:
        try:
            heard = ends.heard(HEAD.pack(tag, length, number) + body)
        except (PacketError, LinkDown):
            assert not right
        else:
            assert right and heard == body[:24]


@settings(max_examples=50, deadline=None)
@given(body=st.binary(max_size=64), number=st.integers(0, 2**64 - 1), cut=st.integers(1, 80))
def test_what_is_sent_in_any_pieces_arrives(body, number, cut):
    with Ends() as ends:
        message = Message(64)
        message.body[: len(body)] = list(body)
        sealed = bytes(message.sealed(b"PART", number, len(body)))
        ends.raw.sendall(sealed[:cut])
        ends.raw.sendall(sealed[cut:])
        ends.line.receive(ends.message, b"PART", number, len(body))
        assert ends.message.body[: len(body)].tobytes() == body
