"""Hidden rows as bytes: one row a position, each of a fixed size, its largest numbers apart.

A row of q8 or q4: scale, values of the outliers (float16), their places (uint16), then int8 or two
nibbles a byte, low first. Numbers that are far larger than the others (Dettmers et al. 2022,
LLM.int8()) would take the whole range: the few largest of each row travel as float16.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from splitrt.errors import PacketError

CODECS = ("f32", "f16", "q8", "q4")
LARGEST = 65504.0  # of a float16
MOST, EVERY = 8, 64  # outliers: one of so many numbers, at most MOST
SMALLEST = 6e-8  # a scale that a float16 can hold
TOKEN = 4  # bytes of a token where tokens are sent instead of rows: uint32, little-endian
BEGIN = bytes(16)  # the log of no rows


class Rows:
    """One codec for rows of `hidden` numbers: `encode` on the device, `decode` on the server."""

    def __init__(self, codec: str, hidden: int) -> None:
        if codec not in CODECS:
            raise PacketError(f"no codec {codec!r}\nhelp: one of {', '.join(CODECS)}")
        self.codec, self.hidden = codec, hidden
        self.outliers = max(1, min(MOST, hidden // EVERY)) if codec in ("q8", "q4") else 0
        packed = {"f32": 4 * hidden, "f16": 2 * hidden, "q8": hidden, "q4": (hidden + 1) // 2}
        self._head = 2 + 4 * self.outliers if self.outliers else 0
        self.size = self._head + packed[codec]  # bytes of one row

    def encode(self, rows: np.ndarray) -> bytes:
        """float32 [T, hidden] -> T * `size` bytes; each row alone, whatever T is."""
        if self.codec == "f32":
            return np.ascontiguousarray(rows, "<f4").tobytes()
        if self.codec == "f16":
            return np.clip(rows, -LARGEST, LARGEST).astype("<f2").tobytes()
        rest = np.array(rows, np.float32)
        places = np.argpartition(-np.abs(rest), self.outliers - 1, axis=1)[:, : self.outliers]
        values = np.clip(np.take_along_axis(rest, places, 1), -LARGEST, LARGEST)
        np.put_along_axis(rest, places, 0, 1)
        top = 127 if self.codec == "q8" else 7
        scale = np.clip(np.abs(rest).max(1, keepdims=True) / top, SMALLEST, LARGEST).astype("<f2")
        codes = np.clip(np.rint(rest / scale.astype(np.float32)), -top, top).astype(np.int8)
        head = [scale.view(np.uint8), values.astype("<f2").view(np.uint8)]
        head.append(places.astype("<u2").view(np.uint8))
        return np.hstack([*head, self._packed(codes)]).tobytes()

    def decode(self, payload: bytes, count: int) -> np.ndarray:
        """`count` rows -> float32 [count, hidden]; PacketError unless they are that, and finite."""
        if len(payload) != count * self.size:
            wanted = f"{count} rows of {self.codec} have {count * self.size}"
            raise PacketError(f"{len(payload)} bytes of rows\nhelp: {wanted}")
        rows = self._decoded(np.frombuffer(payload, np.uint8).reshape(count, self.size))
        if not np.isfinite(rows).all():
            raise PacketError("a row with numbers that are not finite")
        return rows

    def _decoded(self, raw: np.ndarray) -> np.ndarray:
        if not self.outliers:
            return raw.view("<f4" if self.codec == "f32" else "<f2").astype(np.float32)
        count, few = len(raw), self.outliers
        head = raw[:, : self._head].copy()
        scale = head[:, :2].copy().view("<f2").astype(np.float32)
        values = head[:, 2 : 2 + 2 * few].copy().view("<f2").astype(np.float32)
        places = head[:, 2 + 2 * few :].copy().view("<u2").astype(np.int64)
        if places.size and places.max() >= self.hidden:
            raise PacketError(f"an outlier at {places.max()} of {self.hidden} numbers")
        rows = self._unpacked(raw[:, self._head :]).reshape(count, self.hidden) * scale
        np.put_along_axis(rows, places, values, 1)
        return rows

    def _packed(self, codes: np.ndarray) -> np.ndarray:
        if self.codec == "q8":
            return codes.view(np.uint8)
        nibbles = (codes & 15).astype(np.uint8)
        if self.hidden % 2:
            nibbles = np.pad(nibbles, ((0, 0), (0, 1)))
        return nibbles[:, ::2] | nibbles[:, 1::2] << 4

    def _unpacked(self, body: np.ndarray) -> np.ndarray:
        if self.codec == "q8":
            return body.view(np.int8).astype(np.float32)
        nibbles = np.stack([body & 15, body >> 4], 2).reshape(len(body), 2 * body.shape[1])
        return (nibbles[:, : self.hidden].astype(np.int8) ^ 8).astype(np.float32) - 8


def chained(log: bytes, payload: bytes, size: int) -> list[bytes]:
    """The log after each row of `size` bytes: 16 bytes that two sides compare after a break."""
    logs = []
    for start in range(0, len(payload), size):
        log = blake2b(log + payload[start : start + size], digest_size=len(BEGIN)).digest()
        logs.append(log)
    return logs
