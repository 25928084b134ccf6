"""A model as clients of the Open Inference Protocol see it: tensors in and out, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitrt.cloud import oip
from splitrt.cloud.tail import Tail
from splitrt.core.manifest import Manifest, Plan
from splitrt.core.packet import ENVELOPE, told
from splitrt.errors import PacketError
from splitrt.wire import tail_pb2 as wire

VERSION = "1"
SIZE = "picture.size"  # height and width as the head took them; no side input has a dot
PREFIX = 4  # bytes before each element of a BYTES tensor that say how long it is
DATATYPES = {"bytes": "BYTES", "float32": "FP32", "float16": "FP16", "int64": "INT64"}
TYPES = {"bytes": "STRING", "float32": "FP32", "float16": "FP16", "int64": "INT64"}
CONTENTS = {"bytes": "bytes_contents", "float32": "fp32_contents", "int64": "int64_contents"}
ALIEN = {  # parameters that change what a request means
    "shared_memory_region": "shared memory",
    "classification": "classification",
    "sequence_id": "a sequence",
}


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
    float32. plan: its place in the manifest.  most: rows of a request.
    """

    digest: bytes
    manifest: Manifest
    plan: int
    most: int
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]


def faces(tail: Tail, most: int) -> dict[str, Face]:
    """The models by their names; those that take neither JPEG nor float32 are left out."""
    found: dict[str, Face] = {}
    for digest, branch in tail.branches.items():
        place = plain(branch.manifest)
        if place is not None:
            found.setdefault(branch.manifest.name, face(digest, branch.manifest, place, most, tail))
    return found


