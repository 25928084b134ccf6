"""The model directory: what model.toml says, and the proof that the files are those it names."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from splitrt.core.hashed import hashed
from splitrt.core.layouts import Layout
from splitrt.core.side import LARGEST as LARGEST_SIDE
from splitrt.core.side import Side
from splitrt.core.sizes import Growth
from splitrt.errors import ModelError, ModelMismatch, PacketError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = "model.toml"
TAIL = "tail.onnx"
SHARED = ("scales.safetensors", "tables.safetensors")
LARGEST_MANIFEST = 4 << 20
LARGEST_FILE = LARGEST_FOLDER = 4 << 30
LARGEST_TENSOR = 1 << 28  # elements
ROUNDED = 0.01  # by which shares may miss 1
MOST_DOTS = 100  # in a line: tomllib takes time and memory by the square of a key's parts
KINDS = {  # of model.toml, that are read elsewhere: what a directory then holds, and what runs it
    "language": ("a language model", "`splitrt chat` and `splitrt api` run it, or Chat in Python"),
    "star": (
        "a star, which no server has: its devices run it together",
        "`splitrt star` on the hub, and on every other device `splitrt star --join HUB`",
    ),
}
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Size = Annotated[int, Field(ge=1, le=LARGEST_TENSOR)]
Shape = Annotated[list[Size], Field(max_length=8)]
Share = Annotated[float, Field(ge=0, le=1)]
Bins = Annotated[list[Share], Field(max_length=100)]


class Part(BaseModel):
    """A table of model.toml: complete, closed to unknown keys, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound="Signed")


class Signed(Part):
    """A whole model.toml, and the sha256 by which two machines agree that theirs is the same."""

    _digest: bytes = PrivateAttr(b"")

    @classmethod
    def signed(cls: type[S], path: Path, text: bytes, tables: dict[str, Any]) -> S:
        """What the tables of that text say; ModelError, which names `path`, if they are wrong."""
        try:
            found = cls.model_validate(tables)
        except ValidationError as error:
            raise ModelError(f"{path}: {first(error)}") from error
        found._digest = hashlib.sha256(text).digest()
        return found

    @property
    def digest(self) -> bytes:
        """sha256 of model.toml as it lies on disk: 32 bytes."""
        return self._digest


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
    shape: Shape
    dtype: Literal["uint8", "float32", "int64"]
    mean: list[float] = []
    std: list[float] = []


class CutRecord(Part):
    """Where the model was parted, and the shape of what crosses (without batch)."""

    after: str
    fingerprint: str
    shape: Shape
    whole_macs: int = 0
    channels: int | None = None


class Output(Part):
    """One tensor of the answer, without batch."""

    name: str
    shape: Shape
    dtype: Literal["float32", "float16", "int64"] = "float32"


class CodecSpec(Part):
    """One rung of the ladder: how what crosses, or with jpeg the picture itself, becomes bytes."""

    bits: Literal[32, 16, 8, 4, 2, 1]
    coder: Literal["raw", "zstd", "deflate", "ans", "jpeg"]
    quality: Annotated[int, Field(ge=1, le=95)] | None = None  # of jpeg


class Plan(Part):
    """One way a frame may go, with its record on held-out frames: bytes of the payload, accuracy.

    Where those frames had no labels, accuracy is agreement with the whole model. bins: in the
    cloud, accuracy in each bin of the confidence of its width's exit; see ExitRecord.

    In the cloud: the head of `width`, then `codec`, zstd with `dictionary` where there is one; by
    jpeg the picture itself goes, and of the head only the exit, which stands in, is run.
    At the edge: the exit of `width`, or without one the whole tail.
    """

    name: str
    place: Literal["cloud", "edge"]
    width: str | None = None
    codec: str | None = None
    dictionary: str | None = None
    bytes_mean: float | None = None
    bytes_p50: int | None = None
    bytes_p95: int | None = None
    accuracy: Share | None = None
    bins: Bins = []
    head_macs: int | None = None

    @property
    def exits(self) -> bool:
        """Whether the local exit answers."""
        return self.place == "edge" and self.width is not None


class ExitStep(Part):
    """One threshold on held-out frames: what it keeps here and what that is worth."""

    threshold: float
    share: Share  # of frames that are answered here
    sure_accuracy: Share  # of the exit on those
    accuracy: Share  # of all: the exit on those, the default plan on the others


