"""The entropy coder: exact, as long as the information, and hard to fool."""

from __future__ import annotations

import numpy as np
import pytest

from splitrt.core.ans import BLOCK, TOTAL, Ans, Tables, entropy, tabled
from splitrt.core.codec import Codec
from splitrt.errors import ModelError, PacketError

THREE = np.array([0] * 7 + [1] + [2] * 7, np.uint8)


def maps(count: int, shape: tuple[int, ...], symbols: int = 15) -> np.ndarray:
    """Codes that are mostly the middle one, and alike where they are neighbours."""
    random = np.random.default_rng(3)
    shared = random.normal(size=(count, shape[0], *[1] * (len(shape) - 1)))
    values = symbols // 2 + 0.8 * shared + 0.5 * random.normal(size=(count, *shape))
    return values.round().clip(0, symbols - 1).astype(np.uint8)


@pytest.mark.parametrize("shape", [(16, 8, 8), (3, 1, 1), (5, 7), (20, 30, 31), (1, 64, 64)])
def test_every_frame_comes_back_and_is_as_long_as_its_information(shape):
    codes = maps(20, shape)
    tables = tabled(codes, THREE, 15)
    coder = Ans(tables, shape)
    for one, bits in zip(codes, entropy(codes, tables), strict=True):
        payload = coder.encode(one)
        assert np.array_equal(coder.decode(payload).reshape(shape), one)
        blocks = -(-one.size // BLOCK)
        assert len(payload) <= bits / 8 * 1.001 + 4 * blocks + 1
        assert len(payload) <= coder.limit


def test_golden_bytes():
    tables = Tables(np.full((1, 1, 1, 4), 1024, np.uint16), np.zeros(4, np.uint8))
    coder = Ans(tables, (1, 2, 4))
    assert coder.encode(np.array([0, 1, 2, 3, 3, 2, 1, 0], np.uint8)).hex() == "01906f"


def test_codes_that_were_never_seen_can_be_sent():
    tables = tabled(np.full((5, 2, 3, 3), 7, np.uint8), THREE, 15)
    strange = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) % 15
    coder = Ans(tables, (2, 3, 3))
    assert np.array_equal(coder.decode(coder.encode(strange)).reshape(2, 3, 3), strange)
    with pytest.raises(PacketError, match="tables end at 14"):
        coder.encode(strange + 1)


def test_neighbours_that_are_alike_cost_less():
    codes = maps(200, (8, 8, 8))
    alone = tabled(codes, np.zeros(15, np.uint8), 15)
    assert entropy(codes, tabled(codes, THREE, 15)).mean() < 0.9 * entropy(codes, alone).mean()


def test_truncated_lengthened_and_flipped_payloads_are_errors_or_other_codes():
    codes = maps(50, (8, 4, 4))
    codec = Codec(4, "ans", (8, 4, 4), tables=tabled(codes, THREE, 15))
    good = codec.encode(codes[0])
    wrong = [good[:end] for end in range(len(good))] + [good + b"\0", good + b"x", b"\0" * 9]
    wrong += [b"\xff" * codec.limit, b"\xff" * (codec.limit + 1)]
    for payload in wrong:
        with pytest.raises(PacketError):
            codec.open(payload)
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            opened = codec.open(bytes(flipped))
        except PacketError:
            continue
        assert len(opened) == codec.packed_size


def test_blocks_that_lie_about_their_length_are_refused():
    shape = (2, 64, 64)
    codes = maps(3, shape)
    coder = Ans(tabled(codes, THREE, 15), shape)
    good = coder.encode(codes[0])
    for wrong in (good[:-1], good + b"\1", b"\xff\xff" + good[2:], b"\0\0" + good[2:], b""):
        with pytest.raises(PacketError):
            coder.decode(wrong)


@pytest.mark.parametrize(
    "frequencies",
    [
        np.full((2, 3, 3, 15), TOTAL // 15, np.uint16),  # sums to less
        np.zeros((2, 3, 3, 15), np.uint16),
        np.full((2, 3, 2, 15), 1, np.uint16),
    ],
)
def test_wrong_tables_are_a_model_error(frequencies):
    with pytest.raises(ModelError):
        Tables(frequencies, THREE)
