"""What strangers send to a model of changing sizes; and that only equal sizes run together."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from splitrt.cloud.batch import Batcher
from splitrt.core.jpeg import ROOM
from splitrt.core.manifest import Manifest
from splitrt.core.packet import ENVELOPE, largest_side
from splitrt.core.side import Side, unpack
from splitrt.errors import PacketError
from splitrt.wire import tail_pb2 as wire
from tests.attacks import frames
from tests.attacks.frames import SIZE, elements, request, stored, zstd
from tests.attacks.unharmed import refused, refused_between_good_ones, told, unharmed
from tests.cloud.test_batch import FakeTail, job

RIGHT = np.array([480, 640], "<i8").tobytes()
MOST = 2**32 - 1
DICE = random.Random(5)


def framed(
    manifest: Manifest,
    *,
    size: tuple[int, ...] = SIZE,
    side: tuple[bytes, ...] = (RIGHT,),
    payload: bytes | None = None,
    plan: str = "q8",
) -> bytes:
    payload = stored(manifest) if payload is None else payload
    return request(manifest, payload, plan, size=size, side=side)


def nan(manifest: Manifest) -> bytes:
    return np.full(elements(manifest), np.nan, "<f4").tobytes()


KINDS: dict[str, Callable[[Manifest], bytes]] = {
    "no size": lambda m: framed(m, size=()),
    "one number": lambda m: framed(m, size=(96,)),
    "three numbers": lambda m: framed(m, size=(96, 160, 3)),
    "a thousand numbers": lambda m: framed(m, size=(3,) * 1000),
    "a smaller one's payload": lambda m: framed(m, size=(160, 160)),
    "a larger one's payload": lambda m: framed(m, size=(64, 64)),
    "the largest": lambda m: framed(m, size=(160, 192)),
    "zero": lambda m: framed(m, size=(0, 0)),
    "too low": lambda m: framed(m, size=(32, 160)),
    "too wide": lambda m: framed(m, size=(96, 224)),
    "between steps": lambda m: framed(m, size=(97, 160)),
    "any width": lambda m: framed(m, size=(96, DICE.randrange(193, MOST))),
    "huge": lambda m: framed(m, size=(MOST, MOST)),
    "no side data": lambda m: framed(m, side=()),
    "twice the side data": lambda m: framed(m, side=(RIGHT, RIGHT)),
    "side data one byte short": lambda m: framed(m, side=(RIGHT[:-1],)),
    "side data one byte long": lambda m: framed(m, side=(RIGHT + b"\0",)),
    "side data of floats": lambda m: framed(m, side=(np.array([1, np.nan], "<f4").tobytes(),)),
    "900 empty side tensors": lambda m: framed(m, side=(b"",) * 900),
    "one byte short": lambda m: framed(m, payload=stored(m)[:-1]),
    "one number more": lambda m: framed(m, payload=zstd(bytes(elements(m) + 1))),
    "bomb": lambda m: framed(m, payload=zstd(bytes(50_000_000))[:900]),
    "noise": lambda m: framed(m, payload=b"\1" + DICE.randbytes(DICE.randrange(1, 300))),
    "another rung": lambda m: framed(m, plan="f32"),
    "NaN": lambda m: framed(m, plan="f32", payload=nan(m)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_lie_is_invalid_and_the_next_good_frame_is_bit_for_bit_as_before(
    detector_victim, kind
):
    raw = KINDS[kind](detector_victim.manifest)
    refused(detector_victim, raw)
    refused_between_good_ones(detector_victim, raw)


def test_a_message_over_the_largest_is_not_even_read(detector_victim):
    manifest = detector_victim.manifest
    picture = math.prod(manifest.input.shape) + ROOM  # as JPEG
    largest = max(4 * manifest.widths[0].elements, picture)
    largest += largest_side(manifest) + ENVELOPE
    largest = max(largest, min(4 << 20, 8 * largest))  # several rows of a stock client's
    raw = framed(manifest, plan="f32", payload=bytes(largest))
    with unharmed(detector_victim, {}):
        assert told(detector_victim.channel, raw)[0] == "RESOURCE_EXHAUSTED"


def test_a_model_of_one_size_takes_neither_size_nor_side_data(victim):
    manifest = victim.manifest
    for more in ({"size": (32, 32)}, {"side": (b"ab",)}):
        refused(victim, request(manifest, stored(manifest), **more))
    assert told(victim.channel, frames.good(manifest))[0] == "OK"


def test_frames_of_a_nan_side_are_refused_where_side_data_are_floats():
    with pytest.raises(PacketError, match="NaN"):
        unpack([Side(name="s", shape=[2])], [np.array([1, np.nan], "<f4").tobytes()])


def test_only_frames_of_one_size_run_together():
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
