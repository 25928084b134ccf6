"""The model directory: what model.toml says, and the proof that the files are those it names."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from splitrt.errors import ModelError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = "model.toml"
LARGEST_MANIFEST = 4 << 20
LARGEST_FILE = LARGEST_FOLDER = 4 << 30
LARGEST_TENSOR = 1 << 28  # elements
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Size = Annotated[int, Field(ge=1, le=LARGEST_TENSOR)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A table of model.toml: complete, closed to unknown keys, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Provenance(Part):
    """Where the model comes from."""

    recipe: str = ""
    data: str = ""
    seed: int = 0
    trained_by: str = ""
    licence: str = ""


class Input(Part):
    """What the device takes: a uint8 picture [H, W, C], or the model's own tensor."""

    name: str
    kind: Literal["pixels", "tensor"]
    shape: list[Size]
    dtype: Literal["uint8", "float32", "int64"]
    mean: list[float] = []
    std: list[float] = []


class CutRecord(Part):
    """Where the model was parted, and the shape of what crosses (without batch)."""

    after: str
    fingerprint: str
    shape: list[Size]
    head_macs: int = 0
    whole_macs: int = 0
    channels: int | None = None


class Output(Part):
    """One tensor of the answer, without batch."""

    name: str
    shape: list[Size]
    dtype: Literal["float32", "float16", "int64"] = "float32"


class CodecSpec(Part):
    """One rung of the ladder: how what crosses becomes bytes."""

    bits: Literal[32, 16, 8, 4, 2, 1]
    coder: Literal["raw", "zstd"]
    dictionary: str | None = None


class Plan(Part):
    """One way a frame may go, with its record on held-out frames."""

    name: str
    place: Literal["cloud", "edge"]
    codec: str | None = None
    bytes_mean: float | None = None
    bytes_p50: int | None = None
    bytes_p95: int | None = None
    accuracy: Share | None = None
    head_macs: int | None = None


class ExitRecord(Part):
    """The local exit: which output it answers for, and what held-out frames said of it."""

    output: str
    temperature: Annotated[float, Field(gt=0)] = 1.0
    threshold: Share | None = None
    accuracy: Share | None = None
    share: Share | None = None
    sure_accuracy: Share | None = None
    ece: Share | None = None


class Manifest(Part):
    """model.toml. Edge and server agree when `digest` (its sha256) is the same."""

    format: Literal[1]
    name: str
    provenance: Provenance = Provenance()
    input: Input
    cut: CutRecord
    outputs: Annotated[list[Output], Field(min_length=1, max_length=64)]
    labels: list[str] | None = None
    exit: ExitRecord | None = None
    codecs: dict[str, CodecSpec]
    plans: Annotated[list[Plan], Field(min_length=1, max_length=256)]
    default_plan: str
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]

    _digest: bytes = PrivateAttr(b"")

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """The manifest of a model directory; ModelError if it is missing or wrong."""
        path = Path(folder) / NAME
        if not path.is_file():
            raise ModelError(
                f"{folder} has no {NAME}\nhelp: name a folder that export() or `split` wrote"
            )
        if path.stat().st_size > LARGEST_MANIFEST:
            raise ModelError(f"{path} is larger than {LARGEST_MANIFEST >> 20} MiB")
        raw = path.read_bytes()
        try:
            manifest = cls.model_validate(tomllib.loads(raw.decode()))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} is not TOML: {error}") from error
        except ValidationError as error:
            raise ModelError(f"{path}: {_first(error)}") from error
        manifest._digest = hashlib.sha256(raw).digest()
        return manifest

    @property
    def digest(self) -> bytes:
        """sha256 of model.toml as it lies on disk: 32 bytes."""
        return self._digest

    @cached_property
    def elements(self) -> int:
        """How many numbers cross."""
        return math.prod(self.cut.shape)

    def plan(self, name: str) -> Plan:
        """The plan of that name."""
        return next(plan for plan in self.plans if plan.name == name)

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        names = [plan.name for plan in self.plans]
        tensors = [self.input.shape, self.cut.shape, *(output.shape for output in self.outputs)]
        for wrong, message in (
            (len(set(names)) < len(names), "two plans have one name"),
            (self.default_plan not in names, f"default_plan {self.default_plan!r} is no plan"),
            (any(math.prod(shape) > LARGEST_TENSOR for shape in tensors), "a tensor is too large"),
            (any(not PLAIN.fullmatch(file) for file in self.files), "a file's name is not plain"),
            (NAME in self.files, f"{NAME} cannot name itself"),
            ("head.onnx" not in self.files, "files has no head.onnx"),
        ):
            if wrong:
                raise ValueError(message)
        for plan in self.plans:
            if plan.place == "cloud" and plan.codec not in self.codecs:
                raise ValueError(f"plan {plan.name!r} has no codec {plan.codec!r}")
            if plan.place == "edge" and plan.name not in self._answered_here():
                raise ValueError(f"plan {plan.name!r}: nothing on the device answers it")
        if self.exit is not None:
            if not any(plan.place == "edge" and plan.name == "exit" for plan in self.plans):
                raise ValueError("exit has no plan 'exit' at the edge")
            if self.exit.output not in [output.name for output in self.outputs]:
                raise ValueError(f"exit answers for {self.exit.output!r}, not in outputs")
        for name, codec in self.codecs.items():
            if codec.bits <= 8 and "scales.safetensors" not in self.files:
                raise ValueError(f"codec {name!r} needs scales.safetensors")
            if codec.dictionary is not None and codec.dictionary not in self.files:
                raise ValueError(f"codec {name!r} names {codec.dictionary!r}, not in files")
        return self

    def _answered_here(self) -> set[str]:
        """The plans that need no server: the exit, and the tail as ONNX."""
        exits = {"exit"} if self.exit is not None else set()
        return exits | ({"local"} if "tail.onnx" in self.files else set())


def verified(folder: str | Path, manifest: Manifest, name: str) -> Path:
    """The path of a file the manifest names, after its sha256 was checked."""
    if name not in manifest.files:
        raise ModelError(f"{folder} has no {name}\nhelp: export the model again")
    path = Path(folder) / name
    if path.is_symlink() or not path.is_file():
        raise ModelError(f"{path} is missing or not a plain file\nhelp: copy the whole directory")
    if path.stat().st_size > LARGEST_FILE:
        raise ModelError(f"{path} is larger than {LARGEST_FILE >> 30} GiB")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != manifest.files[name]:
        raise ModelError(
            f"{path} has sha256 {digest.hexdigest()[:12]}…, wanted {manifest.files[name][:12]}…\n"
            "help: it was changed after export; copy the directory again"
        )
    return path


def prove(folder: str | Path) -> Manifest:
    """Check the whole directory: every file's hash, and that nothing else lies there."""
    manifest = Manifest.load(folder)
    extra = {path.name for path in Path(folder).iterdir()} - {NAME, *manifest.files}
    if extra:
        raise ModelError(f"{folder} holds {min(extra)!r}, which {NAME} does not name")
    paths = [Path(folder) / name for name in (NAME, *manifest.files)]
    if paths[0].is_symlink():
        raise ModelError(f"{paths[0]} is a link\nhelp: copy the whole directory")
    if sum(path.lstat().st_size for path in paths if path.exists()) > LARGEST_FOLDER:
        raise ModelError(f"{folder} is larger than {LARGEST_FOLDER >> 30} GiB")
    for name in manifest.files:
        verified(folder, manifest, name)
    return manifest


def _first(error: ValidationError) -> str:
    found: Any = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"])
    return f"{place}: {found['msg']}" if place else found["msg"]
