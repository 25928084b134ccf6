"""The device's half in ONNX Runtime: pixels in; features, codes and the local exit out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from splitrt.core.manifest import TAIL, Manifest, Width, verified
from splitrt.edge.capture import fit
from splitrt.edge.place import place
from splitrt.errors import ModelError, PacketError

ELSEWHERE = "session.model_external_initializers_file_folder_path"
WARM_UPS = 3  # first frames take up to ten times as long
FADE = 0.9  # of the longest run so far, for each further one


class Head:
    """One width's head: `head(array, ["q4", "exit"])` gives those outputs, without batch."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        width: Width,
        *,
        threads: int | None = None,
        provider: str = "CPU",
    ) -> None:
        self.manifest, self.input, self.width = manifest, manifest.input, width
        self.session = session(verified(folder, manifest, width.head), threads, provider)
        self.provider = self.session.get_providers()[0]
        self.outputs = [output.name for output in self.session.get_outputs()]
        blank = np.zeros(self.input.shape, self.input.dtype)
        for _ in range(WARM_UPS):
            started = time.perf_counter()
            self(blank, self.outputs)
            self.seconds = time.perf_counter() - started  # of the last, as a first guess

    def prepare(self, array: np.ndarray) -> np.ndarray:
        """The input as the head takes it: pictures are resized; PacketError for anything else.

        Pictures of a model that takes several sizes are treated as its manifest says.
        """
        if self.input.kind == "pixels" and self.manifest.sizes is not None:
            return place(array, self.manifest.sizes)
        if self.input.kind == "pixels":
            height, width, _ = self.input.shape
            return fit(array, height, width)
        wanted = self.input.shape
        if self.manifest.sizes is not None and array.ndim == len(wanted):
            wanted = self.manifest.at(self.size(array)).input.shape
        if list(array.shape) != wanted or array.dtype != self.input.dtype:
            raise PacketError(
                f"input {self.input.name!r} is {array.dtype} {list(array.shape)}\n"
                f"help: it should be {self.input.dtype} {wanted}, without batch"
            )
        return array

    def size(self, prepared: np.ndarray) -> tuple[int, int] | None:
        """(height, width) of a picture, where the model takes several sizes."""
        if self.manifest.sizes is None:
            return None
        first = 0 if self.input.kind == "pixels" else 1
        return prepared.shape[first], prepared.shape[first + 1]

    def __call__(self, prepared: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        arrays = self.session.run(list(names), {self.input.name: prepared[None]})
        return {name: array[0] for name, array in zip(names, arrays, strict=True)}


class LocalTail:
    """tail.onnx: the server's half on the device, for one that can afford it.

    seconds: of a run, the longest lately.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int | None = None) -> None:
        self.names = [output.name for output in manifest.outputs]
        self.sides = manifest.side
        self.session = session(verified(folder, manifest, TAIL), threads, "CPU")
        blank = np.zeros(manifest.cut.shape, np.float32)
        sides = [np.ones(side.shape, side.dtype) for side in manifest.side]
        for _ in range(WARM_UPS):
            self.seconds = 0.0
            self(blank, sides)

    def __call__(
        self, features: np.ndarray, sides: Sequence[np.ndarray] = ()
    ) -> dict[str, np.ndarray]:
        pairs = zip(self.sides, sides, strict=True)
        beside = {side.name: array[None] for side, array in pairs}
        started = time.perf_counter()
        arrays = self.session.run(self.names, {"features": features[None], **beside})
        self.seconds = max(time.perf_counter() - started, FADE * self.seconds)
        return {name: array[0] for name, array in zip(self.names, arrays, strict=True)}


def session(
    path: Path, threads: int | None, provider: str, *, weights: str | None = None
) -> ort.InferenceSession:
    """A session that does not spin while idle (60 % of a core at 10 fps) on one provider.

    weights: the file beside it, already verified, in which its larger weights lie; they are mapped.
    ModelError if the provider is missing: ONNX Runtime itself would fall back without a word.
    """
    # Weights in files of their own have no hash in the manifest: from bytes, and looked for where
    # nothing can be, they are refused.
    graph, folder = path.read_bytes(), Path(os.devnull)
    if weights is not None:
        only(graph, weights, path.name)
        folder = path.parent.resolve()
    return opened(graph, options(threads, folder), path.name, provider)


def options(threads: int | None, weights: Path) -> ort.SessionOptions:
    """For a session that does not spin while idle. weights: the folder in which they are mapped."""
    found = ort.SessionOptions()
    found.intra_op_num_threads = threads or max(1, (os.cpu_count() or 2) - 1)
    found.inter_op_num_threads = 1
    found.add_session_config_entry("session.intra_op.allow_spinning", "0")
    found.add_session_config_entry(ELSEWHERE, str(weights))
    found.log_severity_level = 3
    return found


def opened(
    graph: bytes, given: ort.SessionOptions, name: str, provider: str = "CPU"
) -> ort.InferenceSession:
    """A session of a graph's bytes; ModelError, with the graph's name, if it does not load."""
    wanted = f"{provider}ExecutionProvider"
    if wanted not in ort.get_available_providers():
        found = ", ".join(ort.get_available_providers())
        raise ModelError(f"ONNX Runtime has no {wanted}, only {found}\nhelp: install its build")
    try:
        return ort.InferenceSession(graph, given, providers=[wanted])
    except Exception as error:  # ONNX Runtime's own tree starts at RuntimeError and Exception
        raise ModelError(f"{name} does not load: {error}") from error


def only(graph: bytes, weights: str, name: str) -> None:
    """ModelError if a graph may open another file than that of its weights.

    A tensor elsewhere says so by the word location, whole in its bytes; each time it must be an
    entry external_data{key: location, value: weights} of protobuf, and no more.
    """
    entry = b"\x0a\x08location\x12" + bytes([len(weights)]) + weights.encode()
    whole = b"j" + bytes([len(entry)]) + entry  # field 13
    if graph.count(b"location") != graph.count(whole):
        raise ModelError(f"{name} names files other than {weights}\nhelp: split the model again")
