"""Entropy coding with static integer tables: asymmetric numeral systems (Duda 2013).

The state is one big integer, so a payload has no states to flush: it is as long as the codes'
information and at most 13 bits. Integers only, so device and server never differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitrt.errors import ModelError, PacketError

PRECISION = 12  # bits of a probability
TOTAL = 1 << PRECISION
BLOCK = 4096  # codes in one state: each step touches the whole of it
MOST_ROWS = 1 << 16  # of all tables: each takes 4 KiB once it is ready for use
LENGTH = 2  # bytes before a block's state where there are several
LONGEST_BLOCK = BLOCK * PRECISION // 8 + 1  # bytes: no code has less than 1 / 4096


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """What is known of the codes before the first one is seen.

    frequencies: uint16 [channels, contexts, contexts, symbols], each row sums to 4096 and holds
    no zero; the row for a code is chosen by its channel and the contexts of the codes above and
    left of it.  contexts: uint8 [symbols], the context that a code is for its neighbours.
    """

    frequencies: np.ndarray
    contexts: np.ndarray

    def __post_init__(self) -> None:
        shape, symbols = self.frequencies.shape, self.contexts.size
        number = shape[1] if len(shape) == 4 else 0
        if shape != (*shape[:1], number, number, symbols) or not 0 < symbols <= 256:
            raise ModelError(f"tables of shape {shape} for {symbols} symbols")
        if self.frequencies.dtype != np.uint16 or self.contexts.dtype != np.uint8:
            raise ModelError("tables are not uint16 frequencies and uint8 contexts")
        if self.contexts.ndim != 1 or shape[0] * number**2 > MOST_ROWS:
            raise ModelError(f"tables of {shape[0] * number**2} rows, at most {MOST_ROWS} wanted")
        sums = self.frequencies.sum(3, dtype=np.int64)
        if (sums != TOTAL).any() or not self.frequencies.all() or self.contexts.max() >= number:
            raise ModelError(f"a table's frequencies are not positive with sum {TOTAL}")

    @property
    def border(self) -> int:
        """The context beyond the map's edge."""
        return int(self.contexts[self.contexts.size // 2])


def tabled(codes: np.ndarray, contexts: np.ndarray, symbols: int) -> Tables:
    """The tables of many frames' codes, uint8 [N, channels, …]."""
    number = int(contexts.max()) + 1
    maps = codes.reshape(len(codes), codes.shape[1], *_plane(codes.shape[1:]))
    above, left = _neighbours(maps, contexts, int(contexts[symbols // 2]))
    channel = np.arange(codes.shape[1])[None, :, None, None]
    rows = (channel * number + above) * number + left
    places = rows.astype(np.int64) * symbols + maps
    counts = np.bincount(places.ravel(), minlength=codes.shape[1] * number**2 * symbols)
    counts = counts.reshape(codes.shape[1], number, number, symbols).astype(np.float64)
    channel_wide = counts.sum((1, 2), keepdims=True)
    shares = counts + 8.0 * (channel_wide + 0.5) / (channel_wide + 0.5).sum(3, keepdims=True)
    return Tables(_integers(shares / shares.sum(3, keepdims=True)), contexts.astype(np.uint8))


def entropy(codes: np.ndarray, tables: Tables) -> np.ndarray:
    """Bits of each frame's codes under the tables, float64 [N]."""
    maps = codes.reshape(len(codes), codes.shape[1], *_plane(codes.shape[1:]))
    above, left = _neighbours(maps, tables.contexts, tables.border)
    channel = np.arange(codes.shape[1])[None, :, None, None]
    chosen = tables.frequencies[channel, above, left, maps]
    return (PRECISION - np.log2(chosen)).sum((1, 2, 3))


class Ans:
    """Codes of one shape to bytes and back: uint8 [channels, height, width] or [channels, T]."""

    def __init__(self, tables: Tables, shape: tuple[int, ...]) -> None:
        if len(tables.frequencies) != shape[0]:
            raise ModelError(f"tables for {len(tables.frequencies)} channels, {shape[0]} cross")
        self.tables, self.shape = tables, (shape[0], *_plane(shape))
        self.count = int(np.prod(self.shape))
        self.symbols = tables.contexts.size
        blocks = -(-self.count // BLOCK)
        # No code has less than 1 / 4096; each block has one bit more, and its length.
        self.limit = self.count * PRECISION // 8 + blocks * (1 + (LENGTH if blocks > 1 else 0))
        flat = tables.frequencies.reshape(-1, self.symbols).astype(np.int64)
        # The likeliest code lies at 0: while the state is short it then costs nothing.
        order = np.argsort(-flat, axis=1, kind="stable")
        sorted_ = np.take_along_axis(flat, order, 1)
        starts = np.empty_like(flat)
        np.put_along_axis(starts, order, sorted_.cumsum(1) - sorted_, 1)
        self._starts = starts.reshape(tables.frequencies.shape)
        self._frequencies, self._first = flat.tolist(), starts.tolist()
        self._symbol = [
            np.repeat(codes.astype(np.uint8), room).tobytes()
            for codes, room in zip(order, sorted_, strict=True)
        ]
        self._number = tables.frequencies.shape[1]

    def encode(self, codes: np.ndarray) -> bytes:
        """The payload; PacketError if a code is beyond the tables."""
        maps = codes.reshape(1, *self.shape)
        if maps.max(initial=0) >= self.symbols:
            raise PacketError(f"code {maps.max()} to send, the tables end at {self.symbols - 1}")
        above, left = _neighbours(maps, self.tables.contexts, self.tables.border)
        channel = np.arange(self.shape[0])[None, :, None, None]
        place = (channel, above, left, maps)
        frequencies = self.tables.frequencies[place].ravel().tolist()
        starts = self._starts[place].ravel().tolist()
        blocks = [
            _pushed(frequencies[first : first + BLOCK], starts[first : first + BLOCK])
            for first in range(0, self.count, BLOCK)
        ]
        if len(blocks) == 1:
            return blocks[0]
        return b"".join(len(block).to_bytes(LENGTH, "little") + block for block in blocks)

    def decode(self, payload: bytes) -> np.ndarray:
        """uint8 codes, flat; PacketError unless the payload is exactly one frame's."""
        codes = bytearray(self.count)
        rest = payload
        for first in range(0, self.count, BLOCK):
            block = rest
            if self.count > BLOCK:
                length = int.from_bytes(rest[:LENGTH], "little")
                block, rest = rest[LENGTH : LENGTH + length], rest[LENGTH + length :]
                if len(block) != length:
                    raise PacketError("a block of codes is cut short")
            self._pop(block, codes, first, min(first + BLOCK, self.count))
        if self.count > BLOCK and rest:
            raise PacketError("bytes behind the last block of codes")
        return np.frombuffer(bytes(codes), np.uint8)

    def _pop(self, block: bytes, codes: bytearray, first: int, last: int) -> None:
        if not block or len(block) > LONGEST_BLOCK or block[-1] == 0:
            raise PacketError(f"{len(block)} bytes are no block of codes")
        state = int.from_bytes(block, "little")
        _, height, width = self.shape
        plane, number, border = height * width, self._number, self.tables.border
        contexts = self.tables.contexts.tolist()
        mask = TOTAL - 1
        for place in range(first, last):
            inside = place % plane
            above = contexts[codes[place - width]] if inside >= width else border
            left = contexts[codes[place - 1]] if inside % width else border
            row = (place // plane * number + above) * number + left
            slot = state & mask
            code = self._symbol[row][slot]
            state = self._frequencies[row][code] * (state >> PRECISION) + slot
            state -= self._first[row][code]
            codes[place] = code
            if state < 1:
                raise PacketError("codes end before the frame does")
        if state != 1:
            raise PacketError("codes do not end where the frame does")


def _pushed(frequencies: list[int], starts: list[int]) -> bytes:
    """One block's state: its codes' information and one bit."""
    state = 1
    for frequency, start in zip(reversed(frequencies), reversed(starts), strict=True):
        whole, part = divmod(state, frequency)
        state = (whole << PRECISION) + part + start
    return state.to_bytes((state.bit_length() + 7) // 8, "little")


def _neighbours(
    maps: np.ndarray, contexts: np.ndarray, border: int
) -> tuple[np.ndarray, np.ndarray]:
    """The contexts above and left of each code of [N, C, H, W]."""
    own = contexts[np.minimum(maps, contexts.size - 1)]
    above, left = np.full_like(own, border), np.full_like(own, border)
    above[:, :, 1:], left[:, :, :, 1:] = own[:, :, :-1], own[:, :, :, :-1]
    return above, left


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of [channels, H, W]; tokens [channels, T] are one row."""
    return (1, shape[1]) if len(shape) == 2 else (shape[1], shape[2])


def _integers(shares: np.ndarray) -> np.ndarray:
    """Probabilities as positive integers whose rows sum to TOTAL; the largest takes the rest."""
    counts = np.maximum(1, np.floor(shares * TOTAL)).astype(np.int64)
    spare = TOTAL - counts.sum(-1, keepdims=True)
    largest = counts.argmax(-1)[..., None]
    np.put_along_axis(counts, largest, np.take_along_axis(counts, largest, -1) + spare, -1)
    return counts.astype(np.uint16)
