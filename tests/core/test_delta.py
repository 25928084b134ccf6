"""Differences of packed codes: exact both ways, and what a stranger may send instead."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from splitrt.core import delta
from splitrt.core.codec import Codec
from splitrt.errors import PacketError


def deflated(data: bytes) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeezer.compress(data) + squeezer.flush()


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("count", [1, 7, 64, 5000])
def test_a_difference_opens_to_the_very_codes(bits: int, count: int):
    random, codec = np.random.default_rng(0), Codec(bits, "zstd", [count])
    for _ in range(20):
        codes, earlier = random.integers(0, 2**bits, (2, count), np.uint8)
        packed, base = codec.pack(codes), codec.pack(earlier)
        try:
            assert delta.open(delta.encode(packed, base, bits), base, bits) == packed
        except PacketError as error:  # noise that deflate makes longer goes as a keyframe
            assert "at most" in str(error)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_lanes_wrap_by_themselves(bits: int):
    """Every pair of codes in the low lane leaves the lanes beside it alone."""
    codec = Codec(bits, "zstd", [8 // bits])
    for code in range(0, 2**bits, max(1, 2**bits // 16)):
        for earlier in range(0, 2**bits, max(1, 2**bits // 16)):
            codes, before = np.full((2, 8 // bits), 2**bits - 1, np.uint8)
            codes[0], before[0] = code, earlier
            difference = np.frombuffer(
                delta._subtracted(codec.pack(codes), codec.pack(before), bits), np.uint8
            )
            assert difference[0] == (code - earlier) % 2**bits


def test_golden_bytes():
    base = bytes(range(0x21, 0x29))
    assert delta.open(bytes.fromhex("63800200"), base, 4) == base  # eight zeros, by any deflate
    assert delta._subtracted(bytes([0x10]), bytes([0x01]), 4).hex() == "1f"
    assert delta._added(bytes([0x1F]), bytes([0x01]), 4).hex() == "10"


def test_a_frame_like_the_last_costs_a_few_bytes():
    base = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    assert len(delta.encode(base, base, 4)) < 200


BASE = bytes(range(256)) * 2
GOOD = delta.encode(BASE[:100] + b"x" + BASE[101:], BASE, 8)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff" * 20,
        deflated(bytes(511)),
        deflated(bytes(513)),
        deflated(bytes(50_000_000))[:512],
        deflated(bytes(300_000)),
        GOOD + b"x",
        GOOD + GOOD,
        bytes(513),
    ],
    ids=["empty", "garbage", "short", "long", "bomb", "claims", "trailing", "second", "large"],
)
def test_a_difference_cannot_be_of_another_length(payload: bytes):
    with pytest.raises(PacketError):
        delta.open(payload, BASE, 8)


def test_every_truncation_is_refused_and_every_flipped_bit_gives_the_right_length():
    for end in range(len(GOOD)):
        with pytest.raises(PacketError):
            delta.open(GOOD[:end], BASE, 8)
    for bit in range(8 * len(GOOD)):
        flipped = bytearray(GOOD)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert len(delta.open(bytes(flipped), BASE, 8)) == len(BASE)
        except PacketError:
            continue


def test_a_base_of_another_length_is_refused():
    with pytest.raises(PacketError, match="against a base"):
        delta.encode(b"abc", b"ab", 8)
