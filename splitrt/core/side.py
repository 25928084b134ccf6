"""Side data: small inputs of the tail alone, which travel beside what crosses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from splitrt.errors import PacketError

LARGEST = 4096  # bytes, of all side tensors of a frame together

Count = Annotated[int, Field(ge=1, le=LARGEST)]


class Side(BaseModel):
    """One side tensor, without batch.

    picture: the picture's (height, width) as it came, which the device fills in by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
    shape: Annotated[list[Count], Field(max_length=8)]
    dtype: Literal["float32", "int64"] = "float32"
    picture: bool = False

    @model_validator(mode="after")
    def _of_two(self) -> Side:
        if self.picture and self.shape != [2]:
            raise ValueError(f"{self.name!r} is to be a picture's (height, width), so [2]")
        return self

    @property
    def bytes(self) -> int:
        """How many bytes travel."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def pack(wanted: Sequence[Side], given: Mapping[str, np.ndarray]) -> list[bytes]:
    """The side tensors of a frame in the manifest's order; PacketError unless they are its."""
    names = [side.name for side in wanted]
    if sorted(given) != sorted(names):
        raise PacketError(
            f"side inputs {sorted(given)}\nhelp: this model takes {names or 'none'} by name"
        )
    return [_packed(side, np.asarray(given[side.name])) for side in wanted]


def unpack(wanted: Sequence[Side], parts: Sequence[bytes]) -> list[np.ndarray]:
    """The side tensors that a peer sent; PacketError unless they are what the manifest names."""
    if len(parts) != len(wanted):
        raise PacketError(f"{len(parts)} side tensors, {len(wanted)} wanted")
    return [_unpacked(side, part) for side, part in zip(wanted, parts, strict=True)]


def _packed(side: Side, array: np.ndarray) -> bytes:
    if list(array.shape) != side.shape or not _castable(array, side):
        raise PacketError(
            f"side input {side.name!r} is {array.dtype} {list(array.shape)}\n"
            f"help: it should be {side}, without batch"
        )
    raw = array.astype(np.dtype(side.dtype).newbyteorder("<")).tobytes()
    _unpacked(side, raw)
    return raw


def _castable(array: np.ndarray, side: Side) -> bool:
    """Floats stay floats; whole numbers may become floats."""
    return array.dtype.kind in ("iu" if side.dtype == "int64" else "iuf")


def _unpacked(side: Side, raw: bytes) -> np.ndarray:
    if len(raw) != side.bytes:
        raise PacketError(f"side tensor {side.name!r} has {len(raw)} bytes, {side.bytes} wanted")
    array = np.frombuffer(raw, np.dtype(side.dtype).newbyteorder("<")).reshape(side.shape)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise PacketError(f"side tensor {side.name!r} holds NaN or infinity")
    return array.astype(side.dtype)
