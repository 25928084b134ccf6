"""A model as clients of the Open Inference Protocol see it: its tensors in and out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from splitrt.cloud.tail import Tail
from splitrt.core.manifest import Manifest, Plan
from splitrt.core.packet import ENVELOPE

VERSION = "1"
SIZE = "picture.size"  # height and width as the head took them; no side input has a dot
DATATYPES = {
    "bytes": "BYTES", "uint8": "UINT8", "float32": "FP32", "float16": "FP16", "int64": "INT64"
}  # fmt: skip
TYPES = {"bytes": "STRING", "float32": "FP32", "float16": "FP16", "int64": "INT64"}


@dataclass(frozen=True, slots=True)
class Slot:
    """An input or an output. dims: without batch; -1 where they change with the picture's size."""

    name: str
    dtype: str  # numpy's, or bytes
    dims: tuple[int, ...]

    @property
    def datatype(self) -> str:
        return DATATYPES[self.dtype]

    @property
    def type(self) -> str:
        """The datatype's name in a model's configuration."""
        return f"TYPE_{TYPES[self.dtype]}"


@dataclass(frozen=True, slots=True)
class Face:
    """What there is to know of one model.

    The first input is a JPEG file if the model takes pictures that way, else the features in
    float32. plan: its place in the manifest.  most: rows of a request.  pixels: what else may
    come in a file's place, under its name: the picture itself.
    """

    digest: bytes
    manifest: Manifest
    plan: int
    most: int
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    pixels: tuple[Slot, ...] = ()


def faces(tail: Tail, most: int, room: int) -> dict[str, Face]:
    """The models by their names; those that take neither JPEG nor float32 are left out.

    most: rows of a request.  room: bytes of a message.
    """
    found: dict[str, Face] = {}
    for digest, branch in tail.branches.items():
        place = plain(branch.manifest)
        if place is not None:
            rows = min(most, fitting(branch.manifest, place, tail, room))
            found.setdefault(branch.manifest.name, face(digest, branch.manifest, place, rows))
    return found


def fitting(manifest: Manifest, place: int, tail: Tail, room: int) -> int:
    """Rows of features that a message has room for, one at least; files may be of any length."""
    plan = manifest.plans[place]
    if manifest.pictured(plan):
        return room
    row = tail.codecs[plan.name].limit + manifest_side(manifest)
    return max(1, (room - ENVELOPE) // row)


def face(digest: bytes, manifest: Manifest, place: int, most: int) -> Face:
    """One model's."""
    plan = manifest.plans[place]
    corners = [None] * 2
    if manifest.sizes is not None:
        corners = [manifest.sizes.smallest, manifest.sizes.largest]
    ends = [manifest.at(size) for size in corners]
    crossing = _spanned(end.crossing(plan) for end in ends)
    inputs, pixels = [Slot("features", "float32", crossing)], []
    if manifest.pictured(plan):
        inputs = [Slot(manifest.input.name, "bytes", (1,))]
        pixels = [Slot(manifest.input.name, "uint8", crossing)]
    if manifest.sizes is not None:
        inputs.append(Slot(SIZE, "int64", (2,)))
    inputs += [Slot(side.name, side.dtype, tuple(side.shape)) for side in manifest.side]
    outputs = [
        Slot(output.name, output.dtype, _spanned(end.outputs[number].shape for end in ends))
        for number, output in enumerate(manifest.outputs)
    ]
    return Face(digest, manifest, place, most, tuple(inputs), tuple(outputs), tuple(pixels))


def plain(manifest: Manifest) -> int | None:
    """The place of the plan by which JPEG files or, at the widest, float32 features may come."""
    served = [(n, plan) for n, plan in enumerate(manifest.plans) if plan.place == "cloud"]
    pictured = [place for place, plan in served if manifest.pictured(plan)]
    if pictured:
        return pictured[0]
    raw = [(manifest.width(plan).elements, place) for place, plan in served if _raw(manifest, plan)]
    return max(raw, default=(0, None))[1]


def manifest_side(manifest: Manifest) -> int:
    """Bytes of what lies beside a row's features."""
    return sum(side.bytes for side in manifest.side) + 16 * (manifest.sizes is not None)


def _raw(manifest: Manifest, plan: Plan) -> bool:
    spec = manifest.codecs[plan.codec or ""]
    return spec.coder == "raw" and spec.bits == 32


def _spanned(shapes: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Two shapes as one, -1 where they differ."""
    return tuple(a if a == b else -1 for a, b in zip(*shapes, strict=True))
