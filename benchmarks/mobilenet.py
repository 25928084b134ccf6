r"""MobileNetV2 of ImageNet, and 1,000 labelled pictures at 224 pixels: a model to cut and to score.

python benchmarks/mobilenet.py --data DIR [--frames build/imagenet224.npz]

DIR holds mobilenet_v2_imagenet/ (BatchNorm folded, int8 weights and a scale each, after
pytorch/ios-demo-app) and imagenet_sample1000/ (one picture a class, 256 pixels a side). Prints
top-1 and top-5; with --frames it also writes the pictures for the verbs:

SPLITRT_DATA=DIR splitrt split benchmarks/mobilenet.py:whole --after features.6 \
  --channels 12 --to build/mobilenet --frames build/imagenet224.npz

and with --to it distils and scores by itself, on a fifth of the pictures that trained nothing.
The pictures look like ImageNet's training pictures: quote agreement and relative
loss of what is measured on them, never plain accuracy.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from splitrt.train import Frames, Pixels, Schedule, cut, distill, export, score

DATA = Path(os.environ.get("SPLITRT_DATA", Path(__file__).parents[2] / "shared" / "data"))
SIZE = 224
# expansion, channels, blocks, stride (Sandler et al. 2018, table 2)
STAGES = [
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
    (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
]  # fmt: skip


class Residual(nn.Module):
    """An inverted residual: widen, filter each channel by itself, narrow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.passes = stride == 1 and inputs == outputs
        widen = [] if expansion == 1 else [_conv(inputs, inner, 1)]
        self.conv = nn.Sequential(
            *widen,
            _conv(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, outputs, 1),
            nn.Identity(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.passes else self.conv(x)


class MobileNetV2(nn.Module):
    """Float [N, 3, 224, 224], normalised as `Pixels()` does -> logits [N, 1000].

    Modules are named as torchvision names them; BatchNorm lies in the convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 32, 3, 2)]
        inputs = 32
        for expansion, outputs, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(Residual(inputs, outputs, stride if block == 0 else 1, expansion))
                inputs = outputs
        self.features = nn.Sequential(*layers, _conv(inputs, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def whole(data: Path = DATA) -> MobileNetV2:
    """The trained network in eval mode."""
    stored = load_file(data / "mobilenet_v2_imagenet" / "mobilenet_v2_int8.safetensors")
    weights = {}
    for name, tensor in stored.items():
        if name.endswith(".weight_q"):
            stem = name.removesuffix(".weight_q")
            weights[f"{stem}.weight"] = tensor.float() * stored[f"{stem}.scale"]
        elif name.endswith(".bias"):
            weights[name] = tensor
    model = MobileNetV2()
    model.load_state_dict(weights)  # strict: every weight has its place
    return model.eval()


def pictures(data: Path = DATA, *, limit: int | None = None) -> Frames:
    """The 1,000 pictures, cropped from their middle to 224 pixels, with their classes."""
    folder = data / "imagenet_sample1000"
    with (folder / "labels.csv").open() as file:
        labels = [int(row["index"]) for row in csv.DictReader(file)][:limit]
    with zipfile.ZipFile(folder / "images_256.zip") as archive:
        images = [_cropped(archive.read(f"{label:04}.jpg")) for label in labels]
    return Frames(np.stack(images), np.array(labels, np.int64))


@torch.inference_mode()
def accuracy(model: nn.Module, frames: Frames) -> tuple[float, float]:
    """(top-1, top-5), 0 to 1."""
    pixels, first, five = Pixels(), 0, 0
    for part in frames.batches(50):
        best = model(pixels(torch.from_numpy(part.images))).topk(5).indices
        hits = best == torch.from_numpy(part.labels)[:, None]
        first += int(hits[:, 0].sum())
        five += int(hits.sum())
    return first / len(frames), five / len(frames)


def main() -> None:
    """Score the whole network; write the pictures where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--frames", type=Path, help="write the pictures to this .npz")
    parser.add_argument("--to", type=Path, help="distil a bottleneck, export it here and score it")
    parser.add_argument("--after", default="features.6")
    parser.add_argument("--channels", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=12, help="of each stage")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--json", type=Path, help="write the score there, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    frames = pictures(options.data, limit=options.limit)
    first, five = accuracy(whole(options.data), frames)
    print(f"{len(frames)} pictures: top-1 {first:.1%}, top-5 {five:.1%}")
    if options.frames is not None:
        options.frames.parent.mkdir(parents=True, exist_ok=True)
        np.savez(options.frames, images=frames.images, labels=frames.labels)
        print(f"written to {options.frames}")
    if options.to is not None:
        distilled(options, Frames(frames.images))


def distilled(options: argparse.Namespace, frames: Frames) -> None:
    """A bottleneck trained without labels on four fifths, scored by agreement on the last fifth."""
    model = whole(options.data)
    judge = np.arange(len(frames)) % 5 == 0
    train, held_out = frames[np.flatnonzero(~judge)], frames[np.flatnonzero(judge)]
    split = cut(model, after=options.after, channels=options.channels)
    schedule = Schedule(features=options.epochs, task=options.epochs, batch=32)
    kept = options.to.parent / f"{options.to.name}-distill"
    distill(split, teacher=model, frames=train, schedule=schedule, checkpoint=kept)
    export(split, options.to, frames=train, held_out=held_out)
    found = score(options.to, held_out, threads=options.threads)
    print(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found.as_dict(), indent=1))


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, (folded) BatchNorm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups),
        nn.Identity(),
        nn.ReLU6(),
    )


def _cropped(file: bytes) -> np.ndarray:
    image = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    top, left = ((n - SIZE) // 2 for n in image.shape[:2])
    return image[top : top + SIZE, left : left + SIZE]


if __name__ == "__main__":
    main()
