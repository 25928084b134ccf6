"""The model directory: everything that edge and server load."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
import zstandard
from safetensors.numpy import save_file
from torch import nn

from splitrt.core.ans import Tables, tabled
from splitrt.core.codec import Codec
from splitrt.core.layouts import Layout
from splitrt.core.manifest import SHARED, TAIL, Manifest, Plan, verified
from splitrt.core.pareto import pareto
from splitrt.errors import ModelError
from splitrt.train import onnx
from splitrt.train.cut import Split
from splitrt.train.frames import Frames
from splitrt.train.free import beside, entry_shapes, tail_shapes
from splitrt.train.record import record
from splitrt.train.rungs import contexts, levels, rate_name
from splitrt.train.scales import Scale, scales_of

FLOATS = {"f32": 32, "f16": 16}
DICTIONARY = 16 << 10
SMALL = 4096  # bytes; below it a dictionary pays
SHORT = 8192  # codes; up to here an ans coder costs less than a millisecond or two
CALIBRATION = 4000  # frames
QUALITY = 90  # of whole pictures as JPEG, until held-out frames say which is enough
ALONE = "full"  # the one width of a model without a student
KEPT = ("val", "tensor_meta")  # of what torch notes about a node


class Device(nn.Module):
    """The device's half at one width: pixels in; features, codes by rung, exit and filter out."""

    def __init__(self, split: Split, scales: dict[str, Scale], width: int) -> None:
        super().__init__()
        self.split, self.scales, self.width = split, scales, width
        self.head = split if split.slim is None else split.slim.alone(width)
        self.exit = split.exits[width] if len(split.exits) else None
        self.filter = split.filters[width] if len(split.filters) else None
        ends = (("exit", self.exit), ("filter", self.filter))
        self.names = ("features", *scales, *(name for name, part in ends if part is not None))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x if self.split.pixels is None else self.split.pixels(x)
        trunk = self.head.trunk(x)
        z = self.head.project(trunk)
        codes = [scale.codes(z) for scale in self.scales.values()]
        ends = [part(trunk) for part in (self.exit, self.filter) if part is not None]
        return (z, *codes, *ends)


