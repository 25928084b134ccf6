"""Arrays and results on the socket; nothing that comes over it is believed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict

import numpy as np

from splitrt.core.result import Result, Timings
from splitrt.errors import PacketError
from splitrt.wire import daemon_pb2 as wire

DTYPES = ("uint8", "int32", "int64", "float16", "float32")
MOST = 80  # arrays of a message
DIMS, LONGEST = 8, 1 << 28  # of a shape; elements
LARGEST = 64 << 20  # bytes of a message
WORD = 4096  # characters of a text


def roomy() -> None:
    """31 MiB taken and freed raise glibc's mmap threshold: large messages then re-use memory."""
    bytearray(31 << 20)


def packed(arrays: Mapping[str, np.ndarray]) -> list[wire.Array]:
    """Arrays by name, as they travel. PacketError for a dtype that does not."""
    found = []
    for name, value in arrays.items():
        array = np.asarray(value)
        if array.dtype.name not in DTYPES:
            raise PacketError(f"{name!r} is {array.dtype}\nhelp: one of {', '.join(DTYPES)}")
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        found.append(
            wire.Array(name=name, dtype=array.dtype.name, shape=array.shape, data=plain.tobytes())
        )
    return found


def opened(arrays: Iterable[wire.Array]) -> dict[str, np.ndarray]:
    """The arrays of a message, read-only; PacketError unless each is what it says."""
    found: dict[str, np.ndarray] = {}
    for count, one in enumerate(arrays):
        if count >= MOST:
            raise PacketError(f"more than {MOST} arrays\nhelp: give those that the model takes")
        if one.name in found:
            raise PacketError(f"two arrays are named {one.name[:80]!r}\nhelp: one each")
        found[one.name] = _opened(one)
    return found


def _opened(one: wire.Array) -> np.ndarray:
    name, shape = one.name[:80], list(one.shape[: DIMS + 1])
    if one.dtype not in DTYPES:
        raise PacketError(f"{name!r} is {one.dtype[:80]!r}\nhelp: one of {', '.join(DTYPES)}")
    if len(shape) > DIMS or math.prod(max(1, size) for size in shape) > LONGEST:
        raise PacketError(f"{name!r} has the shape {shape}\nhelp: {DIMS} dimensions, 2^28 numbers")
    dtype = np.dtype(one.dtype).newbyteorder("<")
    wanted = math.prod(shape) * dtype.itemsize
    if len(one.data) != wanted:
        raise PacketError(
            f"{name!r} {shape} {one.dtype} should have {wanted} bytes, has {len(one.data)}\n"
            "help: shape, dtype and bytes must agree"
        )
    return np.frombuffer(one.data, dtype).reshape(shape)


def reply(
    frame: str, index: int, result: Result, missed: int = 0, size: tuple[int, int] | None = None
) -> wire.Reply:
    """A frame's end, as it travels; size: of a camera's picture, height and width."""
    return wire.Reply(
        frame=frame,
        index=index,
        outputs=packed(result.outputs),
        where=result.where or "",
        plan=result.plan,
        reason=result.reason,
        confidence=result.confidence,
        timings=wire.Timings(**asdict(result.timings)),
        sent_bytes=result.sent_bytes,
        missed=missed,
        size=size or (),
        revision=result.revision,
    )


def result(reply: wire.Reply) -> Result:
    """The result of a reply; its arrays can be written to. PacketError if it cannot be."""
    if reply.where not in ("edge", "cloud", ""):
        raise PacketError(f"an answer from {reply.where[:80]!r}\nhelp: edge, cloud, or nobody")
    names = Timings.__dataclass_fields__
    return Result(
        outputs={name: array.copy() for name, array in opened(reply.outputs).items()},
        where="edge" if reply.where == "edge" else "cloud" if reply.where == "cloud" else None,
        plan=reply.plan[:WORD],
        reason=reply.reason[:WORD] if reply.HasField("reason") else None,
        confidence=reply.confidence if reply.HasField("confidence") else None,
        timings=Timings(**{name: getattr(reply.timings, name) for name in names}),
        sent_bytes=reply.sent_bytes,
        revision=reply.revision,
    )


def size(reply: wire.Reply) -> tuple[int, int]:
    """Height and width of a reply's picture. PacketError if it says none."""
    found = list(reply.size[:3])
    if len(found) != 2 or not all(0 < side <= LONGEST for side in found):
        raise PacketError(f"a picture of the size {found}\nhelp: height and width, in pixels")
    return found[0], found[1]
