"""What strangers send to a model of changing sizes; and that only equal sizes run together."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from splitrt.cloud import Server
from splitrt.cloud.batch import Batcher
from splitrt.core import packet
from splitrt.core.codec import codecs
from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire
from tests.cloud.test_attacks import bomb, infer, request
from tests.cloud.test_batch import FakeTail, job

ROUNDS = 12
SIZE = (96, 160)


@pytest.fixture(scope="module")
def manifest(detector_dir) -> Manifest:
    return Manifest.load(detector_dir)


@pytest.fixture(scope="module")
def channel(detector_dir) -> Iterator[grpc.Channel]:
    with Server(detector_dir, port=0, threads=1) as server:
        with grpc.insecure_channel(server.address) as opened:
            yield opened


def framed(
    manifest: Manifest,
    *,
    size: tuple[int, ...] = SIZE,
    side: tuple[bytes, ...] = (np.array([480, 640], "<i8").tobytes(),),
    payload: bytes | None = None,
    plan: str = "q8",
) -> bytes:
    if payload is None:
        payload = b"\0" + bytes(manifest.at(SIZE).widths[0].elements)
    message = wire.Request.FromString(request(manifest, payload, plan))
    message.frame.size.extend(size)
    message.frame.side.extend(side)
    return message.SerializeToString()


def known_good(channel: grpc.Channel, manifest: Manifest) -> list[bytes]:
    answer = infer(channel, framed(manifest))
    assert answer.status == wire.OK, answer.detail
    return [output.data for output in answer.outputs]


def wrong(manifest: Manifest, dice: random.Random) -> list[Callable[[], bytes]]:
    """Kinds of frames that are wrong, each made anew when called."""
    right, gain = np.array([480, 640], "<i8").tobytes(), np.array([1, np.nan], "<f4").tobytes()
    elements = manifest.at(SIZE).widths[0].elements
    anything = 2**32 - 1
    return [
        lambda: framed(manifest, size=()),
        lambda: framed(manifest, size=(96,)),
        lambda: framed(manifest, size=(96, 160, 3)),
        lambda: framed(manifest, size=(3,) * 1000),
        lambda: framed(manifest, size=(160, 160)),  # lies: the payload is a smaller one's
        lambda: framed(manifest, size=(64, 64)),
        lambda: framed(manifest, size=(160, 192)),
        lambda: framed(manifest, size=(0, 0)),
        lambda: framed(manifest, size=(32, 160)),
        lambda: framed(manifest, size=(96, 224)),
        lambda: framed(manifest, size=(97, 160)),
        lambda: framed(manifest, size=(96, dice.randrange(193, anything))),
        lambda: framed(manifest, size=(anything, anything)),
        lambda: framed(manifest, side=()),
        lambda: framed(manifest, side=(right, right)),
        lambda: framed(manifest, side=(right[:-1],)),
        lambda: framed(manifest, side=(right + b"\0",)),
        lambda: framed(manifest, side=(gain,)),
        lambda: framed(manifest, side=(b"",) * 900),
        lambda: framed(manifest, payload=b"\0" + bytes(elements - 1)),
        lambda: framed(manifest, payload=bomb(manifest, elements + 1)),
        lambda: framed(manifest, payload=bomb(manifest, 50_000_000)[:900]),
        lambda: framed(manifest, payload=b"\1" + dice.randbytes(dice.randrange(1, 300))),
        lambda: framed(manifest, plan="f32"),
        lambda: framed(manifest, plan="f32", payload=np.full(elements, np.nan, "<f4").tobytes()),
    ]


def test_every_lie_is_invalid_and_the_next_good_frame_is_bit_for_bit_as_before(channel, manifest):
    dice = random.Random(5)
    before = known_good(channel, manifest)
    for _ in range(ROUNDS):
        for number, make in enumerate(wrong(manifest, dice)):
            answer = infer(channel, make())
            assert answer.status == wire.INVALID, number
            assert answer.detail and not answer.outputs, number
            assert "Traceback" not in answer.detail and "/" not in answer.detail
    assert known_good(channel, manifest) == before


def test_a_message_over_the_largest_is_not_even_read(channel, manifest, detector_dir):
    before = known_good(channel, manifest)
    limits = [codec.limit for codec in codecs(detector_dir, manifest).values()]
    largest = max(limits) + packet.largest_side(manifest) + packet.ENVELOPE
    raw = framed(manifest, plan="f32", payload=bytes(largest))
    with pytest.raises(grpc.RpcError) as raised:
        infer(channel, raw)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert known_good(channel, manifest) == before


def test_a_model_of_one_size_takes_neither_size_nor_side_data(model_dir, server):
    manifest = Manifest.load(model_dir)
    codec = codecs(model_dir, manifest)["q4"]
    payload = codec.encode(np.zeros(manifest.cut.shape, np.uint8))
    with grpc.insecure_channel(server.address) as opened:
        for more in ({"size": (32, 32), "side": ()}, {"size": (), "side": (b"ab",)}):
            answer = infer(opened, framed(manifest, payload=payload, plan="q4", **more))
            assert answer.status == wire.INVALID
        answer = infer(opened, framed(manifest, payload=payload, plan="q4", size=(), side=()))
        assert answer.status == wire.OK


def test_frames_of_a_nan_side_are_refused_where_side_data_are_floats():
    from splitrt.core.side import Side, unpack
    from splitrt.errors import PacketError

    with pytest.raises(PacketError, match="NaN"):
        unpack([Side(name="s", shape=[2])], [np.array([1, np.nan], "<f4").tobytes()])


def test_only_frames_of_one_size_run_together():
    from dataclasses import replace

    tail, answers = FakeTail(), []
    batcher = Batcher(tail)
    batcher.submit(job(99, answers))  # holds the thread while the others queue up
    for seq in range(12):
        batcher.submit(replace(job(seq, answers), size=((64, 64), (96, 64), (64, 96))[seq % 3]))
    tail.go.set()
    batcher.close()
    assert sorted(answer.seq for answer in answers) == [*range(12), 99]
    assert all(answer.status == wire.OK for answer in answers)
    assert sorted(tail.sizes) in ([1, 4, 4, 4], [1, 1, 3, 4, 4], [1, 1, 1, 1, 3, 3, 3])
