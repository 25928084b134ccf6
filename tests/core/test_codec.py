"""Codes to bytes and back: golden bytes, and whatever a stranger may send instead."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import zstandard

from splitrt.core.codec import FORMAT, Codec
from splitrt.errors import PacketError


def zstd(data: bytes, **settings: object) -> bytes:
    made = zstandard.ZstdCompressionParameters.from_level(1, format=FORMAT, **settings)
    return b"\x01" + zstandard.ZstdCompressor(compression_params=made).compress(data)


def test_the_low_nibble_comes_first():
    codes = np.array([1, 2, 3, 4, 5], np.uint8)
    assert Codec(4, "zstd", [5]).encode(codes) == bytes([0, 0x21, 0x43, 0x05])


def test_golden_bytes_of_every_packing():
    codes = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1], np.uint8)
    assert Codec(1, "zstd", [9]).encode(codes).hex() == "009601"
    assert Codec(2, "zstd", [5]).encode(np.array([0, 1, 2, 3, 1], np.uint8)).hex() == "00e401"
    assert Codec(8, "zstd", [3]).encode(np.array([7, 8, 255], np.uint8)).hex() == "000708ff"
    halves = Codec(16, "raw", [2]).encode(np.array([1.0, -2.0], np.float32))
    assert halves.hex() == "003c00c0"
    floats = Codec(32, "raw", [1]).encode(np.array([1.5], np.float32))
    assert floats.hex() == "0000c03f"


@pytest.mark.parametrize("coder", ["zstd", "deflate"])
@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("count", [1, 7, 64, 5000])
def test_what_was_encoded_opens_to_what_was_packed(bits: int, count: int, coder: str):
    codec = Codec(bits, coder, [count])
    codes = np.random.default_rng(0).integers(0, 2**bits, count, np.uint8) // 2
    assert codec.open(codec.encode(codes)) == codec.pack(codes)


def test_a_dictionary_makes_small_payloads_smaller():
    random = np.random.default_rng(0)
    maps = random.normal(7.5, 2, (500, 768)).round().clip(0, 15).astype(np.uint8)
    plain = Codec(4, "zstd", [768])
    trained = zstandard.train_dictionary(16 << 10, [plain.pack(m) for m in maps], level=1)
    known = Codec(4, "zstd", [768], dictionary=trained.as_bytes())
    assert len(known.encode(maps[0])) < 0.95 * len(plain.encode(maps[0]))
    assert known.open(known.encode(maps[0])) == plain.pack(maps[0])
    with pytest.raises(PacketError):
        plain.open(known.encode(maps[0]))


def test_half_floats_saturate_and_nan_is_refused():
    codec = Codec(16, "raw", [1])
    assert np.frombuffer(codec.encode(np.array([1e9], np.float32)), "<f2")[0] == 65504
    with pytest.raises(PacketError, match="NaN"):
        codec.encode(np.array([np.nan], np.float32))


CODEC = Codec(4, "zstd", [1000])  # 500 packed bytes
GOOD = CODEC.encode(np.zeros(1000, np.uint8))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x02" + b"\0" * 500,
        b"\x00" + b"\0" * 499,
        b"\x00" + b"\0" * 501,
        b"\x01",
        zstd(b"\0" * 499),
        zstd(b"\0" * 501),
        zstd(b"\0" * 500, write_content_size=False),
        GOOD + b"x",
        GOOD + GOOD[1:],
        zstd(b"\0" * 50_000_000),
        b"\x01" + bytes.fromhex("e0") + (2**40).to_bytes(8, "little") + b"\0" * 20,
        b"\x01" + bytes.fromhex("e0") + (2**63 - 1).to_bytes(8, "little") + b"\0" * 20,
    ],
    ids=[
        "empty",
        "unknown-flag",
        "one-short",
        "one-long",
        "no-body",
        "states-less",
        "states-more",
        "states-nothing",
        "trailing-garbage",
        "second-frame",
        "bomb",
        "forged-1TiB",
        "forged-2^63",
    ],
)
def test_a_small_payload_cannot_claim_to_be_something_else(payload: bytes):
    with pytest.raises(PacketError):
        CODEC.open(payload)


def test_every_truncation_is_refused():
    for end in range(len(GOOD)):
        with pytest.raises(PacketError):
            CODEC.open(GOOD[:end])


def test_every_flipped_bit_gives_the_right_length_or_an_error():
    random = np.random.default_rng(1)
    good = CODEC.encode((random.integers(0, 16, 1000) ** 2 // 15).astype(np.uint8))
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert len(CODEC.open(bytes(flipped))) == 500
        except PacketError:
            continue


def test_a_deflate_payload_cannot_grow():
    codec = Codec(4, "deflate", [1000])
    good = codec.encode(np.zeros(1000, np.uint8))
    assert len(good) < 20 and codec.open(good) == b"\0" * 500
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    for body in (
        bomb.compress(b"\0" * 50_000_000) + bomb.flush(),
        good[1:] + b"x",
        good[1:-1],
        b"",
        b"\xff" * 50,
    ):
        with pytest.raises(PacketError):
            codec.open(b"\x01" + body[:499])


def test_padding_bits_must_be_zero():
    codec = Codec(4, "zstd", [3])
    with pytest.raises(PacketError, match="padding"):
        codec.open(b"\x00\x21\xf3")


def test_the_wrong_number_of_codes_is_refused_before_it_is_sent():
    with pytest.raises(PacketError, match="999"):
        CODEC.encode(np.zeros(999, np.uint8))
