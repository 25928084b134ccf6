"""One graph of a shard in ONNX Runtime: loaded from verified files, run over arrays bound once.

Weights that need no packing (fp32, fp16) may be mapped and bound as inputs: then all layers share
a session, and to load a block is to map its file and touch the pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from splitrt.core.manifest import Filed, verified
from splitrt.edge.decoder import LARGEST_WEIGHTS
from splitrt.edge.head import only, opened, options
from splitrt.errors import ModelError

LARGEST_HEADER = 1 << 20  # bytes
LARGE = -3  # mallopt's M_MMAP_THRESHOLD
KEPT = 8  # numbers of rows whose arrays are kept
KINDS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Where a block reads its rows [T, width] and writes its own, and both for ONNX Runtime."""

    x: np.ndarray
    y: np.ndarray
    takes: ort.OrtValue
    gives: ort.OrtValue

    @classmethod
    def of(cls, count: int, wide: int, width: int) -> Rows:
        """`count` rows of `wide` numbers in, of `width` numbers out."""
        x, y = np.zeros((count, wide), np.float32), np.zeros((count, width), np.float32)
        return cls(x, y, shared(x), shared(y))


class Block:
    """A loaded graph; its first input and output are rows. bound: its other inputs."""

    def __init__(
        self,
        session: ort.InferenceSession,
        bound: Mapping[str, ort.OrtValue],
        held: object = None,
    ) -> None:
        self._session, self._binding = session, session.io_binding()
        # ONNX Runtime borrows the arrays behind what is bound: they live as long as the block.
        self._bound, self._held = dict(bound), held
        self._takes, self._gives = session.get_inputs()[0].name, session.get_outputs()[0].name
        for name, value in self._bound.items():
            self._binding.bind_ortvalue_input(name, value)
            if name.startswith(("keys.", "values.")):
                self._binding.bind_ortvalue_output(f"{name}.after", value)
        self._rows: Rows | None = None

    def run(self, rows: Rows) -> None:
        """rows.x through the graph into rows.y."""
        if rows is not self._rows:
            self._binding.bind_ortvalue_input(self._takes, rows.takes)
            self._binding.bind_ortvalue_output(self._gives, rows.gives)
            self._rows = rows
        self._session.run_with_iobinding(self._binding)


@dataclass(slots=True, eq=False)
class Shelf:
    """A device's folder: graphs and weights, each verified when it is first named.

    threads: of ONNX Runtime.  bare: blocks are mapped and bound.
    """

    folder: Path
    files: Filed
    threads: int
    bare: bool
    _graphs: dict[str, bytes] = field(default_factory=dict)
    _sessions: dict[str, ort.InferenceSession] = field(default_factory=dict)

    def name(self, graph: str, bare: str) -> None:
        """Verify what a block needs; ModelError if it is missing or not what was split."""
        weights = weighed(graph)
        verified(self.folder, self.files, weights, largest=LARGEST_WEIGHTS)
        if self.bare and bare not in self._sessions:
            path = verified(self.folder, self.files, bare)
            self._sessions[bare] = self._opened(path.read_bytes(), path)
        elif not self.bare:
            path = verified(self.folder, self.files, graph)
            self._graphs[graph] = path.read_bytes()
            only(self._graphs[graph], weights, path.name)

    def load(self, graph: str, bare: str, bound: Mapping[str, ort.OrtValue]) -> Block:
        """A block of a graph that was named."""
        path = self.folder / graph
        try:
            if not self.bare:
                ahead(self.folder / weighed(graph))
                folder = self.folder.resolve()
                return Block(self._opened(self._graphs[graph], path, folder), bound)
            tensors = mapped(self.folder / weighed(graph))
            values = {name: shared(tensor) for name, tensor in tensors.items()}
            return Block(self._sessions[bare], {**bound, **values}, tensors)
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:  # of libraries
            told = f"{path} does not fit: {error}\nhelp: split the model again"
            raise ModelError(told) from error

    def _opened(
        self, graph: bytes, path: Path, weights: Path = Path(os.devnull)
    ) -> ort.InferenceSession:
        given = options(self.threads, weights)
        given.enable_cpu_mem_arena = False  # dozens of sessions would keep one each
        return opened(graph, given, path.name)


def weighed(graph: str) -> str:
    """The file of a graph's weights."""
    return str(Path(graph).with_suffix(".bin"))


def thrifty() -> None:
    """Have glibc give large blocks back as they are freed: it would keep as much as a window."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(LARGE, 1 << 20)


def ahead(path: Path) -> None:
    """Have the system read a file that is needed soon; no more than a hint."""
    with contextlib.suppress(OSError, AttributeError), path.open("rb") as file:  # Linux
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def mapped(path: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a safetensors file, mapped, all pages read.

    Those of fp16 are widened, into memory of their own. ModelError if the file contradicts itself.
    """
    ahead(path)
    with path.open("rb") as file:
        whole = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)
    whole[:: mmap.PAGESIZE].max()  # whoever runs the block finds them there
    found = layout(path)
    narrow = any(kind == "F16" for kind, _, _ in found.values())  # then nothing keeps the map
    return {
        name: whole[place : place + KINDS[kind].itemsize * math.prod(shape)]
        .view(KINDS[kind])
        .reshape(shape)
        .astype(np.float32, copy=narrow)
        for name, (kind, shape, place) in found.items()
    }


def layout(path: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Each tensor of a safetensors file: dtype, shape, and its place in the file, in bytes.

    ModelError if the file contradicts itself.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            said = json.loads(file.read(min(size, LARGEST_HEADER)))
        return {
            name: (str(one["dtype"]), tuple(map(int, one["shape"])), 8 + size + int(begin))
            for name, one in said.items()
            for begin in one["data_offsets"][:1]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is no safetensors file: {error}") from error


def shared(array: np.ndarray) -> ort.OrtValue:
    """The array as ONNX Runtime takes it, in the same memory."""
    return ort.OrtValue.ortvalue_from_numpy(array)