class Tail(nn.Module):
    """The server's half: what crossed (and side inputs) in, the outputs out."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.split = split

    def forward(self, features: torch.Tensor, *side: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.split.answer(features, *side))


class Whole(nn.Module):
    """The uncut model behind the same preprocessing: what every plan is measured against."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.whole, self.pixels = split.graph.whole(), split.pixels

    def forward(self, x: torch.Tensor, *side: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.whole(x if self.pixels is None else self.pixels(x), *side)


@dataclass(frozen=True, slots=True, eq=False)
class Rungs:
    """One width as it is exported: its name, its graph, and the tables of its ans rungs."""

    name: str
    device: Device
    tables: dict[str, Tables]
    dictionaries: dict[str, bytes]

    @property
    def head(self) -> str:
        """Its file."""
        return "head.onnx" if self.name == ALONE else f"head-{self.name}.onnx"

    def plan(self, rung: str) -> str:
        """The name of a plan of this width."""
        return rung if self.name == ALONE else f"{self.name}-{rung}"

    def codec(self, rung: str) -> Codec:
        """As the device will use it."""
        shape = self.device.split.crossings[self.device.width]
        if rung in FLOATS:
            return Codec(FLOATS[rung], "raw", shape)
        bits = self.device.scales[rung].bits
        if rung in self.tables:
            return Codec(bits, "ans", shape, tables=self.tables[rung])
        return Codec(bits, "zstd", shape, dictionary=self.dictionaries.get(rung))


@dataclass(frozen=True, slots=True)
class About:
    """Where a model comes from; goes into the manifest as it is."""

    recipe: str = ""
    data: str = ""
    seed: int = 0
    trained_by: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Meaning:
    """How the outputs are read: names of the classes, and of a detector how they are boxes."""

    labels: list[str] | None
    boxes: Layout | None

    def tables(self) -> dict[str, Any]:
        """As the manifest has it."""
        found: dict[str, Any] = {} if self.labels is None else {"labels": self.labels}
        if self.boxes is not None:
            found["boxes"] = self.boxes.model_dump(mode="json", exclude_defaults=True)
        return found


def export(
    split: Split,
    folder: str | Path,
    *,
    frames: Frames | None = None,
    held_out: Frames | None = None,
    labels: list[str] | None = None,
    about: About = About(),
    boxes: Layout | None = None,
    head: str | Path | None = None,
    pareto: bool = True,
) -> Manifest:
    """Write the model directory `folder`, all or nothing.

    `frames` calibrate the scales and fill the coders' tables; without them only f32 and f16 can be
    sent. `held_out` (with labels) calibrates the exit and fills the plans' record. `boxes` says how
    the outputs of a detector are boxes. `head` is the model directory whose head a split made by
    another() shares. With `pareto`, plans that another one beats in bytes, accuracy and operations
    are left out. An existing model directory is replaced; anything else there is an error.
    """
    folder = Path(folder)
    if split.shared != (head is not None):
        raise ModelError("a shared head is exported with head=, the first model's directory")
    if folder.exists() and any(folder.iterdir()) and not (folder / "model.toml").exists():
        raise ModelError(f"{folder} exists and is no model directory\nhelp: name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
        made = Path(fresh) / folder.name
        made.mkdir()
        means = Meaning(labels, boxes)
        if head is None:
            _write(split.eval(), made, frames, held_out, means, about, pareto)
        else:
            write_beside(Path(head), split.eval(), made, held_out, means, about)
        manifest = Manifest.load(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    return manifest


@torch.no_grad()
def _write(
    split: Split,
    folder: Path,
    frames: Frames | None,
    held_out: Frames | None,
    means: Meaning,
    about: About,
    pareto: bool,
) -> None:
    sample = None if frames is None else frames.sample(CALIBRATION)
    widths = [_rungs(split, place, sample) for place in range(len(split.crossings))]
    _save_tensors(widths, folder)
    entry = _entry(split)
    for one in widths:
        file, outputs = folder / one.head, one.device.names
        x = [_input_example(split)]
        onnx.save(one.device, x, file, inputs=["image"], outputs=outputs, shapes=entry)
    _save_tail(split, folder)
    manifest = _manifest(split, folder.name, widths, means, about)
    if held_out is not None:
        record(manifest, split, widths, Whole(split).eval(), held_out)
        if pareto:
            manifest["plans"] = _worth_having(manifest)
    _sign(manifest, folder)


def _worth_having(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    plans = [Plan(**plan) for plan in manifest["plans"]]
    exact = {plan.name for plan in plans if plan.codec == "f32"}
    kept = {plan.name for plan in pareto(plans, keep={manifest["default_plan"], "jpeg", *exact})}
    return [plan for plan in manifest["plans"] if plan["name"] in kept]


def _entry(split: Split) -> tuple[Any, ...]:
    return entry_shapes(split.graph.free, channels_last=split.pixels is not None)


def _save_tail(split: Split, folder: Path) -> None:
    """The server's half, the same for a device that can afford it, and the uncut model."""
    graph, tail = split.graph, Tail(split).eval()
    side, names = graph.side_examples(2), graph.side_names
    behind = tail_shapes(graph.free, split.rules() if graph.free.sizes is not None else [])
    crossing = [torch.zeros(2, *split.crossing), *side]
    onnx.save(
        tail,
        crossing,
        folder / TAIL,
        inputs=["features", *names],
        outputs=graph.output_names,
        shapes=behind,
    )
    _save_program(tail, crossing, folder / "tail.pt2", behind)
    inputs = [_input_example(split), *side]
    _save_program(
        Whole(split).eval(), inputs, folder / "whole.pt2", beside(graph.free, _entry(split))
    )


def _sign(manifest: dict[str, Any], folder: Path) -> None:
    """Write model.toml, with every file's hash."""
    manifest["files"] = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }
    (folder / "model.toml").write_text(tomli_w.dumps(manifest))


@torch.no_grad()
def write_beside(
    head: Path,
    split: Split,
    folder: Path,
    held_out: Frames | None,
    means: Meaning,
    about: About,
) -> None:
    """The files of another tail: the first model's head and codecs, byte for byte, and its own."""
    first = Manifest.load(head)
    device_files = {width.head for width in first.widths}
    device_files |= {plan.dictionary for plan in first.plans if plan.dictionary is not None}
    for name in sorted(device_files | set(SHARED) & set(first.files)):
        shutil.copyfile(verified(head, first, name), folder / name)
    widths = [_rungs(split, place, None) for place in range(len(split.crossings))]
    _save_tail(split, folder)
    manifest = _manifest(split, folder.name, widths, means, about)
    known = first.model_dump(mode="json", exclude_none=True)
    keep = ("name", "shape", "head", "head_macs", "filter")
    manifest["widths"] = [{k: v for k, v in w.items() if k in keep} for w in known["widths"]]
    manifest["codecs"], manifest["default_plan"] = known["codecs"], first.default_plan
    manifest["plans"] = [_bare(plan) for plan in known["plans"] if plan["place"] == "cloud"]
    manifest["plans"].append({"name": "local", "place": "edge"})
    _sign(manifest, folder)


def _bare(plan: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plan.items() if key not in ("accuracy", "bins")}


def _rungs(split: Split, place: int, frames: Frames | None) -> Rungs:
    name = ALONE if len(split.crossings) == 1 else f"w{split.crossings[place][0]}"
    if frames is None:
        return Rungs(name, Device(split, {}, place).eval(), {}, {})
    z = torch.cat([_crossing(split, place, part) for part in frames.batches(100)])
    scales = scales_of(split, z, place)
    tables, dictionaries = {}, {}
    for rung, scale in scales.items():
        codes = scale.codes(z).numpy()
        if scale.bits <= 4 and codes[0].size <= SHORT and split.graph.free.sizes is None:
            known = np.array(contexts(rung), np.uint8)
            tables[rung] = tabled(codes, known, levels(rung))
        elif codes[0].size * scale.bits // 8 < SMALL:
            dictionary = _dictionary(scale.bits, codes)
            dictionaries |= {rung: dictionary} if dictionary is not None else {}
    return Rungs(name, Device(split, scales, place).eval(), tables, dictionaries)


def _crossing(split: Split, width: int, frames: Frames) -> torch.Tensor:
    x = torch.from_numpy(np.ascontiguousarray(frames.images))
    if split.pixels is not None:
        x = split.pixels(x)
    return split.project(split.trunk(x, width), width)


def _input_example(split: Split) -> torch.Tensor:
    example = split.graph.example
    if split.pixels is None:
        return example
    _, channels, height, width = example.shape
    return torch.randint(0, 256, (2, height, width, channels), dtype=torch.uint8)


def _save_program(
    module: nn.Module, examples: Sequence[torch.Tensor], path: Path, shapes: tuple[Any, ...]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about itself
        program = torch.export.export(module, tuple(examples), dynamic_shapes=shapes, strict=False)
        program = program.run_decompositions({})
    program._guards_code = []  # Python, which nobody should run; the manifest has the bounds
    program.example_inputs = None  # would be pickled
    for node in program.graph.nodes:  # stack traces name the paths of this machine
        node.meta = {key: node.meta[key] for key in KEPT if key in node.meta}
    torch.export.save(program, path)


def _save_tensors(widths: list[Rungs], folder: Path) -> None:
    scales, tables = {}, {}
    for one in widths:
        for rung, scale in one.device.scales.items():
            scales[f"{one.name}.{rung}.low"] = scale.low.contiguous().numpy()
            scales[f"{one.name}.{rung}.step"] = scale.step.contiguous().numpy()
        for rung, table in one.tables.items():
            tables[f"{one.name}.{rung}.frequencies"] = table.frequencies
            tables[f"{one.name}.{rung}.contexts"] = table.contexts
        for rung, dictionary in one.dictionaries.items():
            (folder / f"{one.plan(rung)}.dict").write_bytes(dictionary)
    for name, tensors in (("scales", scales), ("tables", tables)):
        if tensors:
            save_file(tensors, folder / f"{name}.safetensors")


def _dictionary(bits: int, codes: np.ndarray) -> bytes | None:
    """A zstd dictionary from what crossed; None where there is too little to learn from."""
    packed = Codec(bits, "zstd", codes.shape[1:]).pack
    try:
        samples = [packed(one) for one in codes]
        return zstandard.train_dictionary(DICTIONARY, samples, level=1).as_bytes()
    except zstandard.ZstdError:
        return None


def _manifest(
    split: Split, name: str, widths: list[Rungs], means: Meaning, about: About
) -> dict[str, Any]:
    graph, place, x = split.graph, split.place, _input_example(split)
    entry: dict[str, object] = {
        "name": "image",
        "kind": "tensor" if split.pixels is None else "pixels",
        "shape": list(x.shape[1:]),
        "dtype": str(x.dtype).removeprefix("torch."),
    }
    if split.pixels is not None:
        entry |= {"mean": list(split.pixels.mean), "std": list(split.pixels.std)}
    parted: dict[str, object] = {
        "after": place.name,
        "fingerprint": graph.fingerprint,
        "shape": list(split.crossing),
        "whole_macs": graph.macs,
    }
    if split.bottleneck is not None:
        parted["channels"] = split.crossing[0]
    manifest: dict[str, Any] = {
        "format": 1,
        "name": name,
        "provenance": {k: getattr(about, k) for k in About.__slots__ if getattr(about, k) != ""},
        "input": entry,
        "cut": parted,
        "outputs": [
            {"name": output, "shape": list(shape), "dtype": _dtype(kind)}
            for output, shape, kind in zip(
                graph.output_names, graph.output_shapes, graph.output_dtypes, strict=True
            )
        ],
        "widths": [_width(split, one) for one in widths],
        "codecs": _codecs(widths),
        "plans": [plan for one in widths for plan in _plans(split, one, one is widths[-1])],
        "default_plan": widths[-1].plan(_default(split, widths[-1])),
    }
    if pictured(entry):
        manifest["codecs"]["jpeg"] = {"bits": 8, "coder": "jpeg", "quality": QUALITY}
        manifest["plans"] += _pictures(widths)
    manifest["plans"] += _exits(split, widths)
    if graph.free.sizes is not None:
        limits = graph.free.sizes.model_dump(mode="json")
        shapes = {"crossing": split.rules(), "outputs": graph.output_rules()}
        manifest["sizes"] = {**limits, **shapes}
    if graph.side_names:
        manifest["side"] = [
            {
                "name": side,
                "shape": list(tensor.shape[1:]),
                "dtype": _dtype(tensor.dtype),
                "picture": side == graph.free.picture,
            }
            for side, tensor in zip(graph.side_names, graph.side_examples(2), strict=True)
        ]
    return manifest | means.tables()


def pictured(entry: Mapping[str, object]) -> bool:
    """Whether the input is an RGB picture, which can go as it is."""
    shape = entry["shape"]
    return entry["kind"] == "pixels" and isinstance(shape, list) and shape[-1] == 3


def _width(split: Split, one: Rungs) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": one.name,
        "shape": list(split.crossings[one.device.width]),
        "head": one.head,
        "head_macs": _head_macs(split, one.device.width),
    }
    if one.device.exit is not None:
        found["exit"] = {"output": split.graph.output_names[0], "temperature": 1.0}
    return found


def _plans(split: Split, one: Rungs, widest: bool) -> list[dict[str, Any]]:
    macs = _head_macs(split, one.device.width)
    plans: list[dict[str, Any]] = []
    for rung in [*(FLOATS if widest else ()), *one.device.scales]:
        plan = {"name": one.plan(rung), "place": "cloud", "width": one.name, "codec": rung}
        if rung in one.dictionaries:
            plan["dictionary"] = f"{one.plan(rung)}.dict"
        plans.append({**plan, "head_macs": macs})
    return plans


def _pictures(widths: list[Rungs]) -> list[dict[str, Any]]:
    """The plans that send the picture: beside the narrowest head, and each further exit.

    A wider exit costs more operations, is right more often where it stands in, and knows better
    which pictures need not be sent.
    """
    further = [one for one in widths[1:] if one.device.exit is not None]
    names = {"jpeg": widths[0], **{one.plan("jpeg"): one for one in further}}
    return [
        {"name": name, "place": "cloud", "width": one.name, "codec": "jpeg"}
        for name, one in names.items()
    ]


def _exits(split: Split, widths: list[Rungs]) -> list[dict[str, Any]]:
    """The plans at the edge; they come last, so that tails of one head number the others alike."""
    plans: list[dict[str, Any]] = [
        {
            "name": one.plan("exit"),
            "place": "edge",
            "width": one.name,
            "head_macs": _head_macs(split, one.device.width),
        }
        for one in widths
        if one.device.exit is not None
    ]
    return [*plans, {"name": "local", "place": "edge"}]


def _codecs(widths: list[Rungs]) -> dict[str, dict[str, object]]:
    """Every rung's bits and coder."""
    codecs: dict[str, dict[str, object]] = {
        name: {"bits": bits, "coder": "raw"} for name, bits in FLOATS.items()
    }
    for one in widths:
        for rung in one.device.scales:
            codec = one.codec(rung)
            codecs[rung] = {"bits": codec.bits, "coder": codec.coder}
    return codecs


def _dtype(kind: torch.dtype) -> str:
    """The type in which a tensor of that type travels."""
    return "float32" if kind.is_floating_point else "int64"


def _default(split: Split, widest: Rungs) -> str:
    """The richest trained rung of a student; q4 of a bottleneck, q8 of a natural cut, else f16."""
    if not widest.device.scales:
        return "f16"
    if split.slim is not None:
        student = split.slim.student
        return rate_name(max(student.payload)) if student.payload else student.fixed[0]
    return "q4" if split.bottleneck is not None else "q8"


def _head_macs(split: Split, width: int) -> int:
    """Multiplications of everything on the device at one width."""
    from torch.utils.flop_counter import FlopCounterMode

    if split.bottleneck is None or split.shared:  # whose head it is knows
        return 0 if split.shared else split.place.head_macs
    features = split.graph.example[:1] if split.slim else torch.zeros(1, *split.place.shape)
    with FlopCounterMode(display=False) as counter:
        trunk = split.bottleneck.trunk(features, *([width] if split.slim else []))
        split.project(trunk, width)
        for ends in (split.exits, split.filters):
            if len(ends):
                ends[width](trunk)
    behind = 0 if split.slim else split.place.head_macs
    return behind + counter.get_total_flops() // 2
