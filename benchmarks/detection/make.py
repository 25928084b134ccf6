r"""Distil the cut detector: FastestDet, a bottleneck behind its second stage, a filter for people.

python -m benchmarks.detection.make --to build/person [--data DIR] [--threads 2]

It learns from its teacher alone, on COCO128's 128 training pictures (twice an epoch), a thousand
pictures of ImageNet and every fourth frame of the video's first half, but for 140 frames which set
the filter's threshold. The second half and COCO128's val2017 are for `python -m
benchmarks.detection`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional

from benchmarks.detection.data import HALF, coco, extra, labels, resized, video
from benchmarks.detection.fastestdet import FastestDet
from splitrt.train import About, Frames, Layout, Pixels, Schedule, cut, distill, export

DATA = Path(__file__).parents[3] / "shared" / "data"
SIDE = 352
UNIT = Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
LAYOUT = Layout(kind="fastestdet", threshold=0.35, overlap=0.45)
JUDGED = range(380, 520)  # of the video: with and without people
PERSON = 0
EPSILON = 1e-5


def whole(data: Path) -> FastestDet:
    """The published network, made to take RGB."""
    model = FastestDet()
    model.load_state_dict(load_file(data / "detectors" / "FastestDet.safetensors"))
    first = model.backbone.first_conv[0]
    first.weight.data = first.weight.data.flip(1).contiguous()
    return model.eval()


def score(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The score of every place [N, h, w], and its best class."""
    best, label = outputs[:, 5:].max(1)
    return outputs[:, 0].clamp(0, 1) ** 0.6 * best.clamp(0, 1) ** 0.4, label


def far(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
    """How far a detector is from its teacher, mostly where the teacher found something."""
    (here,), (there,) = got, wanted
    weight = score(there)[0].square()
    total = weight.sum().clamp(min=1)
    objects = there[:, 0].clamp(EPSILON, 1 - EPSILON)
    missed = functional.binary_cross_entropy(
        here[:, 0].clamp(EPSILON, 1 - EPSILON), objects, reduction="none"
    )
    boxes = functional.smooth_l1_loss(here[:, 1:5], there[:, 1:5], reduction="none", beta=0.2)
    classes = here[:, 5:].clamp(min=EPSILON).log()
    wrong = functional.kl_div(classes, there[:, 5:], reduction="none").sum(1)
    parts = missed * (4 * weight + 0.05) + (2 * boxes.sum(1) + wrong) * weight
    return parts.sum() / total


@torch.inference_mode()
def people(model: FastestDet, images: np.ndarray) -> np.ndarray:
    """Whether the whole detector finds a person, bool [N]."""
    seen = []
    for part in Frames(images).batches(32):
        scores, label = score(model(UNIT(torch.from_numpy(part.images))))
        seen.append(((scores >= LAYOUT.threshold) & (label == PERSON)).flatten(1).any(1))
    return torch.cat(seen).numpy()


def frames(data: Path, model: FastestDet) -> tuple[Frames, Frames]:
    """(to train on, to judge the filter by)."""
    half = list(video(data, range(HALF)))
    judged = resized([half[index] for index in JUDGED], SIDE)
    shown = [half[index] for index in range(0, HALF, 4) if index not in JUDGED]
    pictures = 2 * coco(data, "train2017") + extra(data) + shown
    train = resized(pictures, SIDE)
    return tuple(Frames(images, None, people(model, images)) for images in (train, judged))


def make(options: argparse.Namespace) -> None:
    """Cut, distil, export."""
    torch.set_num_threads(options.threads)
    model, started = whole(options.data), time.monotonic()
    train, judged = frames(options.data, model)
    split = cut(
        model,
        after="backbone.stage2",
        channels=options.channels,
        shape=(1, 3, SIDE, SIDE),
        pixels=UNIT,
    )
    schedule = Schedule(features=options.features, task=options.task, batch=16)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    kept = options.to.parent / f".{options.to.name}-distill"
    distill(split, teacher=model, frames=train, schedule=schedule, far=far, checkpoint=kept)
    manifest = export(
        split,
        options.to,
        frames=train,
        held_out=judged,
        labels=labels(options.data),
        boxes=LAYOUT,
        about=About(
            recipe="benchmarks/detection/make.py",
            data="COCO128 train2017, 1,000 pictures of ImageNet, half of a video; no labels",
            trained_by="the splitrt project, from FastestDet (dog-qiuqiu)",
            licence="BSD-3-Clause",
        ),
    )
    for file in kept.parent.glob(f"{kept.name}.*"):
        file.unlink()
    record, macs = manifest.widths[0].filter, manifest.widths[0].head_macs
    print(f"{len(train)} pictures, {time.monotonic() - started:.0f} s, {options.threads} threads")
    print(f"head {macs / 1e6:.1f} of {manifest.cut.whole_macs / 1e6:.1f} MMAC; filter {record}")


def main() -> None:
    """Make the model directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--features", type=int, default=20, help="epochs of the first stage")
    parser.add_argument("--task", type=int, default=8, help="epochs of the second")
    parser.add_argument("--threads", type=int, default=1)
    make(parser.parse_args())


if __name__ == "__main__":
    main()
