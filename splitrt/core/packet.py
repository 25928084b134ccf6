"""The wire's messages, written and read: what arrives is checked against the manifest first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitrt.core.manifest import Manifest, Output, Plan
from splitrt.errors import ModelMismatch, PacketError
from splitrt.wire import tail_pb2 as wire

PROTOCOL = 1
LONGEST_SLACK_US = 2**32 - 1
LONGEST_WORDS = 400  # characters of a peer's text that are passed on
ENVELOPE = 1 << 10  # room for the fields around payloads and outputs


def hello(manifest: Manifest) -> wire.Hello:
    """The first message of a device."""
    return wire.Hello(protocol=PROTOCOL, model=manifest.name, manifest=manifest.digest)


def agree(manifest: Manifest, message: wire.Hello) -> None:
    """ModelMismatch unless the peer speaks this protocol and holds this very model."""
    if message.protocol != PROTOCOL:
        raise ModelMismatch(
            f"the device speaks protocol {message.protocol}, the server {PROTOCOL}\n"
            "help: install the same splitrt on both"
        )
    if message.manifest != manifest.digest:
        raise ModelMismatch(
            f"the device holds model {message.manifest[:6].hex() or 'none'}…, "
            f"the server {manifest.digest[:6].hex()}…\n"
            "help: copy the same model directory to both"
        )


def frame(seq: int, plan: int, payload: bytes, slack: float | None) -> wire.ToServer:
    """One frame; slack in seconds, None for no deadline."""
    slack_us = 0 if slack is None else min(max(int(slack * 1e6), 1), LONGEST_SLACK_US)
    message = wire.Frame(seq=seq, plan=plan, payload=payload, slack_us=slack_us)
    return wire.ToServer(frame=message)


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


def read_outputs(manifest: Manifest, message: wire.Answer) -> dict[str, np.ndarray]:
    """The arrays of an answer; PacketError unless they are what the manifest promises."""
    if len(message.outputs) != len(manifest.outputs):
        raise PacketError(
            f"answer with {len(message.outputs)} outputs, {len(manifest.outputs)} wanted"
        )
    pairs = zip(manifest.outputs, message.outputs, strict=True)
    return {wanted.name: _array(wanted, tensor) for wanted, tensor in pairs}


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


def largest_answer(manifest: Manifest) -> int:
    """Bytes that an answer may have."""
    sizes = [math.prod(o.shape) * np.dtype(o.dtype).itemsize for o in manifest.outputs]
    return sum(sizes) + ENVELOPE * (1 + len(sizes))