class ExitRecord(Part):
    """The local exit: which output it answers for, and what held-out frames said of it.

    A frame is sure when its `measure` reaches `threshold`: the best class's probability, its
    lead over the second, or 1 minus the entropy as a share of the largest possible.

    bins: accuracy in each bin of the calibrated probability of the best class, surest last; shares:
    of the frames in it; edges: between one bin and the next, which begins there.
    """

    output: str
    temperature: Annotated[float, Field(gt=0)] = 1.0
    measure: Literal["confidence", "margin", "entropy"] = "confidence"
    threshold: Share | None = None
    accuracy: Share | None = None
    share: Share | None = None
    sure_accuracy: Share | None = None
    ece: Share | None = None
    steps: Annotated[list[ExitStep], Field(max_length=100)] = []
    edges: Bins = []
    shares: Bins = []
    bins: Bins = []

    @model_validator(mode="after")
    def _binned(self) -> ExitRecord:
        if not self.bins and not self.shares and not self.edges:
            return self
        if not len(self.bins) == len(self.shares) == len(self.edges) + 1:
            found = f"{len(self.bins)} bins, {len(self.shares)} shares, {len(self.edges)} edges"
            raise ValueError(f"{found}; wanted as many bins as shares, one more than edges")
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("the edges of an exit's bins do not ascend")
        if abs(sum(self.shares) - 1) > ROUNDED:
            raise ValueError(f"the shares of an exit's bins sum to {sum(self.shares):.3f}, not 1")
        return self


class FilterRecord(Part):
    """The emptiness filter: a frame that scores below `threshold` holds nothing of interest."""

    interest: str = ""  # what it looks for, in words
    threshold: float
    recall: Share  # of frames of interest that pass, on held-out frames
    dropped: Share  # of the other frames


class Width(Part):
    """One of the heads: how many channels it sends and what it costs."""

    name: str
    shape: Shape  # of what crosses, without batch
    head: str  # its file
    head_macs: int = 0
    exit: ExitRecord | None = None
    filter: FilterRecord | None = None

    @property
    def elements(self) -> int:
        """How many numbers cross."""
        return math.prod(self.shape)


class Similar(Part):
    """When a picture counts as the last answered one, and what a held-out video said of it.

    threshold: largest `core.similar.change`, grey levels.  interval: one frame in so many is
    asked, or more.  agreement: re-used answers that were true.  share: frames that re-used one.
    """

    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    interval: Annotated[int, Field(ge=1)] = 30
    agreement: Share | None = None
    share: Share | None = None


