"""A fault over the socket: its class by name, so that a caller can catch what an Edge raises."""

from __future__ import annotations

from pathlib import Path

import grpc

from splitrt.core.packet import told
from splitrt.errors import (
    DeadlineMissed,
    LinkDown,
    LinkError,
    ModelError,
    ModelMismatch,
    PacketError,
    ProfileError,
    Refused,
    SplitrtError,
)

KINDS = {
    kind.__name__: kind
    for kind in (
        DeadlineMissed, LinkDown, LinkError, ModelError, ModelMismatch, PacketError, ProfileError,
        Refused, SplitrtError,
    )
}  # fmt: skip


def words(error: SplitrtError) -> str:
    """The details of a call that ends with it: short, for some of it may be the caller's own."""
    return f"{type(error).__name__}: {told(str(error))}"


def named(error: grpc.RpcError, path: Path) -> SplitrtError:
    """A gRPC status as one of our errors."""
    code = error.code() if isinstance(error, grpc.Call) else None
    detail = told(error.details() or "") if isinstance(error, grpc.Call) else ""
    if code == grpc.StatusCode.FAILED_PRECONDITION:
        kind, _, text = detail.partition(": ")
        return KINDS[kind](text) if kind in KINDS else SplitrtError(detail)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Refused(f"the daemon: {detail}")
    if code == grpc.StatusCode.UNAVAILABLE:
        return LinkDown(
            f"no daemon at {path} answers\nhelp: `splitrt daemon`, and its group's rights"
        )
    return LinkDown(f"the daemon: {detail or code}")
