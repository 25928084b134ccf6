"""The model directory: everything that edge and server load, and the record of each plan."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w
import torch
import zstandard
from safetensors.torch import save_file
from torch import nn

from splitrt.core.codec import Codec
from splitrt.core.manifest import Manifest
from splitrt.errors import ModelError
from splitrt.train import exits, onnx
from splitrt.train.cut import Split
from splitrt.train.frames import Frames
from splitrt.train.scales import Scale, calibrate

FLOATS = {"f32": 32, "f16": 16}
INTEGERS = {"q8": 8, "q4": 4}
DICTIONARY = 16 << 10
SMALL = 4096  # bytes; below it a dictionary pays
CALIBRATION = 2000  # frames
KEPT = ("val", "tensor_meta")  # of what torch notes about a node


class Device(nn.Module):
    """The device's half as one graph: pixels in; features, codes of every rung, exit out."""

    def __init__(self, split: Split, scales: dict[str, Scale]) -> None:
        super().__init__()
        self.split, self.scales = split, scales
        self.names = ("features", *scales, *(("exit",) if split.exit is not None else ()))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x if self.split.pixels is None else self.split.pixels(x)
        trunk = self.split.trunk(x)
        z = self.split.project(trunk)
        codes = [scale.codes(z) for scale in self.scales.values()]
        return (z, *codes, *((self.split.exit(trunk),) if self.split.exit is not None else ()))


class Tail(nn.Module):
    """The server's half: what crossed in, the outputs out."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.split = split

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.split.answer(features))


class Whole(nn.Module):
    """The uncut model behind the same preprocessing: what every plan is measured against."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.whole, self.pixels = split.graph.whole(), split.pixels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.whole(x if self.pixels is None else self.pixels(x))


@dataclass(frozen=True, slots=True)
class About:
    """Where a model comes from; goes into the manifest as it is."""

    recipe: str = ""
    data: str = ""
    seed: int = 0
    trained_by: str = ""
    licence: str = ""


