"""What the server keeps for differences, and that strangers gain nothing by them."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from splitrt.cloud import Server
from splitrt.cloud.kept import ROOM, STREAM_ROOM, Kept, Shelf
from splitrt.core import delta, packet
from splitrt.core.delta import KEPT
from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire

STREAM, INFER = "/splitrt.wire.Tail/Stream", "/splitrt.wire.Tail/Infer"


def test_a_stream_keeps_its_last_frames_and_no_more():
    kept = Kept(3)
    for seq in (1, 2, 3, 3, 4, 5):
        kept.keep(seq, "q4", bytes([seq]))
    assert [kept.base(seq, "q4") for seq in range(1, 7)] == [
        None, None, b"\x03", b"\x04", b"\x05", None,
    ]  # fmt: skip
    assert kept.base(5, "q8") is None


def test_what_all_streams_keep_is_bounded():
    small, large = Shelf(384), Shelf(1 << 20)
    assert (small.bases, large.bases) == (KEPT, STREAM_ROOM >> 20)
    taken = [large.take() for _ in range(1000)]
    given = [kept for kept in taken if kept is not None]
    assert len(given) * large.bases << 20 <= ROOM
    for kept in taken:
        large.put_back(kept)
    assert large.take() is not None
    assert Shelf(STREAM_ROOM + 1).take() is None  # one frame alone is too large
    assert Shelf(0).take() is None  # no integer rung


class Line:
    """A device's stream, frame by frame, on bare gRPC."""

    def __init__(self, address: str, manifest: Manifest, *, temporal: bool = True) -> None:
        self.manifest, self.channel = manifest, grpc.insecure_channel(address)
        self.size = manifest.widths[-1].elements  # packed q8
        hello = wire.ToServer(hello=packet.hello(manifest, temporal=temporal))
        self.todo: list[bytes] = [hello.SerializeToString()]
        self.answers = self.channel.stream_stream(STREAM)(self._messages(), timeout=60)
        self.welcome = wire.ToEdge.FromString(next(self.answers)).welcome

    def _messages(self) -> Iterator[bytes]:
        import time

        while True:
            if self.todo:
                yield self.todo.pop(0)
            else:
                time.sleep(0.001)

    def put(self, seq: int, payload: bytes, base: int = 0, rung: str = "q8") -> None:
        place = [plan.name for plan in self.manifest.plans].index(rung)
        frame = packet.frame(seq, place, payload, None, base=base)
        self.todo.append(frame.SerializeToString())

    def answer(self) -> wire.Answer:
        return wire.ToEdge.FromString(next(self.answers)).answer

    def frame(self, seq: int, payload: bytes, base: int = 0, rung: str = "q8") -> wire.Answer:
        self.put(seq, payload, base, rung)
        return self.answer()

    def key(self, seq: int, packed: bytes | None = None) -> wire.Answer:
        return self.frame(seq, b"\0" + (bytes(self.size) if packed is None else packed))

    def close(self) -> None:
        self.answers.cancel()
        self.channel.close()


@pytest.fixture
def manifest(model_dir) -> Manifest:
    return Manifest.load(model_dir)


@pytest.fixture
def line(server: Server, manifest: Manifest) -> Iterator[Line]:
    opened = Line(server.address, manifest)
    yield opened
    opened.close()


def test_a_difference_is_answered_as_its_keyframe_bit_for_bit(line):
    random = np.random.default_rng(0)
    packed = random.integers(0, 256, line.size, np.uint8)
    line.key(1, packed.tobytes())
    for seq in range(3, 40, 2):
        previous, packed = packed, packed.copy()
        packed[random.integers(0, line.size, 5)] = random.integers(0, 256, 5)
        payload = delta.encode(packed.tobytes(), previous.tobytes(), 8)
        changed = line.frame(seq, payload, seq - 2)  # a difference may be a base itself
        assert changed.status == wire.OK
        assert changed.outputs == line.key(seq + 1, packed.tobytes()).outputs


