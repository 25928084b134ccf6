"""From a model on the import path to a model directory, in one call: what `splitrt split` does."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from splitrt.core.manifest import Manifest
from splitrt.errors import ModelError
from splitrt.train.cut import Pixels, Split, cut
from splitrt.train.distill import Schedule, distill
from splitrt.train.export import About, export
from splitrt.train.frames import Frames, read
from splitrt.train.free import Free
from splitrt.train.whole import example as example_of
from splitrt.train.whole import load

PIXELS = {"imagenet": Pixels(), "unit": Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), "none": None}
HELD_OUT = 10  # every tenth frame judges what the others trained


@dataclass(frozen=True, slots=True)
class Takes:
    """What a model takes: a tensor of that shape (with batch) and dtype, and what is free."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    free: Free = field(default_factory=Free)

    def example(self) -> torch.Tensor:
        """A random input, of the largest size where pictures change theirs."""
        return example_of(self.shape, self.dtype)


@dataclass(frozen=True, slots=True)
class Narrow:
    """The bottleneck to train: channels, or the channels of a student's widths; or none."""

    channels: int | None = None
    widths: tuple[int, ...] = ()
    epochs: int = 10  # of each stage
    seed: int = 0

    def __post_init__(self) -> None:
        if self.channels is not None and self.widths:
            raise ModelError(
                "a bottleneck behind the model's own layers, and a head of several widths\n"
                "help: --channels or --widths, not both"
            )

    def __bool__(self) -> bool:
        return self.channels is not None or bool(self.widths)


def beside(sides: Sequence[str]) -> dict[str, torch.Tensor]:
    """Examples of side inputs written NAME:DTYPE:SHAPE, such as size:int64:2."""
    found = {}
    for text in sides:
        match = re.fullmatch(r"([A-Za-z_]\w*):(float32|int64):(\d{1,4}(?:,\d{1,4})*)", text)
        if match is None:
            raise ModelError(
                f"{text!r} is no side input\nhelp: write NAME:DTYPE:SHAPE, as in size:int64:2"
            )
        shape = [int(n) for n in match[3].split(",")]
        found[match[1]] = torch.ones(2, *shape, dtype=getattr(torch, match[2]))
    return found


def make(
    whole: str,
    *,
    after: str,
    to: Path,
    takes: Takes,
    bottleneck: Narrow = Narrow(),
    frames: Path | None = None,
    pixels: str = "imagenet",
) -> Manifest:
    """Cut MODULE:CALLABLE `after` a module and export it to the folder `to`.

    pixels: a name in PIXELS; other inputs than three-channel pictures ignore it.
    """
    if pixels not in PIXELS:
        raise ModelError(f"no pixels {pixels!r}\nhelp: one of {', '.join(PIXELS)}")
    if bottleneck and frames is None:
        raise ModelError("a bottleneck is trained on pictures\nhelp: pass --frames FOLDER")
    module = load(whole)
    split = cut(
        module,
        after=after,
        channels=bottleneck.channels,
        student=bottleneck.widths or None,
        example=takes.example(),
        free=takes.free,
    )
    if split.pixels is not None:
        split.pixels = PIXELS[pixels]
    pictures = None
    if frames is not None:
        pictures = read(frames, height=takes.shape[2], width=takes.shape[3])
    train, held_out = _parted(pictures)
    kept = None
    if bottleneck and train is not None:
        kept = _checkpoint(to, split, bottleneck, len(train))
        distill(
            split,
            teacher=module,
            frames=train,
            schedule=Schedule(features=bottleneck.epochs, task=bottleneck.epochs),
            seed=bottleneck.seed,
            checkpoint=kept,
        )
    about = About(recipe=f"splitrt split {whole} --after {after}", seed=bottleneck.seed)
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
