"""Proof that a model directory is whole: hashes, names, and that both halves run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from splitrt.core.codec import codecs
from splitrt.core.hashed import once
from splitrt.core.language import LAYERS, Language, is_language
from splitrt.core.manifest import NAME, TAIL, Manifest, alone, prove, verified
from splitrt.core.rows import Rows
from splitrt.core.shards import Shards, is_star
from splitrt.edge.decoder import LARGEST_WEIGHTS, Decoder
from splitrt.edge.head import Head, LocalTail
from splitrt.errors import ModelError
from splitrt.star.trial import trial

CLOSE = 1e-3  # relative
TRIED = (0, 1)  # tokens


def check(folder: Path) -> Iterator[str]:
    """A line for everything that was proved; ModelError at the first that is wrong.

    A model whose pictures change their size is run at the smallest and at the largest. Of a
    language model the device's part is run, of a star what is here. No file is hashed twice.
    """
    lines, known = _lines(folder), {}
    while True:
        with once(known):  # but not while a line is read
            line = next(lines, None)
        if line is None:
            return
        yield line


def _lines(folder: Path) -> Iterator[str]:
    if is_language(folder):
        yield from _language(folder)
        return
    if is_star(folder):
        yield from _star(folder)
        return
    manifest = prove(folder)
    yield f"{folder}: {manifest.name}, {manifest.digest[:6].hex()}, {len(manifest.files)} files"
    codecs(folder, manifest)  # tables and dictionaries are what they should be
    sizes = [None] if manifest.sizes is None else [manifest.sizes.smallest, manifest.sizes.largest]
    for place, width in enumerate(manifest.widths):
        head = Head(folder, manifest, width)
        runs = [_run(head, manifest.at(size), place) for size in sizes]
        yield f"{width.head} runs on {head.provider}: {', '.join(head.outputs)}{_at(sizes)}"
    if TAIL not in manifest.files:
        return
    tail = LocalTail(folder, manifest)
    for run in runs:
        run.outputs = tail(run.features, run.sides)
        for output in run.manifest.outputs:
            if list(run.outputs[output.name].shape) != output.shape:
                raise ModelError(f"output {output.name} is {list(run.outputs[output.name].shape)}")
    yield f"tail.onnx answers {', '.join(runs[0].outputs)}"
    if importlib.util.find_spec("torch") is None:
        yield "tail.pt2 was not run: torch is not installed (a device does not need it)"
        return
    yield from _same_answers(folder, manifest, runs)


def _language(folder: Path) -> Iterator[str]:
    """The server's weights may be missing: a device does without them."""
    manifest = Language.load(folder)
    alone(folder, manifest)
    here = [name for name in manifest.files if name != LAYERS or (folder / LAYERS).exists()]
    for name in here:
        verified(folder, manifest, name, largest=LARGEST_WEIGHTS)
    yield f"{folder}: {manifest.name}, {manifest.digest[:6].hex()}, {len(here)} files"
    if LAYERS not in here:
        yield f"{LAYERS} is not here: a server needs it, a device does not"
    decoder = Decoder(folder, manifest, longest=min(manifest.longest, len(TRIED)))
    for one in manifest.exits:
        found = decoder.early(TRIED, one.layer)
        decoder.truncate(0)
        if not np.isfinite(found).all():
            raise ModelError(f"the exit after layer {one.layer} gives numbers that are not finite")
    exits = ", ".join(str(one.layer) for one in manifest.exits)
    shape = manifest.shape
    yield (
        f"{manifest.cut} of {shape.layers} layers run on CPU in {manifest.weights}: exits after "
        f"{exits}; rows of {shape.hidden} numbers cross, {Rows(manifest.codec, shape.hidden).size} "
        f"bytes in {manifest.codec}"
    )