class Manifest(Signed):
    """model.toml. Edge and server agree when `digest` (its sha256) is the same."""

    format: Literal[1]
    name: str
    provenance: Provenance = Provenance()
    input: Input
    cut: CutRecord
    sizes: Growth | None = None  # shapes are those of the largest picture
    side: Annotated[list[Side], Field(max_length=16)] = []
    outputs: Annotated[list[Output], Field(min_length=1, max_length=64)]
    labels: list[str] | None = None
    boxes: Layout | None = None  # of a detector
    widths: Annotated[list[Width], Field(min_length=1, max_length=16)]
    similar: Similar | None = None
    codecs: dict[str, CodecSpec]
    plans: Annotated[list[Plan], Field(min_length=1, max_length=256)]
    default_plan: str
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """The manifest of a model directory; ModelError if it is missing or wrong."""
        path, text = Path(folder) / NAME, raw(folder)
        tables = parsed(text, path)
        for kind, (what, way) in KINDS.items():
            if tables.get("kind") == kind:
                raise ModelError(f"{folder} holds {what}\nhelp: {way}")
        return cls.signed(path, text, tables)

    @cached_property
    def contract(self) -> bytes:
        """sha256 of all that decides a payload: tails whose contracts agree can share one."""
        shared = {name for name in self.files if name in SHARED}
        shared |= {width.head for width in self.widths}
        shared |= {plan.dictionary for plan in self.plans if plan.dictionary is not None}
        said = {
            "plans": [
                (place, plan.name, plan.width, plan.codec, plan.dictionary)
                for place, plan in enumerate(self.plans)
                if plan.place == "cloud"
            ],
            "codecs": {name: spec.model_dump() for name, spec in self.codecs.items()},
            "widths": [(width.name, width.shape, width.head) for width in self.widths],
            "side": [side.model_dump() for side in self.side],
            "crossing": None if self.sizes is None else (self.sizes.step, self.sizes.crossing),
            "files": {name: self.files[name] for name in sorted(shared)},
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()

    @property
    def exit(self) -> ExitRecord | None:
        """The widest head's exit."""
        return self.widths[-1].exit

    def at(self, size: tuple[int, int] | None) -> Manifest:
        """The manifest with the shapes for pictures of that (height, width); None: of one size.

        PacketError if there are no pictures of that size.
        """
        if self.sizes is None:
            if size is not None:
                raise PacketError("a frame with a size, and this model's have but one")
            return self
        if size is None:
            raise PacketError("a frame without the size of its picture")
        self.sizes.check(size)
        crossing, *outputs = self.sizes.shapes(size)
        return self.model_copy(
            update={
                "input": self.input.model_copy(update={"shape": self._entry(size)}),
                "cut": self.cut.model_copy(update={"shape": crossing}),
                "widths": [
                    width.model_copy(update={"shape": [width.shape[0], *crossing[1:]]})
                    for width in self.widths
                ],
                "outputs": [
                    output.model_copy(update={"shape": shape})
                    for output, shape in zip(self.outputs, outputs, strict=True)
                ],
            }
        )

    def _entry(self, size: tuple[int, int]) -> list[int]:
        """The input's shape for pictures of that size."""
        if self.input.kind == "pixels":
            return [*size, *self.input.shape[2:]]
        return [*self.input.shape[:1], *size]

    def plan(self, name: str) -> Plan:
        """The plan of that name."""
        return next(plan for plan in self.plans if plan.name == name)

    @property
    def local_plan(self) -> Plan | None:
        """The plan by which the whole tail answers on the device."""
        return next((plan for plan in self.plans if plan.place == "edge" and not plan.exits), None)

    def width(self, plan: Plan) -> Width:
        """The head that a plan runs; the widest where it names none."""
        named = (width for width in self.widths if width.name == plan.width)
        return next(named, self.widths[-1])

    def crossing(self, plan: Plan) -> list[int]:
        """The shape of what a cloud plan sends, without batch."""
        return self.input.shape if self.pictured(plan) else self.width(plan).shape

    def pictured(self, plan: Plan) -> bool:
        """Whether the plan sends the picture itself, as JPEG."""
        return plan.codec is not None and self.codecs[plan.codec].coder == "jpeg"

    def exit_plan(self, width: Width) -> Plan | None:
        """The plan by which that head's exit answers."""
        return next((p for p in self.plans if p.exits and p.width == width.name), None)

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        names = [plan.name for plan in self.plans]
        heads = [width.name for width in self.widths]
        crossing = [width.shape for width in self.widths]
        outputs = {output.name for output in self.outputs}
        tensors = [self.input.shape, *crossing, *(output.shape for output in self.outputs)]
        for wrong, message in (
            (len(set(names)) < len(names), "two plans have one name"),
            (len(set(heads)) < len(heads), "two widths have one name"),
            (self.default_plan not in names, f"default_plan {self.default_plan!r} is no plan"),
            (any(math.prod(shape) > LARGEST_TENSOR for shape in tensors), "a tensor is too large"),
            (any(not PLAIN.fullmatch(file) for file in self.files), "a file's name is not plain"),
            (NAME in self.files, f"{NAME} cannot name itself"),
            (self.boxes is not None and set(self.boxes.outputs) - outputs, "boxes of no output"),
            (crossing[-1] != self.cut.shape, "the last width is not the shape of the cut"),
            (
                any(s[1:] != self.cut.shape[1:] for s in crossing),
                "widths differ in more than width",
            ),
            (any(s[0] > self.cut.shape[0] for s in crossing), "the last width is not the widest"),
        ):
            if wrong:
                raise ValueError(message)
        for width in self.widths:
            self._check_width(width)
        self._sizes_agree()
        for plan in self.plans:
            self._check_plan(plan)
        return self

    def _sizes_agree(self) -> None:
        """The shapes are those of the largest picture; side data has names, and is small."""
        if self.sizes is not None:
            shapes = [self.cut.shape, *(output.shape for output in self.outputs)]
            if len(self.input.shape) != 3 or self.input.shape != self._entry(self.sizes.largest):
                raise ValueError("input is not the largest picture of sizes")
            if shapes != self.sizes.shapes(self.sizes.largest):
                raise ValueError("sizes give other shapes than cut and outputs name")
        names = {self.input.name, "features", *(side.name for side in self.side)}
        if len(names) < 2 + len(self.side):
            raise ValueError("two inputs have one name")
        if sum(side.bytes for side in self.side) > LARGEST_SIDE:
            raise ValueError(f"side data of more than {LARGEST_SIDE} bytes")

    def _check_width(self, width: Width) -> None:
        if width.head not in self.files:
            raise ValueError(f"files has no {width.head}")
        if width.exit is not None:
            if self.exit_plan(width) is None:
                raise ValueError(f"the exit of width {width.name!r} has no plan at the edge")
            if width.exit.output not in [output.name for output in self.outputs]:
                raise ValueError(f"exit answers for {width.exit.output!r}, not in outputs")

    def _check_plan(self, plan: Plan) -> None:
        if plan.width is not None and plan.width not in [width.name for width in self.widths]:
            raise ValueError(f"plan {plan.name!r} has no width {plan.width!r}")
        record = self.width(plan).exit
        if plan.bins and (plan.place == "edge" or record is None):
            raise ValueError(f"plan {plan.name!r} has bins, but no exit stands in for it")
        if plan.bins and record is not None and len(plan.bins) != len(record.bins):
            raise ValueError(
                f"plan {plan.name!r} has {len(plan.bins)} bins, its exit {len(record.bins)}"
            )
        if plan.place == "edge":
            answered = self.width(plan).exit is not None if plan.exits else TAIL in self.files
            if not answered:
                raise ValueError(f"plan {plan.name!r}: nothing on the device answers it")
            return
        if plan.width is None or plan.codec not in self.codecs:
            raise ValueError(f"plan {plan.name!r} has no width or no codec {plan.codec!r}")
        spec = self.codecs[plan.codec]
        needed = {plan.dictionary} if plan.dictionary is not None else set()
        needed |= {"scales.safetensors"} if spec.bits <= 8 else set()
        needed |= {"tables.safetensors"} if spec.coder == "ans" else set()
        if spec.coder == "jpeg":
            needed = {"whole.pt2"}
            if self.input.kind != "pixels" or self.input.shape[2:] != [3] or not spec.quality:
                raise ValueError(f"plan {plan.name!r}: jpeg is for RGB pictures, with a quality")
        for missing in sorted(needed - set(self.files)):
            raise ValueError(f"plan {plan.name!r} needs {missing!r}, not in files")


def siblings(manifest: Manifest, folder: str | Path) -> Manifest:
    """The manifest of another tail of the same head; ModelMismatch if it is none."""
    found = Manifest.load(folder)
    if found.contract != manifest.contract:
        raise ModelMismatch(
            f"{folder} has another head than {manifest.name}\n"
            "help: export it with head=, so that both take the same payloads"
        )
    return found


class Filed(Protocol):
    """A manifest of either kind: the sha256 of every file that belongs to it."""

    @property
    def files(self) -> dict[str, str]: ...


def verified(
    folder: str | Path, manifest: Filed, name: str, *, largest: int = LARGEST_FILE
) -> Path:
    """The path of a file the manifest names, after its size and sha256 were checked."""
    if name not in manifest.files:
        raise ModelError(f"{folder} has no {name}\nhelp: export the model again")
    path = Path(folder) / name
    if path.is_symlink() or not path.is_file():
        raise ModelError(f"{path} is missing or not a plain file\nhelp: copy the whole directory")
    if path.stat().st_size > largest:
        raise ModelError(f"{path} is larger than {largest >> 30} GiB")
    digest = hashed(path)
    if digest != manifest.files[name]:
        raise ModelError(
            f"{path} has sha256 {digest[:12]}…, wanted {manifest.files[name][:12]}…\n"
            "help: it was changed after export; copy the directory again"
        )
    return path


def prove(folder: str | Path) -> Manifest:
    """Check the whole directory: every file's hash, and that nothing else lies there."""
    manifest = Manifest.load(folder)
    alone(folder, manifest)
    paths = [Path(folder) / name for name in (NAME, *manifest.files)]
    if sum(path.lstat().st_size for path in paths if path.exists()) > LARGEST_FOLDER:
        raise ModelError(f"{folder} is larger than {LARGEST_FOLDER >> 30} GiB")
    for name in manifest.files:
        verified(folder, manifest, name)
    return manifest


def alone(folder: str | Path, manifest: Filed) -> None:
    """ModelError if anything lies in the directory that model.toml does not name."""
    extra = {path.name for path in Path(folder).iterdir()} - {NAME, *manifest.files}
    if extra:
        raise ModelError(f"{folder} holds {min(extra)!r}, which {NAME} does not name")
    if (Path(folder) / NAME).is_symlink():
        raise ModelError(f"{Path(folder) / NAME} is a link\nhelp: copy the whole directory")


def raw(folder: str | Path) -> bytes:
    """model.toml as it lies there; ModelError if it is missing or would take long to read."""
    path = Path(folder) / NAME
    if not path.is_file():
        raise ModelError(
            f"{folder} has no {NAME}\nhelp: name a folder that export() or `split` wrote"
        )
    if path.stat().st_size > LARGEST_MANIFEST:
        raise ModelError(f"{path} is larger than {LARGEST_MANIFEST >> 20} MiB")
    return path.read_bytes()


def parsed(text: bytes, path: Path) -> dict[str, Any]:
    """The tables of a TOML text; beside its own error, tomllib raises two of Python's."""
    if max(line.count(b".") for line in text.split(b"\n")) > MOST_DOTS:
        raise ModelError(f"{path} has a line with more than {MOST_DOTS} dots\nhelp: part it")
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not TOML: {error}") from error


def first(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    found: Any = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"])
    return f"{place}: {found['msg']}" if place else found["msg"]
