"""A safetensors file written one tensor at a time: what it holds never lies in memory at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
ALIGNED = 64  # bytes, of the first tensor


@dataclass(frozen=True, slots=True)
class Lazy:
    """A tensor that is made when it is written.

    make: its bytes as an array of any dtype, or as arrays that follow one another.
    """

    dtype: str  # a name in SIZES
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray | Iterable[np.ndarray]]

    @property
    def size(self) -> int:
        """Bytes."""
        return SIZES[self.dtype] * int(np.prod(self.shape, dtype=np.int64))


def write(path: Path, tensors: Mapping[str, Lazy]) -> dict[str, int]:
    """Write the file; where each tensor begins in it, in bytes.

    Wide numbers come first, so that each tensor lies at a multiple of its numbers' size.
    """
    order = sorted(tensors, key=lambda name: -SIZES[tensors[name].dtype])
    header, places, end = {}, {}, 0
    for name in order:
        one = tensors[name]
        places[name], end = end, end + one.size
        said = {"dtype": one.dtype, "shape": list(one.shape)}
        header[name] = said | {"data_offsets": [places[name], end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            begin = file.tell()
            for data in pieces(tensors[name]):
                file.write(data.data)
            assert file.tell() - begin == tensors[name].size, name
    return {name: 8 + len(text) + place for name, place in places.items()}


def pieces(lazy: Lazy) -> Iterable[np.ndarray]:
    """The arrays that a tensor is made of, one after the other."""
    made = lazy.make()
    for piece in [made] if isinstance(made, np.ndarray) else made:
        yield np.ascontiguousarray(piece)
