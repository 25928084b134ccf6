"""What all servers of the comparison load: the shipped tail behind raw codes, and an empty tail."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from safetensors.numpy import load_file, save_file

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

WIDTH, GRADES = "w32", 255
CODED = "w32-r125"  # the shipped model's default plan: what a device really sends
PLANS = ["w32-u8", CODED]


def variants(shipped: Path, work: Path) -> tuple[Path, Path]:
    """Model directories `full` and `empty`, both with a plan of one raw byte a number."""
    full, empty = work / "full", work / "empty"
    for folder in (full, empty):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("head-w32.onnx", "tables.safetensors", "tail.pt2"):
            shutil.copyfile(shipped / name, folder / name)
    manifest = tomllib.loads((shipped / "model.toml").read_text())
    low, step = _scales(shipped, full, empty)
    np.savez(work / "scale.npz", low=low, step=step, shape=manifest["cut"]["shape"])
    _write(full, manifest, manifest["outputs"])
    _save_empty(empty, manifest["cut"]["shape"])
    shape = manifest["cut"]["shape"]
    _write(empty, manifest, [{"name": "features", "shape": shape, "dtype": "float32"}])
    return full, empty


def _scales(shipped: Path, *folders: Path) -> tuple[np.ndarray, np.ndarray]:
    """The range of the 4-bit rung in 256 steps, kept beside the shipped scales."""
    scales = load_file(shipped / "scales.safetensors")
    low, step = scales[f"{WIDTH}.q4.low"], scales[f"{WIDTH}.q4.step"] * np.float32(15 / GRADES)
    for folder in folders:
        more = {f"{WIDTH}.u8.low": low, f"{WIDTH}.u8.step": step}
        save_file({**scales, **more}, folder / "scales.safetensors")
    return low, step


def _write(folder: Path, shipped: dict[str, Any], outputs: list[dict[str, Any]]) -> None:
    width = next(one for one in shipped["widths"] if one["name"] == WIDTH)
    kept = {key: width[key] for key in ("name", "shape", "head")}
    coded = next(one for one in shipped["plans"] if one["name"] == CODED)
    codecs = {key: one for key, one in shipped["codecs"].items() if one["coder"] != "jpeg"}
    raw = {"name": PLANS[0], "place": "cloud", "width": WIDTH, "codec": "u8"}
    names = sorted(path.name for path in folder.iterdir())
    manifest = {
        "format": 1,
        "name": f"serving-{folder.name}",
        "default_plan": PLANS[0],
        "input": shipped["input"],
        "cut": shipped["cut"],
        "outputs": outputs,
        "widths": [kept],
        "codecs": {**codecs, "u8": {"bits": 8, "coder": "raw"}},
        "plans": [raw, coded],
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
    }
    (folder / "model.toml").write_text(tomli_w.dumps(manifest))


class Empty(torch.nn.Module):
    """A tail without layers: what crossed is the answer."""

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor]:
        return (features,)


def _save_empty(folder: Path, shape: list[int]) -> None:
    several = {"features": {0: torch.export.Dim("batch", min=1, max=1024)}}
    inputs = (torch.zeros(2, *shape),)
    program = torch.export.export(Empty(), inputs, dynamic_shapes=several)
    program.example_inputs = None
    torch.export.save(program, str(folder / "tail.pt2"))
