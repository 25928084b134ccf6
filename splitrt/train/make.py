"""From a model on the import path to a model directory, in one call: what `splitrt split` does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from splitrt.core.manifest import Manifest
from splitrt.errors import ModelError
from splitrt.train.cut import Pixels, Split, cut
from splitrt.train.distill import Schedule, distill
from splitrt.train.export import About, export
from splitrt.train.frames import Frames, read
from splitrt.train.whole import example as example_of
from splitrt.train.whole import load

PIXELS = {"imagenet": Pixels(), "unit": Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), "none": None}
HELD_OUT = 10  # every tenth frame judges what the others trained


def make(
    whole: str,
    *,
    after: str,
    to: Path,
    example: tuple[tuple[int, ...], str],
    bottleneck: tuple[int | None, int, int] = (None, 10, 0),
    frames: Path | None = None,
    pixels: str = "imagenet",
) -> Manifest:
    """Cut MODULE:CALLABLE `after` a module and export it to the folder `to`.

    example: (shape with batch, dtype).  bottleneck: (channels or None, epochs a stage, seed).
    pixels: a name in PIXELS; other inputs than three-channel pictures ignore it.
    """
    if pixels not in PIXELS:
        raise ModelError(f"no pixels {pixels!r}\nhelp: one of {', '.join(PIXELS)}")
    channels, epochs, seed = bottleneck
    if channels is not None and frames is None:
        raise ModelError("a bottleneck is trained on pictures\nhelp: pass --frames FOLDER")
    shape, dtype = example
    module = load(whole)
    split = cut(module, after=after, channels=channels, example=example_of(shape, dtype))
    if split.pixels is not None:
        split.pixels = PIXELS[pixels]
    pictures = read(frames, height=shape[2], width=shape[3]) if frames is not None else None
    train, held_out = _parted(pictures)
    kept = None
    if channels is not None and train is not None:
        kept = _checkpoint(to, split, bottleneck, len(train))
        distill(
            split,
            teacher=module,
            frames=train,
            schedule=Schedule(features=epochs, task=epochs),
            seed=seed,
            checkpoint=kept,
        )
    about = About(recipe=f"splitrt split {whole} --after {after}", seed=seed)
    manifest = export(split, to, frames=train, held_out=held_out, about=about)
    for file in kept.parent.glob(f"{kept.name}.*") if kept else ():
        file.unlink()
    return manifest


def _checkpoint(to: Path, split: Split, bottleneck: object, frames: int) -> Path:
    """Where an interrupted distillation lies: beside its result, named after what it was."""
    run = f"{split.graph.fingerprint} {split.place.name} {bottleneck} {frames}"
    return to.parent / f".{to.name}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def _parted(frames: Frames | None) -> tuple[Frames | None, Frames | None]:
    if frames is None or len(frames) < 2 * HELD_OUT:
        return frames, None
    judge = torch.arange(len(frames)).remainder(HELD_OUT).eq(0).numpy()
    return frames[np.flatnonzero(~judge)], frames[np.flatnonzero(judge)]
