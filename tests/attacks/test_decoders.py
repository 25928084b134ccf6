"""Every decoder, fuzzed: for all bytes a PacketError, or exactly the promised number of bytes."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrt.core import delta
from splitrt.core.ans import tabled
from splitrt.core.codec import Codec
from splitrt.core.side import Side, unpack
from splitrt.core.sizes import Growth, terms
from splitrt.errors import PacketError
from tests.attacks.frames import deflated, zstd

SHAPE = (4, 9, 9)  # 324 codes: no multiple of a byte's lanes once in a row
COUNT = 324
MEMORY = 1 << 20  # bytes that opening a payload of some hundred bytes may take
THREE = {bits: np.array([min(code, 2) for code in range(2**bits)], np.uint8) for bits in (8, 4, 2)}

fuzzed = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def maps(bits: int, count: int = 60) -> np.ndarray:
    """Codes as a head gives them: mostly the middle one. uint8 [count, *SHAPE]."""
    random = np.random.default_rng(bits)
    middle = 2**bits // 2
    spread = random.normal(middle, max(0.4, middle / 12), (count, *SHAPE))
    return spread.round().clip(0, 2**bits - 1).astype(np.uint8)


def made(name: str) -> Codec:
    """The codec of that name: its coder, its bits, its dictionary."""
    coder, bits = name.split("-")[:2]
    number, dictionary, tables = int(bits), None, None
    if "dictionary" in name:
        plain = Codec(number, "raw", SHAPE)
        packed = [plain.pack(one) for one in maps(number, 400)]
        dictionary = zstandard.train_dictionary(2 << 10, packed, level=1).as_bytes()
    if coder == "ans":
        tables = tabled(maps(number), THREE[number], 2**number)
    return Codec(number, coder, SHAPE, dictionary=dictionary, tables=tables)


NAMES = [
    "raw-32", "raw-16", "zstd-8", "zstd-8-dictionary", "zstd-4-dictionary", "zstd-4", "zstd-2",
    "zstd-1", "deflate-4", "deflate-1", "ans-4", "ans-2",
]  # fmt: skip
CODECS = {name: made(name) for name in NAMES}
INTEGERS = [name for name in NAMES if not name.startswith("raw")]


def opened(codec: Codec, payload: bytes) -> bytes | None:
    """What a payload opens to; None if it is refused."""
    try:
        packed = codec.open(payload)
    except PacketError as error:
        assert str(error)
        return None
    assert len(packed) == codec.packed_size
    spare = codec.packed_size * 8 - codec.count * codec.bits
    assert not spare or packed[-1] >> (8 - spare) == 0
    return packed


def real(name: str) -> bytes:
    """A payload of that codec as a device sends it."""
    codec = CODECS[name]
    codes = maps(min(codec.bits, 8))[0]
    return codec.encode(codes if codec.bits <= 8 else codes.astype(np.float32) / 7)


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_refused_or_open_to_the_promised_number(name):
    codec = CODECS[name]
    body = st.binary(max_size=codec.limit + 2)
    flagged = st.tuples(st.sampled_from([b"\0", b"\1"]), body).map(b"".join)
    exact = st.binary(min_size=codec.packed_size, max_size=codec.packed_size)

    @fuzzed
    @given(st.one_of(body, flagged, exact, exact.map(lambda raw: b"\0" + raw)))
    def any_bytes(payload: bytes) -> None:
        opened(codec, payload)

    any_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_what_was_encoded_opens_to_what_was_packed(name):
    codec = CODECS[name]
    top = 2 ** min(codec.bits, 8) - 1

    @fuzzed
    @given(st.binary(min_size=COUNT, max_size=COUNT), st.integers(0, top))
    def there_and_back(noise: bytes, level: int) -> None:
        codes = (np.frombuffer(noise, np.uint8) & level).reshape(SHAPE)
        array = codes if codec.bits <= 8 else codes.astype(np.float32) * 1.5 - 20
        payload = codec.encode(array)
        assert len(payload) <= codec.limit
        assert codec.open(payload) == codec.pack(array)

    there_and_back()


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_is_refused(name):
    """But for the entropy coder, whose shorter state may be another frame's: then its codes."""
    payload, codec = real(name), CODECS[name]
    whole = codec.open(payload)
    for end in range(len(payload)):
        packed = opened(codec, payload[:end])
        assert packed is None or (codec.coder == "ans" and packed != whole), end


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_bit_is_refused_or_other_codes_of_the_right_number(name):
    payload, codec = real(name), CODECS[name]
    for bit in range(8 * len(payload)):
        wrong = bytearray(payload)
        wrong[bit // 8] ^= 1 << bit % 8
        opened(codec, bytes(wrong))


@pytest.mark.parametrize("name", [*INTEGERS, "raw-32", "raw-16"])
def test_something_behind_the_end_is_refused(name):
    payload, codec = real(name), CODECS[name]
    for more in (b"\0", b"x", payload, payload[1:], bytes(4)):
        assert opened(codec, payload + more) is None


BOMBS: dict[str, Callable[[int], bytes]] = {
    "zstd": lambda size: zstd(bytes(size)),
    "zstd without a size": lambda size: zstd(bytes(size), write_content_size=False),
    "zstd with magic": lambda size: zstd(bytes(size), format=zstandard.FORMAT_ZSTD1),
    "deflate": lambda size: b"\1" + deflated(bytes(size)),
    "deflate in stored blocks": lambda size: b"\1" + (b"\0\0\0\xff\xff" * 60),
    "zlib": lambda size: b"\1" + zlib.compress(bytes(size)),
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("name", INTEGERS)
def test_a_bomb_takes_no_memory(name, kind):
    codec = CODECS[name]
    bomb = BOMBS[kind](30_000_000)[: codec.limit]
    opened(codec, bomb)  # what is made once and kept
    tracemalloc.start()
    try:
        assert opened(codec, bomb) is None
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_a_difference_of_any_bytes_is_refused_or_a_frame_of_the_bases_length(bits):
    size = Codec(bits, "raw", SHAPE).packed_size

    @fuzzed
    @given(
        st.one_of(st.binary(max_size=size + 2), st.binary(max_size=2 * size).map(deflated)),
        st.binary(min_size=size, max_size=size),
    )
    def any_bytes(payload: bytes, base: bytes) -> None:
        try:
            assert len(delta.open(payload, base, bits)) == size
        except PacketError as error:
            assert str(error)

    any_bytes()


PAIRS = st.integers(1, 200).flatmap(
    lambda size: st.tuples(*[st.binary(min_size=size, max_size=size)] * 2)
)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_a_difference_opens_to_the_very_frame_whatever_the_two(bits):
    @fuzzed
    @given(PAIRS)
    def there_and_back(pair: tuple[bytes, bytes]) -> None:
        packed, base = pair
        payload = delta.encode(packed, base, bits)
        if len(payload) <= len(base):
            assert delta.open(payload, base, bits) == packed

    there_and_back()


def test_every_truncation_and_flip_of_a_difference_is_refused_or_a_frame():
    codec = Codec(4, "raw", SHAPE)
    earlier, later = (codec.pack(one) for one in maps(4, 2))
    payload = delta.encode(later, earlier, 4)
    for end in range(len(payload)):
        with pytest.raises(PacketError):
            delta.open(payload[:end], earlier, 4)
    for bit in range(8 * len(payload)):
        wrong = bytearray(payload)
        wrong[bit // 8] ^= 1 << bit % 8
        try:
            assert len(delta.open(bytes(wrong), earlier, 4)) == len(earlier)
        except PacketError:
            continue


def test_a_difference_that_is_a_bomb_takes_no_memory():
    base = bytes(40_000)
    bomb = deflated(bytes(30_000_000))
    assert len(bomb) < len(base)
    tracemalloc.start()
    try:
        with pytest.raises(PacketError):
            delta.open(bomb, base, 8)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@fuzzed
@given(st.lists(st.binary(max_size=40), max_size=4))
def test_side_data_of_any_bytes_are_refused_or_finite_and_of_their_shape(parts):
    wanted = [Side(name="size", shape=[2], dtype="int64"), Side(name="gain", shape=[])]
    try:
        size, gain = unpack(wanted, parts)
    except PacketError as error:
        assert str(error)
    else:
        assert (size.shape, gain.shape) == ((2,), ()) and np.isfinite(gain)


@fuzzed
@given(st.tuples(*[st.integers(0, 2**32 - 1) | st.sampled_from([0, 32, 64, 96, 160, 192])] * 2))
def test_a_size_is_refused_or_its_shapes_are_within_the_largest(size):
    growth = Growth(
        smallest=(64, 64),
        largest=(160, 192),
        crossing=[16, "4h", "4w"],
        outputs=[["42hw", 4], [5]],
    )
    try:
        growth.check(size)
    except PacketError as error:
        assert str(error)
    else:
        pairs = zip(growth.shapes(size), growth.shapes((160, 192)), strict=True)
        assert all(1 <= n <= most for a, b in pairs for n, most in zip(a, b, strict=True))


@fuzzed
@given(st.text("0123456789hw+- ", max_size=70) | st.text(max_size=20))
def test_a_rule_of_any_text_is_a_sum_or_a_value_error(text):
    try:
        assert len(terms(text)) == 4
    except ValueError as error:
        assert str(error)
