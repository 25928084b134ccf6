"""What a device's samples are of: the tail that opens them, the exit that they are to adapt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitrt.cloud.branch import Branch
from splitrt.cloud.tail import Tail
from splitrt.core import packet
from splitrt.core.manifest import Manifest
from splitrt.core.revision import classes
from splitrt.errors import PacketError
from splitrt.wire import adapt_pb2 as wire

HALF = 2  # bytes


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """A sample that was proved: what crossed by its plan, packed, and the exit's logits [K].

    level: the stream's mean mark [C], where the device said it.
    """

    plan: str
    packed: bytes
    logits: np.ndarray
    level: np.ndarray | None


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """One width's exit of one of the tail's branches; PacketError if there is none to adapt."""

    tail: Tail
    branch: Branch
    width: str

    def __post_init__(self) -> None:
        names = [one.name for one in self.manifest.widths if one.exit is not None]
        if self.width not in names or self.manifest.sizes is not None:
            among = ", ".join(names) or "none of this model"
            raise PacketError(f"no exit of that width can be adapted\nhelp: {among}")

    @property
    def folder(self) -> Path:
        """The model directory."""
        return self.branch.folder

    @property
    def manifest(self) -> Manifest:
        """Of the branch."""
        return self.branch.manifest

    def open(self, sample: wire.Sample) -> Taught:
        """The sample, if it is what a device of this model sends; else PacketError."""
        plan = packet.plan_of(self.manifest, sample)
        if plan.width != self.width or not self.tail.codecs[plan.name].codes:
            raise PacketError(f"plan {sample.plan} sends no codes of width {self.width}")
        width = self.manifest.width(plan)
        logits = _halves("logits", sample.logits, classes(self.manifest, width))
        level = _halves("level", sample.level, width.shape[0]) if sample.level else None
        return Taught(plan.name, self.tail.open(plan.name, sample.payload), logits, level)


def largest_beside(manifest: Manifest) -> int:
    """Bytes that travel beside a sample's payload: logits, level."""
    widths = [width for width in manifest.widths if width.exit is not None]
    sizes = [HALF * (classes(manifest, width) + width.shape[0]) for width in widths]
    return max(sizes, default=0)


def _halves(name: str, raw: bytes, count: int) -> np.ndarray:
    """float32 of that many float16; PacketError if they are not, or not finite."""
    if len(raw) != HALF * count:
        raise PacketError(f"{name} of {len(raw)} bytes, {HALF * count} wanted")
    found = np.frombuffer(raw, "<f2").astype(np.float32)
    if not np.isfinite(found).all():
        raise PacketError(f"{name} hold NaN or infinity")
    return found
