"""What a client of the Open Inference Protocol asks: its tensors, checked, as rows; the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from splitrt.cloud import oip
from splitrt.cloud.face import SIZE, VERSION, Face, Slot
from splitrt.core.packet import told
from splitrt.errors import PacketError
from splitrt.wire import tail_pb2 as wire

PREFIX = 4  # bytes before each element of a BYTES tensor that say how long it is
CONTENTS = {
    "bytes": "bytes_contents", "uint8": "uint_contents", "float32": "fp32_contents",
    "int64": "int64_contents",
}  # fmt: skip
ALIEN = {  # parameters that change what a request means
    "shared_memory_region": "shared memory",
    "classification": "classification",
    "sequence_id": "a sequence",
}


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


def opened(face: Face, request: Any) -> bool:
    """Whether a request brings pixels, not files."""
    return any(_pixels(face, one) for one in request.inputs)


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
    slots = [(*_pixels(face, given[one.name][0]), one)[0] for one in face.inputs]
    rows = {slot.name: _cut(slot, *given[slot.name], face) for slot in slots}
    if len({len(several) for several in rows.values()}) > 1:
        raise PacketError("inputs of different numbers of rows")
    return rows


def _pixels(face: Face, tensor: Any) -> list[Slot]:
    """What a tensor is, if it brings pixels in the file's place."""
    found = tensor.name, tensor.datatype
    return [slot for slot in face.pixels if found == (slot.name, slot.datatype)]


def _cut(slot: Slot, tensor: Any, raw: bytes | None, face: Face) -> list[bytes]:
    """One input's rows. Nothing is made before its shape and its bytes agree."""
    _no_aliens(tensor.parameters)
    shape = tensor.shape[: len(slot.dims) + 2]
    either = [slot] if slot.dtype != "bytes" else [slot, *face.pixels]
    wanted = " or ".join(f"{one.datatype} {[-1, *one.dims]}" for one in either)
    fits = len(shape) == 1 + len(slot.dims) and all(
        found == dim or (dim == -1 and found > 0)
        for found, dim in zip(shape[1:], slot.dims, strict=True)
    )
    if tensor.datatype != slot.datatype or not fits or not 1 <= shape[0] <= face.most:
        found = f"{_said(tensor.datatype)} {list(shape)}"
        rows = f"the first for the rows, at most {face.most}"
        raise PacketError(f"input {slot.name!r} is {found}\nhelp: {wanted}, {rows}")
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
    if kind.itemsize == 1 and max(values, default=0) > 255:
        raise PacketError(f"input {slot.name!r} has an element of more than 255")
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
    """PacketError unless features or pixels are those of a picture of that size."""
    manifest = face.manifest.at(size)
    if manifest.pictured(manifest.plans[face.plan]) and not opened(face, request):
        return
    name, shape = face.inputs[0].name, manifest.crossing(manifest.plans[face.plan])
    found = next(list(one.shape[1:]) for one in request.inputs if one.name == name)
    if found != shape:
        raise PacketError(f"{name} {found} of a picture {list(size)}, {shape} wanted")


def _no_aliens(parameters: Any) -> None:
    for name, words in ALIEN.items():
        if name in parameters:
            raise PacketError(f"{words} is not offered here")


def _said(words: str) -> str:
    """A peer's words, quoted and short."""
    return repr(told(words[:100]))
