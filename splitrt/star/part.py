"""A device's part of a sum as bytes: float32, float16, or a byte a number and a scale a row."""

from __future__ import annotations

import numpy as np

from splitrt.errors import SplitrtError

WIRES = ("f32", "f16", "q8")
LARGEST = 65504.0  # of a float16
SMALLEST = 1e-30  # a scale; its inverse is still a float32
TOP = 127


class Wire:
    """float32 [T, hidden], T <= rows, into bytes and back; elementwise, so alike on any machine.

    q8: T scales (float32), then T rows of int8; a row with a number that is not finite arrives as
    NaN. f16 ends at ±65504. All little-endian.
    """

    def __init__(self, name: str, rows: int, hidden: int) -> None:
        if name not in WIRES:
            raise SplitrtError(f"no wire {name!r}\nhelp: one of {', '.join(WIRES)}")
        self.name, self.hidden = name, hidden
        self.exact = name == "f32"
        lossy = 0 if self.exact else rows
        self._scratch = np.empty((lossy, hidden), np.float32)
        self._scales = np.empty((lossy, 1), np.float32)

    def size(self, rows: int) -> int:
        """Bytes of so many rows."""
        each = {"f32": 4 * self.hidden, "f16": 2 * self.hidden, "q8": 4 + self.hidden}
        return rows * each[self.name]

    def write(self, array: np.ndarray, body: np.ndarray) -> None:
        """The rows into the first bytes of `body`."""
        rows = len(array)
        if self.exact:
            np.copyto(self._floats(body, rows), array)
            return
        scratch = self._scratch[:rows]
        if self.name == "f16":
            np.clip(array, -LARGEST, LARGEST, out=scratch)
            np.copyto(self._floats(body, rows), scratch, casting="same_kind")
            return
        scales, codes = self._quantised(body, rows)
        own = self._scales[:rows]
        with np.errstate(invalid="ignore"):  # not finite: the scale is not, and says so
            np.abs(array, out=scratch).max(axis=1, keepdims=True, out=own)
            np.maximum(np.divide(own, TOP, out=own), SMALLEST, out=own)
            np.copyto(scales, own)
            np.divide(array, own, out=scratch)
            np.copyto(codes, np.rint(scratch, out=scratch), casting="unsafe")

    def read(self, body: np.ndarray, out: np.ndarray) -> None:
        """What `write` wrote, as the receiver has it, into `out`."""
        rows = len(out)
        if self.name == "q8":
            scales, codes = self._quantised(body, rows)
            with np.errstate(invalid="ignore"):
                np.multiply(codes, scales, out=out)
        else:
            np.copyto(out, self._floats(body, rows))

    def add(self, body: np.ndarray, out: np.ndarray) -> None:
        """That, added to `out`."""
        if self.exact:
            np.add(out, self._floats(body, len(out)), out=out)
            return
        scratch = self._scratch[: len(out)]
        self.read(body, scratch)
        np.add(out, scratch, out=out)

    def _floats(self, body: np.ndarray, rows: int) -> np.ndarray:
        kind = "<f4" if self.exact else "<f2"
        return body[: self.size(rows)].view(kind).reshape(rows, self.hidden)

    def _quantised(self, body: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
        scales = body[: 4 * rows].view("<f4").reshape(rows, 1)
        codes = body[4 * rows : self.size(rows)].view(np.int8).reshape(rows, self.hidden)
        return scales, codes