def export(
    split: Split,
    folder: str | Path,
    *,
    frames: Frames | None = None,
    held_out: Frames | None = None,
    labels: list[str] | None = None,
    about: About = About(),
) -> Manifest:
    """Write the model directory `folder`, all or nothing.

    `frames` calibrate the scales of q8 and q4 and train the dictionaries; without them only f32
    and f16 can be sent. `held_out` (with labels) calibrates the exit and fills the plans' record.
    An existing model directory is replaced; anything else there is an error.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "model.toml").exists():
        raise ModelError(f"{folder} exists and is no model directory\nhelp: name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
        made = Path(fresh) / folder.name
        made.mkdir()
        _write(split.eval(), made, frames, held_out, labels, about)
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
    labels: list[str] | None,
    about: About,
) -> None:
    scales, z = {}, None
    if frames is not None:
        z = torch.cat([_crossing(split, part) for part in frames.sample(CALIBRATION).batches(100)])
        scales = {name: calibrate(split, z, bits) for name, bits in INTEGERS.items()}
        _save_scales(scales, folder)
    device, tail, whole = Device(split, scales).eval(), Tail(split).eval(), Whole(split).eval()
    x = _input_example(split)
    crossing = torch.zeros(2, *split.crossing)
    outputs = split.graph.output_names
    onnx.save(device, x, folder / "head.onnx", inputs="image", outputs=device.names)
    onnx.save(tail, crossing, folder / "tail.onnx", inputs="features", outputs=outputs)
    _save_program(tail, crossing, folder / "tail.pt2")
    _save_program(whole, x, folder / "whole.pt2")
    codecs = _codecs(scales, z, folder)
    manifest = _manifest(split, folder.name, codecs, labels, about)
    if held_out is not None:
        _record(manifest, split, device, held_out, folder)
    manifest["files"] = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }
    (folder / "model.toml").write_text(tomli_w.dumps(manifest))


def _crossing(split: Split, frames: Frames) -> torch.Tensor:
    x = torch.from_numpy(np.ascontiguousarray(frames.images))
    if split.pixels is not None:
        x = split.pixels(x)
    return split.project(split.trunk(x))


def _input_example(split: Split) -> torch.Tensor:
    example = split.graph.example
    if split.pixels is None:
        return example
    _, channels, height, width = example.shape
    return torch.randint(0, 256, (2, height, width, channels), dtype=torch.uint8)


def _save_program(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    shapes = {0: onnx.BATCH}
    program = torch.export.export(module, (example,), dynamic_shapes=(shapes,), strict=False)
    program = program.run_decompositions({})
    program.example_inputs = None  # would be pickled
    for node in program.graph.nodes:  # stack traces name the paths of this machine
        node.meta = {key: node.meta[key] for key in KEPT if key in node.meta}
    torch.export.save(program, path)


def _save_scales(scales: dict[str, Scale], folder: Path) -> None:
    tensors = {f"{name}.low": scale.low.contiguous() for name, scale in scales.items()}
    tensors |= {f"{name}.step": scale.step.contiguous() for name, scale in scales.items()}
    save_file(tensors, folder / "scales.safetensors")


def _codecs(
    scales: dict[str, Scale], z: torch.Tensor | None, folder: Path
) -> dict[str, dict[str, object]]:
    codecs: dict[str, dict[str, object]] = {
        name: {"bits": bits, "coder": "raw"} for name, bits in FLOATS.items()
    }
    for name, scale in scales.items():
        codecs[name] = {"bits": scale.bits, "coder": "zstd"}
        if z is not None and z[0].numel() * scale.bits // 8 < SMALL:
            dictionary = _dictionary(scale, z)
            if dictionary is not None:
                codecs[name]["dictionary"] = f"{name}.dict"
                (folder / f"{name}.dict").write_bytes(dictionary)
    return codecs


def _dictionary(scale: Scale, z: torch.Tensor) -> bytes | None:
    """A zstd dictionary from what crossed; None where there is too little to learn from."""
    packed = Codec(scale.bits, "zstd", None, z[0].numel()).pack
    samples = [packed(codes) for codes in scale.codes(z).numpy()]
    try:
        return zstandard.train_dictionary(DICTIONARY, samples, level=1).as_bytes()
    except zstandard.ZstdError:
        return None


def _manifest(
    split: Split,
    name: str,
    codecs: dict[str, dict[str, object]],
    labels: list[str] | None,
    about: About,
) -> dict[str, object]:
    graph, place, x = split.graph, split.place, _input_example(split)
    head_macs = place.head_macs + _extra_macs(split)
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
        "head_macs": head_macs,
        "whole_macs": graph.macs,
    }
    if split.bottleneck is not None:
        parted["channels"] = split.crossing[0]
    plans = [
        {"name": codec, "place": "cloud", "codec": codec, "head_macs": head_macs}
        for codec in codecs
    ]
    plans.append({"name": "local", "place": "edge"})
    manifest: dict[str, object] = {
        "format": 1,
        "name": name,
        "provenance": {k: getattr(about, k) for k in About.__slots__ if getattr(about, k) != ""},
        "input": entry,
        "cut": parted,
        "outputs": [
            {"name": output, "shape": list(shape), "dtype": "float32"}
            for output, shape in zip(graph.output_names, graph.output_shapes, strict=True)
        ],
        "codecs": codecs,
        "plans": plans,
        "default_plan": _default(split, codecs),
    }
    if labels is not None:
        manifest["labels"] = labels
    if split.exit is not None:
        manifest["exit"] = {"output": graph.output_names[0], "temperature": 1.0}
        plans.append({"name": "exit", "place": "edge"})
    return manifest


def _default(split: Split, codecs: dict[str, dict[str, object]]) -> str:
    """q4 for a trained bottleneck, q8 for a natural cut with scales, else f16."""
    if "q4" not in codecs:
        return "f16"
    return "q4" if split.bottleneck is not None else "q8"


def _extra_macs(split: Split) -> int:
    """What encoder and exit add to the head."""
    from torch.utils.flop_counter import FlopCounterMode

    if split.bottleneck is None:
        return 0
    features = torch.zeros(1, *split.place.shape)
    with FlopCounterMode(display=False) as counter:
        trunk = split.bottleneck.trunk(features)
        split.project(trunk)
        if split.exit is not None:
            split.exit(trunk)
    return counter.get_total_flops() // 2


def _record(manifest: dict, split: Split, device: Device, held_out: Frames, folder: Path) -> None:
    """Fill in bytes and accuracy of each plan and calibrate the exit, on held-out frames."""
    crossed: list[tuple[torch.Tensor, ...]] = []
    wholes: list[torch.Tensor] = []
    for part in held_out.batches(100):
        x = torch.from_numpy(np.ascontiguousarray(part.images))
        crossed.append(device(x))
        wholes.append(Whole(split)(x)[0])
    seen = dict(zip(device.names, map(torch.cat, zip(*crossed, strict=True)), strict=True))
    labels = None if held_out.labels is None else torch.from_numpy(held_out.labels)
    for plan in manifest["plans"]:
        if plan["place"] == "cloud":
            payload = _sizes(manifest["codecs"][plan["name"]], plan["name"], seen, folder)
            plan["bytes_mean"] = round(float(payload.mean()), 1)
            plan["bytes_p50"] = int(np.percentile(payload, 50))
            plan["bytes_p95"] = int(np.percentile(payload, 95))
        if labels is not None and split.classes is not None:
            plan["accuracy"] = round(_accuracy(plan, split, device, seen, labels), 4)
    if labels is not None and split.exit is not None:
        with torch.enable_grad():
            right = torch.cat(wholes).argmax(1) == labels
            found = exits.calibrate(seen["exit"].float(), labels, right)
        manifest["exit"] |= {
            "temperature": round(found.temperature, 4),
            "threshold": round(found.threshold, 4),
            "accuracy": round(found.accuracy, 4),
            "share": round(found.share, 4),
            "sure_accuracy": round(found.sure_accuracy, 4),
            "ece": round(found.ece, 4),
        }


def _sizes(spec: dict, name: str, seen: dict[str, torch.Tensor], folder: Path) -> np.ndarray:
    arrays = seen["features" if name in FLOATS else name].numpy()
    dictionary = (folder / spec["dictionary"]).read_bytes() if "dictionary" in spec else None
    codec = Codec(spec["bits"], spec["coder"], dictionary, arrays[0].size)
    return np.array([len(codec.encode(array)) for array in arrays])


def _accuracy(
    plan: dict, split: Split, device: Device, seen: dict[str, torch.Tensor], labels: torch.Tensor
) -> float:
    name = plan["name"]
    if name == "exit":
        logits = seen["exit"]
    else:
        z = device.scales[name].values(seen[name]) if name in device.scales else seen["features"]
        z = z.half().float() if name == "f16" else z
        logits = torch.cat([split.answer(part)[0] for part in z.split(100)])
    return (logits.argmax(1) == labels).float().mean().item()
