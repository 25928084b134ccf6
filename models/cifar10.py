"""The recipe of the shipped CIFAR-10 model: whole network, student head, exits, export.

    python models/cifar10.py --data DIR      # DIR: jpeg_train.npz, jpeg_test.npz, clean_*.npz

Seeded; every stage is kept under --work and an interrupted run goes on from there. On four idle
cores with bfloat16 the whole network takes half an hour and the distillation an hour.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from splitrt.train import (
    About,
    Frames,
    Pixels,
    Schedule,
    Split,
    Student,
    cut,
    distill,
    export,
    fast,
    holed,
    read,
    scaled,
    varied,
)

logger = logging.getLogger("cifar10")

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCH = 500
PEAK = 0.4  # learning rate of SGD
HOLE = 8  # pixels a side of the patch that is blanked
ANIMALS = [2, 3, 4, 5, 6, 7]  # what the emptiness filter looks for
STUDENT = Student(
    codes=(8, 16, 32),
    shares=(0.5, 0.75, 1.0),
    stages=((16, 1, 0), (32, 2, 1), (64, 2, 1), (96, 2, 1)),
    payload=(24, 58, 125),
    decoder=(128, 1),
)


def conv(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Residual(nn.Module):
    """Two convolutions around which the input passes unchanged (He et al. 2015)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels)
        self.second = conv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x))


class ResNet(nn.Module):
    """A shallow, wide ResNet for 32-pixel pictures: 114 MMAC, 2.0 M parameters.

    Takes float [N, 3, 32, 32], normalised; returns logits [N, 10].
    """

    def __init__(self, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32), conv(32, 64), nn.MaxPool2d(2))  # [N, 64, 16, 16]
        self.stage1 = Residual(64)
        self.stage2 = nn.Sequential(conv(64, 128), nn.MaxPool2d(2), Residual(128))  # 8 x 8
        self.stage3 = nn.Sequential(conv(128, 256), nn.MaxPool2d(2), Residual(256))  # 4 x 4
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classify = nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.classify(self.pool(x).flatten(1))


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """The training pictures twice, re-compressed and (where there is one) lossless; the tests."""

    train: Frames
    lossless: np.ndarray  # as train.images, with 8,068 of the pictures as they were
    test: Frames
    clean_test: Frames

    @classmethod
    def load(cls, folder: Path) -> Data:
        train, test, clean = (
            read(folder / f"{name}.npz", height=32, width=32)
            for name in ("jpeg_train", "jpeg_test", "clean_test_1017")
        )
        lossless = train.images.copy()
        with np.load(folder / "clean_train_8068.npz") as kept:
            lossless[kept["index"]] = kept["images"]
        return cls(train, lossless, test, clean)

    def mixed(self) -> Frames:
        """The training pictures once; every second that has a lossless copy as that."""
        images = self.train.images.copy()
        changed = np.flatnonzero((self.lossless != self.train.images).any((1, 2, 3)))[::2]
        images[changed] = self.lossless[changed]
        return interesting(Frames(images, self.train.labels))

    def steps(self, random: torch.Generator) -> list[torch.Tensor]:
        """The places of one epoch's pictures, BATCH at a time."""
        order = torch.randperm(len(self.train), generator=random)
        return [part for part in order.split(BATCH) if len(part) == BATCH]

    def batch(self, chosen: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Normalised pictures, lossless or not, mirrored or not, shifted, with a blank patch."""
        coin = torch.rand(len(chosen), 1, 1, 1, generator=random) < 0.5
        x = torch.where(
            coin,
            torch.from_numpy(self.train.images[chosen.numpy()]),
            torch.from_numpy(self.lossless[chosen.numpy()]),
        )
        return holed(varied(Pixels()(x), random), HOLE, random)


def train_whole(data: Data, epochs: int, seed: int) -> ResNet:
    """SGD with warm-up and linear decay; the running average of the weights is the result."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = ResNet().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=PEAK, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    total = len(data.train) // BATCH * epochs
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / (0.2 * total), (total - step) / (0.8 * total))
    )
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    labels = torch.from_numpy(data.train.labels)
    for epoch in range(epochs):
        for chosen in data.steps(random):
            x = data.batch(chosen, random).contiguous(memory_format=torch.channels_last)
            with fast(x.device):
                logits = model(x)
            loss = functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            pace.step()
            average.update_parameters(model)
        logger.info("whole: epoch %d of %d, loss %.3f", epoch + 1, epochs, loss.item())
    return average.module.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, frames: Frames) -> float:
    """Top-1 of a model on normalised pictures."""
    right = [
        model(Pixels()(torch.from_numpy(part.images))).argmax(1).numpy() == part.labels
        for part in frames.batches(500)
    ]
    return float(np.concatenate(right).mean())