def face(digest: bytes, manifest: Manifest, place: int, most: int, tail: Tail) -> Face:
    """One model's; of features a request has as many rows as a message has room for."""
    plan = manifest.plans[place]
    corners = [None] * 2
    if manifest.sizes is not None:
        corners = [manifest.sizes.smallest, manifest.sizes.largest]
    ends = [manifest.at(size) for size in corners]
    inputs = [Slot(manifest.input.name, "bytes", (1,))]
    if not manifest.pictured(plan):
        inputs = [Slot("features", "float32", _spanned(end.crossing(plan) for end in ends))]
        row = tail.codecs[plan.name].limit + manifest_side(manifest)
        most = max(1, min(most, (tail.largest_frame - ENVELOPE) // row))
    if manifest.sizes is not None:
        inputs.append(Slot(SIZE, "int64", (2,)))
    inputs += [Slot(side.name, side.dtype, tuple(side.shape)) for side in manifest.side]
    outputs = [
        Slot(output.name, output.dtype, _spanned(end.outputs[number].shape for end in ends))
        for number, output in enumerate(manifest.outputs)
    ]
    return Face(digest, manifest, place, most, tuple(inputs), tuple(outputs))


def plain(manifest: Manifest) -> int | None:
    """The place of the plan by which JPEG files or, at the widest, float32 features may come."""
    served = [(n, plan) for n, plan in enumerate(manifest.plans) if plan.place == "cloud"]
    pictured = [place for place, plan in served if manifest.pictured(plan)]
    if pictured:
        return pictured[0]
    raw = [(manifest.width(plan).elements, place) for place, plan in served if _raw(manifest, plan)]
    return max(raw, default=(0, None))[1]


def frames(face: Face, request: Any, slack_us: int) -> list[wire.Frame]:
    """A request's rows as frames; PacketError if it is not what the face shows."""
    rows = _rows(face, request)
    sizes: Sequence[Any] = [()] * len(next(iter(rows.values())))
    if face.manifest.sizes is not None:
        sizes = [_size(face, row) for row in rows[SIZE]]
        if len(set(sizes)) > 1:
            raise PacketError("pictures of several sizes in one request\nhelp: a request for each")
        _fits(face, request, sizes[0])
    return [
        wire.Frame(
            seq=number + 1,
            plan=face.plan,
            payload=rows[face.inputs[0].name][number],
            slack_us=slack_us,
            size=size,
            side=[rows[side.name][number] for side in face.manifest.side],
        )
        for number, size in enumerate(sizes)
    ]


def wanted(face: Face, request: Any) -> list[int]:
    """The places of the outputs that a request asks for; PacketError if one is none."""
    _no_aliens(request.parameters)
    if not request.outputs:
        return list(range(len(face.outputs)))
    names = [slot.name for slot in face.outputs]
    found = []
    for output in request.outputs:
        _no_aliens(output.parameters)
        if output.name not in names or len(found) == len(names):
            raise PacketError(f"output {_said(output.name)}\nhelp: each of {names} once at most")
        found.append(names.index(output.name))
    return found


def response(face: Face, request: Any, places: list[int], answers: Sequence[wire.Answer]) -> Any:
    """The answers of all rows as one ModelInferResponse."""
    made = oip.message("ModelInferResponse")(
        model_name=request.model_name, model_version=VERSION, id=request.id
    )
    for place in places:
        slot, tensors = face.outputs[place], [answer.outputs[place] for answer in answers]
        shape = [len(tensors), *tensors[0].shape]
        made.outputs.add(name=slot.name, datatype=slot.datatype, shape=shape)
        made.raw_output_contents.append(b"".join(tensor.data for tensor in tensors))
    return made


def manifest_side(manifest: Manifest) -> int:
    """Bytes of what lies beside a row's features."""
    return sum(side.bytes for side in manifest.side) + 16 * (manifest.sizes is not None)


def _raw(manifest: Manifest, plan: Plan) -> bool:
    spec = manifest.codecs[plan.codec or ""]
    return spec.coder == "raw" and spec.bits == 32


def _spanned(shapes: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Two shapes as one, -1 where they differ."""
    return tuple(a if a == b else -1 for a, b in zip(*shapes, strict=True))


def _rows(face: Face, request: Any) -> dict[str, list[bytes]]:
    """Each input's rows as bytes; the same number of each."""
    names = [slot.name for slot in face.inputs]
    raws: Sequence[bytes | None] = request.raw_input_contents
    if len(request.inputs) != len(names):
        raise PacketError(f"{len(request.inputs)} inputs\nhelp: this model takes {names}")
    if not raws:
        raws = [None] * len(names)
    if len(raws) != len(names):
        raise PacketError(f"{len(raws)} raw contents, {len(names)} or none wanted")
    given = {one.name: (one, raw) for one, raw in zip(request.inputs, raws, strict=True)}
    if sorted(given) != sorted(names):
        raise PacketError(f"inputs {_said(', '.join(given))}\nhelp: this model takes {names}")
    rows = {slot.name: _cut(slot, *given[slot.name], face.most) for slot in face.inputs}
    if len({len(several) for several in rows.values()}) > 1:
        raise PacketError("inputs of different numbers of rows")
    return rows


def _cut(slot: Slot, tensor: Any, raw: bytes | None, most: int) -> list[bytes]:
    """One input's rows. Nothing is made before its shape and its bytes agree."""
    _no_aliens(tensor.parameters)
    shape = tensor.shape[: len(slot.dims) + 2]
    wanted = f"{slot.datatype} {[-1, *slot.dims]} of at most {most} rows"
    fits = len(shape) == 1 + len(slot.dims) and all(
        found == dim or (dim == -1 and found > 0)
        for found, dim in zip(shape[1:], slot.dims, strict=True)
    )
    if tensor.datatype != slot.datatype or not fits or not 1 <= shape[0] <= most:
        found = f"{_said(tensor.datatype)} {list(shape)}"
        raise PacketError(f"input {slot.name!r} is {found}\nhelp: {wanted}, the first for the rows")
    if raw is not None and tensor.HasField("contents"):
        raise PacketError(f"input {slot.name!r} has its contents twice, once of them raw")
    if slot.dtype == "bytes":
        parts = _strings(raw) if raw is not None else list(_typed(slot, tensor.contents))
        if len(parts) != shape[0]:
            raise PacketError(f"input {slot.name!r} has {len(parts)} elements, {shape[0]} wanted")
        return parts
    kind = np.dtype(slot.dtype).newbyteorder("<")
    count = math.prod(shape)
    values = [] if raw is not None else _typed(slot, tensor.contents)
    size = len(raw) if raw is not None else len(values) * kind.itemsize
    if size != count * kind.itemsize:
        raise PacketError(f"input {slot.name!r} has {size} bytes, {count * kind.itemsize} wanted")
    packed = raw if raw is not None else np.fromiter(values, kind, count).tobytes()
    step = size // shape[0]
    return [packed[start : start + step] for start in range(0, size, step)]


def _typed(slot: Slot, contents: Any) -> Sequence[Any]:
    """The elements in the field of the slot's type; PacketError if there are any in another."""
    if any(field.name != CONTENTS[slot.dtype] for field, _ in contents.ListFields()):
        raise PacketError(f"input {slot.name!r} has other contents than {CONTENTS[slot.dtype]}")
    return getattr(contents, CONTENTS[slot.dtype])


def _strings(raw: bytes) -> list[bytes]:
    """The elements of a BYTES tensor, each after its length; PacketError if they do not fit."""
    found, place = [], 0
    while place < len(raw):
        length = int.from_bytes(raw[place : place + PREFIX], "little")
        place += PREFIX + length
        if place > len(raw):
            raise PacketError("a BYTES element that ends after its tensor")
        found.append(raw[place - length : place])
    return found


def _size(face: Face, row: bytes) -> tuple[int, int]:
    """A row's picture size; PacketError unless the manifest allows it."""
    height, width = np.frombuffer(row, "<i8").tolist()
    face.manifest.at((height, width))
    return height, width


def _fits(face: Face, request: Any, size: tuple[int, int]) -> None:
    """PacketError unless features are those of a picture of that size."""
    manifest = face.manifest.at(size)
    if manifest.pictured(manifest.plans[face.plan]):
        return
    shape = manifest.crossing(manifest.plans[face.plan])
    found = next(list(one.shape[1:]) for one in request.inputs if one.name == "features")
    if found != shape:
        raise PacketError(f"features {found} of a picture {list(size)}, {shape} wanted")


def _no_aliens(parameters: Any) -> None:
    for name, words in ALIEN.items():
        if name in parameters:
            raise PacketError(f"{words} is not offered here")


def _said(words: str) -> str:
    """A peer's words, quoted and short."""
    return repr(told(words[:100]))