def test_a_difference_whose_base_is_not_kept_needs_a_keyframe(line, server, manifest):
    same = delta.encode(bytes(line.size), bytes(line.size), 8)
    assert line.welcome.bases == KEPT
    assert line.frame(1, same, 1).status == wire.NEED_KEY  # nothing sent yet
    good = line.key(5)
    assert good.status == wire.OK
    assert line.frame(6, same, 5).outputs == good.outputs
    for base in (1, 4, 7, 2**32 - 1):  # refused before, never sent, to come
        answer = line.frame(7, same, base)
        assert answer.status == wire.NEED_KEY and str(base) in answer.detail
        assert not answer.outputs
    other = Line(server.address, manifest)
    assert other.frame(6, same, 5).status == wire.NEED_KEY  # another stream's
    other.close()
    for seq in range(10, 10 + KEPT):
        line.key(seq)
    assert line.frame(30, same, 5).status == wire.NEED_KEY  # forgotten
    assert line.frame(31, same, 10).outputs == good.outputs


def test_another_rungs_base_does_not_serve(line, manifest):
    line.key(1)
    same = delta.encode(bytes(manifest.widths[-1].elements), bytes(manifest.widths[-1].elements), 8)
    assert line.frame(2, same, 1, "q4").status == wire.NEED_KEY
    answer = line.frame(3, same, 1, "f32")
    assert answer.status == wire.INVALID and "no frames are kept" in answer.detail


def test_a_frame_that_was_not_answered_is_no_base(line):
    assert line.key(1, bytes(line.size - 1)).status == wire.INVALID
    same = delta.encode(bytes(line.size), bytes(line.size), 8)
    assert line.frame(2, same, 1).status == wire.NEED_KEY


def test_a_difference_of_a_wrong_length_is_invalid(line):
    good = line.key(1)
    dice = random.Random(1)
    for payload in (b"", dice.randbytes(50), b"\0" * (line.size + 1), b"\0" * line.size):
        assert line.frame(2, payload, 1).status == wire.INVALID
    assert line.key(3).outputs == good.outputs


def test_without_having_asked_nothing_is_kept(server, manifest):
    line = Line(server.address, manifest, temporal=False)
    assert line.welcome.bases == 0
    good = line.key(1)
    answer = line.frame(2, delta.encode(bytes(line.size), bytes(line.size), 8), 1)
    assert answer.status == wire.INVALID and "no frames are kept" in answer.detail
    assert line.key(3).outputs == good.outputs
    line.close()


def test_a_unary_frame_is_no_difference(server, manifest):
    size = manifest.widths[-1].elements
    place = [plan.name for plan in manifest.plans].index("q8")
    frame = packet.frame(2, place, delta.encode(bytes(size), bytes(size), 8), None, base=1).frame
    request = wire.Request(hello=packet.hello(manifest, temporal=True), frame=frame)
    with grpc.insecure_channel(server.address) as channel:
        raw = channel.unary_unary(INFER)(request.SerializeToString(), timeout=20)
    answer = wire.Answer.FromString(raw)
    assert answer.status == wire.INVALID and "/" not in answer.detail


def test_a_thousand_differences_of_strangers_leave_memory_and_answers_as_they_were(line):
    good, dice = line.key(1), random.Random(4)
    same = delta.encode(bytes(line.size), bytes(line.size), 8)

    def storm() -> None:
        for number in range(500):
            payload = same if number % 2 else dice.randbytes(dice.randrange(1, line.size))
            line.frame(dice.randrange(1, 2**32), payload, dice.randrange(1, 2**32))
            line.key(dice.randrange(1, 2**32))

    storm()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    storm()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 2 << 20
    assert line.key(1).outputs == good.outputs


def test_streams_that_end_give_their_room_back(server, manifest):
    import time

    free = server._front.shelf.free
    lines = [Line(server.address, manifest) for _ in range(20)]
    assert server._front.shelf.free == free - 20
    for one in lines:
        one.close()
    until = time.monotonic() + 10
    while server._front.shelf.free < free and time.monotonic() < until:
        time.sleep(0.02)
    assert server._front.shelf.free == free