def network() -> ResNet:
    """The untrained network, for `splitrt cuts models/cifar10.py:network`."""
    return ResNet().eval()


def trained(data: Data, options: argparse.Namespace) -> ResNet:
    """The whole network, trained now or before."""
    kept = options.work / "whole.safetensors"
    if not kept.exists():
        save_file(train_whole(data, options.epochs, options.seed).state_dict(), kept)
    whole = network()
    whole.load_state_dict(load_file(kept))
    return whole


def split_of(whole: ResNet, data: Data, options: argparse.Namespace) -> Split:
    """The student in the head's place, distilled now or before; with --alone, of that one width."""
    student, name = STUDENT, "student"
    if options.alone is not None:
        student, name = alone(STUDENT, options.alone), f"alone-w{options.alone}"
    split = cut(whole, after="stage3.1", student=student, shape=(1, 3, 32, 32))
    schedule = Schedule(
        features=sum(options.student_epochs),
        task=options.exit_epochs,
        batch=250,
        once=True,
        restart=tuple(accumulate(options.student_epochs[:-1])),
    )
    distill(
        split,
        teacher=whole,
        frames=data.mixed(),
        schedule=schedule,
        seed=options.seed,
        checkpoint=options.work / name,
        progress=not options.quiet,
    )
    return split


def alone(student: Student, codes: int) -> Student:
    """One of the student's widths as a student of its own, to see what sharing costs."""
    share = student.shares[student.codes.index(codes)]
    stages = tuple((scaled(c, (share,))[0], stride, n) for c, stride, n in student.stages)
    return replace(student, codes=(codes,), shares=(1.0,), stages=stages)


def main() -> None:
    """Train what --work does not hold yet, and export to --to."""
    options = _options()
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    torch.set_num_threads(options.threads)
    data = Data.load(options.data)
    options.work.mkdir(parents=True, exist_ok=True)
    whole = trained(data, options)
    logger.info("whole: %.4f on jpeg_test", accuracy(whole, data.test))
    split = split_of(whole, data, options)
    export(
        split,
        options.to,
        frames=data.mixed(),
        held_out=interesting(data.test[np.arange(0, len(data.test), 2)]),  # score on the odd half
        labels=CLASSES,
        about=About(
            recipe="models/cifar10.py",
            data="CIFAR-10 (Krizhevsky 2009), a copy re-compressed as JPEG; 8,068 lossless",
            seed=options.seed,
            trained_by="splitrt, from scratch",
            licence="Apache-2.0",
        ),
        pareto=options.alone is None and not options.every,
    )
    logger.info("wrote %s", options.to)


def interesting(frames: Frames) -> Frames:
    """The frames with what the filter is to let pass: animals."""
    return Frames(frames.images, frames.labels, np.isin(frames.labels, ANIMALS))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the .npz files")
    parser.add_argument("--to", type=Path, default=Path("models/cifar10-resnet"))
    parser.add_argument("--work", type=Path, default=Path("build/cifar10"))
    parser.add_argument("--epochs", type=int, default=20, help="of the whole network")
    parser.add_argument("--student-epochs", type=int, nargs="+", default=[20, 30])
    parser.add_argument("--exit-epochs", type=int, default=3)
    parser.add_argument("--alone", type=int, choices=STUDENT.codes, help="train this width alone")
    parser.add_argument("--every", action="store_true", help="export dominated plans too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args()


if __name__ == "__main__":
    main()
