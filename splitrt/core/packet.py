"""The wire's messages, written and read: what arrives is checked against the manifest first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from splitrt.core import side
from splitrt.core.manifest import Manifest, Output, Plan
from splitrt.errors import ModelMismatch, PacketError
from splitrt.wire import tail_pb2 as wire

PROTOCOL = 1
LONGEST_SLACK_US = 2**32 - 1
MOST_TAILS = 16
LONGEST_WORDS = 400  # characters of a peer's text that are passed on
ENVELOPE = 1 << 10  # room for the fields around payloads and outputs


def hello(
    manifest: Manifest,
    *,
    also: Sequence[Manifest] = (),
    temporal: bool = False,
    moves: bool = False,
) -> wire.Hello:
    """The first message of a device.

    also: further tails that are to answer.  temporal: the server is to keep frames for
    differences.  moves: the device goes on to another server when it is asked to.
    """
    return wire.Hello(
        protocol=PROTOCOL,
        model=manifest.name,
        manifest=manifest.digest,
        also=[other.digest for other in also],
        temporal=temporal,
        moves=moves,
    )


def agree(held: Mapping[bytes, Any], message: wire.Hello) -> tuple[bytes, ...]:
    """The digests of the tails that a device wants, of those that are held here.

    ModelMismatch unless it speaks this protocol and all that it wants is held.
    """
    if message.protocol != PROTOCOL:
        raise ModelMismatch(
            f"the device speaks protocol {message.protocol}, the server {PROTOCOL}\n"
            "help: install the same splitrt on both"
        )
    wanted = tuple(dict.fromkeys((message.manifest, *message.also[:MOST_TAILS])))
    for digest in wanted:
        if digest not in held:
            raise ModelMismatch(
                f"the device holds model {digest[:6].hex() or 'none'}…, "
                f"the server {', '.join(f'{one[:6].hex()}…' for one in [*held][-MOST_TAILS:])}\n"
                "help: copy the same model directory to both"
            )
    return wanted


@dataclass(frozen=True, slots=True)
class Beside:
    """What a frame carries beside its payload, where the model wants it.

    size: (height, width) of the picture as the head took it, where pictures change theirs.
    side: the side tensors' bytes, in the manifest's order.
    trace: a packed Mark, where the frame is traced.
    """

    size: tuple[int, int] | None = None
    side: Sequence[bytes] = ()
    trace: bytes = b""


def frame(
    seq: int,
    plan: int,
    payload: bytes,
    slack: float | None,
    beside: Beside = Beside(),
    base: int = 0,
) -> wire.ToServer:
    """One frame; slack in seconds, None for no deadline; base 0 for a keyframe."""
    slack_us = 0 if slack is None else min(max(int(slack * 1e6), 1), LONGEST_SLACK_US)
    message = wire.Frame(
        seq=seq, plan=plan, payload=payload, slack_us=slack_us, base=base, trace=beside.trace
    )
    message.size.extend(beside.size or ())
    message.side.extend(beside.side)
    return wire.ToServer(frame=message)


def size_of(manifest: Manifest, message: wire.Frame) -> tuple[int, int] | None:
    """The size of a frame's picture; PacketError unless the manifest allows it."""
    if len(message.size) not in (0, 2):
        raise PacketError(f"{len(message.size)} numbers of size, height and width wanted")
    size = (message.size[0], message.size[1]) if message.size else None
    manifest.at(size)
    return size


def side_of(manifest: Manifest, message: wire.Frame) -> list[np.ndarray]:
    """The side tensors of a frame; PacketError unless they are those of the manifest."""
    return side.unpack(manifest.side, message.side)


def plan_of(manifest: Manifest, message: wire.Frame) -> Plan:
    """The plan of a frame from a device; PacketError if the server has no part in it."""
    if message.plan >= len(manifest.plans) or manifest.plans[message.plan].place != "cloud":
        raise PacketError(f"plan {message.plan} is not one of the server's")
    return manifest.plans[message.plan]


@dataclass(frozen=True, slots=True)
class Ran:
    """How a batch went, for the answers' timings."""

    queue_us: int  # the frame's wait for its batch
    open_us: int  # checking and decompressing the batch
    compute_us: int  # the tail
    batch: int  # frames that ran together


def answer(seq: int, outputs: Sequence[np.ndarray], ran: Ran) -> wire.Answer:
    """The answer to a frame."""
    tensors = [wire.Tensor(shape=array.shape, data=array.tobytes()) for array in outputs]
    return wire.Answer(
        seq=seq,
        status=wire.OK,
        outputs=tensors,
        queue_us=ran.queue_us,
        compute_us=ran.compute_us,
        open_us=ran.open_us,
        batch=ran.batch,
    )


def refusal(seq: int, status: wire.Status, detail: str, retry_after_ms: int = 0) -> wire.Answer:
    """No answer, and why."""
    return wire.Answer(seq=seq, status=status, detail=detail, retry_after_ms=retry_after_ms)


def read_outputs(
    manifest: Manifest, message: wire.Answer, also: Sequence[Manifest] = ()
) -> dict[str, np.ndarray]:
    """The arrays of an answer; PacketError unless they are what the manifests promise.

    also: further tails that answered; their outputs are named MODEL/OUTPUT.
    """
    wanted = [(output.name, output) for output in manifest.outputs]
    for other in also:
        wanted += [(f"{other.name}/{output.name}", output) for output in other.outputs]
    if len(message.outputs) != len(wanted):
        raise PacketError(f"answer with {len(message.outputs)} outputs, {len(wanted)} wanted")
    pairs = zip(wanted, message.outputs, strict=True)
    return {name: _array(output, tensor) for (name, output), tensor in pairs}


def _array(wanted: Output, tensor: wire.Tensor) -> np.ndarray:
    if list(tensor.shape) != wanted.shape:
        raise PacketError(
            f"output {wanted.name!r} has shape {list(tensor.shape)[:8]}, {wanted.shape} wanted"
        )
    dtype = np.dtype(wanted.dtype).newbyteorder("<")
    size = math.prod(wanted.shape) * dtype.itemsize
    if len(tensor.data) != size:
        raise PacketError(f"output {wanted.name!r} has {len(tensor.data)} bytes, {size} wanted")
    array = np.frombuffer(tensor.data, dtype).reshape(wanted.shape).copy()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise PacketError(f"output {wanted.name!r} holds NaN or infinity")
    return array


def told(words: str) -> str:
    """A peer's words, short and without control characters: they end on a terminal."""
    shown = (c if c.isprintable() or c == "\n" else "?" for c in words[:LONGEST_WORDS])
    return "".join(shown).strip()


def largest_answer(manifest: Manifest, also: Sequence[Manifest] = ()) -> int:
    """Bytes that an answer may have."""
    outputs = [output for one in (manifest, *also) for output in one.outputs]
    sizes = [math.prod(o.shape) * np.dtype(o.dtype).itemsize for o in outputs]
    return sum(sizes) + ENVELOPE * (1 + len(sizes))


def largest_side(manifest: Manifest) -> int:
    """Bytes that the side data of a frame have."""
    return sum(one.bytes for one in manifest.side)


def reader(kind: Any) -> Callable[[bytes], Any]:
    """A parser that gives None instead of an error inside gRPC, whose text would travel."""

    def read(raw: bytes) -> Any:
        try:
            return kind.FromString(raw)
        except (DecodeError, RecursionError, ValueError):
            return None

    return read
