"""Proof that a model directory is whole: hashes, names, and that both halves run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from splitrt.core.manifest import prove
from splitrt.edge.head import Head, LocalTail
from splitrt.errors import ModelError

CLOSE = 1e-3  # relative, between the two tails


def check(folder: Path) -> Iterator[str]:
    """A line for everything that was proved; ModelError at the first that is wrong."""
    manifest = prove(folder)
    yield f"{folder}: {manifest.name}, {manifest.digest[:6].hex()}, {len(manifest.files)} files"
    head = Head(folder, manifest)
    blank = np.full(manifest.input.shape, 100, manifest.input.dtype)
    seen = head(blank, head.outputs)
    if list(seen["features"].shape) != manifest.cut.shape:
        found = list(seen["features"].shape)
        raise ModelError(f"the head gives {found}, model.toml names {manifest.cut.shape}")
    yield f"head runs on {head.provider}: {', '.join(head.outputs)}"
    if "tail.onnx" not in manifest.files:
        return
    outputs = LocalTail(folder, manifest)(seen["features"])
    for output in manifest.outputs:
        if list(outputs[output.name].shape) != output.shape:
            raise ModelError(f"output {output.name} is {list(outputs[output.name].shape)}")
    yield f"tail.onnx answers {', '.join(outputs)}"
    if importlib.util.find_spec("torch") is None:
        yield "tail.pt2 was not run: torch is not installed (a device does not need it)"
        return
    yield _same_tails(folder, seen["features"], outputs)


def _same_tails(folder: Path, features: np.ndarray, outputs: dict[str, np.ndarray]) -> str:
    import torch

    from splitrt.cloud.tail import Tail
    from splitrt.core.manifest import Manifest

    arrays = Tail(folder, Manifest.load(folder)).run(torch.from_numpy(features[None]))
    far = max(
        float(np.abs(ours[0] - theirs).max() / max(float(np.abs(theirs).max()), 1e-6))
        for ours, theirs in zip(arrays, outputs.values(), strict=True)
    )
    if far > CLOSE:
        raise ModelError(f"tail.pt2 and tail.onnx differ by {far:.1e} relative\nhelp: export again")
    return f"tail.pt2 answers the same: {far:.0e} relative"