def _star(folder: Path) -> Iterator[str]:
    """Other devices' folders may be missing: a device needs but its own."""
    manifest = Shards.load(folder)
    here = [one for one in manifest.devices if (folder / one.folder).is_dir()]
    extra = {path.name for path in folder.iterdir()} - {NAME, *(one.folder for one in here)}
    if extra:
        raise ModelError(f"{folder} holds {min(extra)!r}, which {NAME} does not name")
    yield f"{folder}: {manifest.name}, {manifest.digest[:6].hex()}, {len(manifest.devices)} devices"
    for one in manifest.devices:
        if one not in here:
            yield f"{one.folder} is not here: its own device needs it, others do not"
            continue
        alone(folder / one.folder, one)
        for name in one.files:
            verified(folder / one.folder, one, name, largest=LARGEST_WEIGHTS)
        heads, columns = (f"{a} to {b - 1}" for a, b in (one.queries, one.columns))
        yield f"{one.folder}: {len(one.files)} files, heads {heads}, columns {columns}"
    numbers = [number for number, one in enumerate(manifest.devices) if one in here]
    logits, layers = trial(folder, manifest, numbers), manifest.shape.layers
    parts = f"{len(here)} of {len(manifest.devices)} devices' parts of {layers} layers"
    end = "the hub would say what tokens become"
    if logits is not None:
        end = f"tokens become logits of {len(logits):,} words"
    yield f"{parts} run on CPU in {manifest.weights}: {end}"


@dataclass(slots=True, eq=False)
class _Run:
    """One picture through the head, and through tail.onnx."""

    manifest: Manifest  # for the picture's size
    picture: np.ndarray
    features: np.ndarray
    sides: list[np.ndarray]
    outputs: dict[str, np.ndarray] = field(default_factory=dict)


def _run(head: Head, manifest: Manifest, place: int) -> _Run:
    picture = np.full(manifest.input.shape, 100, manifest.input.dtype)
    features = head(picture, head.outputs)["features"]
    width = manifest.widths[place]
    if list(features.shape) != width.shape:
        found = list(features.shape)
        raise ModelError(f"{width.head} gives {found}, model.toml names {width.shape}")
    sides = [np.ones(side.shape, side.dtype) for side in manifest.side]
    return _Run(manifest, picture, features, sides)


def _same_answers(folder: Path, manifest: Manifest, runs: list[_Run]) -> Iterator[str]:
    """tail.pt2 beside tail.onnx; and beside the whole model, where the cut is exact."""
    import torch

    from splitrt.cloud.program import load_program
    from splitrt.cloud.tail import Tail

    tail = Tail(folder, manifest)
    far = 0.0
    for run in runs:
        sides = [side[None] for side in run.sides]
        far = max(far, _gap(tail.run(torch.from_numpy(run.features[None]), *sides), run))
    if far > CLOSE:
        raise ModelError(f"tail.pt2 and tail.onnx differ by {far:.1e} relative\nhelp: export again")
    yield f"tail.pt2 answers the same: {far:.0e} relative"
    if manifest.cut.channels is not None or "whole.pt2" not in manifest.files:
        return
    whole = load_program(verified(folder, manifest, "whole.pt2")).module()
    far = 0.0
    for run in runs:
        inputs = [torch.from_numpy(array[None]) for array in (run.picture, *run.sides)]
        with torch.inference_mode():
            far = max(far, _gap([output.numpy() for output in whole(*inputs)], run))
    if far > CLOSE:
        raise ModelError(f"the halves and the whole differ by {far:.1e} relative")
    yield f"the whole model answers the same: {far:.0e} relative"


def _gap(arrays: list[np.ndarray], run: _Run) -> float:
    """The largest relative difference to what tail.onnx answered."""
    pairs = zip(arrays, run.outputs.values(), strict=True)
    return max(
        float(np.abs(ours[0] - theirs).max() / max(float(np.abs(theirs).max()), 1e-6))
        for ours, theirs in pairs
    )


def _at(sizes: Sequence[tuple[int, int] | None]) -> str:
    words = [f"{size[0]}×{size[1]}" for size in sizes if size is not None]
    return f", at {' and '.join(words)}" if words else ""
