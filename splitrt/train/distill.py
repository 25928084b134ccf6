"""Train a bottleneck in BottleFit's two stages, against the whole model as teacher.

1. features: head, encoder and decoder learn to give the tail what the whole model gave it,
   measured at the cut, at several points behind it and at the outputs; the tail is frozen.
2. task: head and encoder are frozen; decoder, tail and local exit learn the task.

(Matsubara, Callegaro, Singh, Levorato, Restuccia 2022: BottleFit.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from splitrt.errors import ModelError
from splitrt.train.bottleneck import blur
from splitrt.train.checkpoint import Keeper, bar
from splitrt.train.cut import Split, wants_pixels
from splitrt.train.frames import Frames
from splitrt.train.graph import trace

HEAD_LR = 0.1  # the head was trained already: a tenth of the rate of the fresh layers
TASK_LR = 0.3


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast: epochs of the two stages, Adam's rate, pictures a step."""

    features: int = 10
    task: int = 10
    lr: float = 2e-3
    batch: int = 256
    augment: bool = True


def distill(
    split: Split,
    *,
    teacher: nn.Module,
    frames: Frames,
    schedule: Schedule = Schedule(),
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Split:
    """Train the split's bottleneck and exit in place; returns it.

    Labels are used where the frames have them, else the teacher's answers alone. With
    `checkpoint` (a file without suffix) the state is kept after every epoch, and a run that was
    interrupted goes on from there and ends as it would have.
    """
    if split.bottleneck is None:
        raise ModelError("there is no bottleneck to train\nhelp: cut(…, channels=12)")
    torch.manual_seed(seed)
    run = _Run(split, teacher, frames, schedule, seed)
    keeper = Keeper(Path(checkpoint)) if checkpoint else None
    steps = math.ceil(len(frames) / schedule.batch) * (schedule.features + schedule.task)
    with bar(progress, steps) as advance:
        for stage in (run.features_stage(), run.task_stage()):
            _train(stage, run, keeper, advance)
    return split.eval()


@dataclass(slots=True)
class _Stage:
    name: str
    epochs: int
    parts: dict[str, nn.Module]  # what is trained, and so what a checkpoint holds
    optimiser: torch.optim.Optimizer
    loss: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    enter: Callable[[], None]


class _Run:
    """The networks of one distillation and the losses between them."""

    def __init__(
        self, split: Split, teacher: nn.Module, frames: Frames, schedule: Schedule, seed: int
    ) -> None:
        self.split, self.frames, self.schedule, self.seed = split, frames, schedule, seed
        self.pixels = wants_pixels(split)
        graph = trace(teacher, split.graph.example)
        if graph.fingerprint != split.graph.fingerprint:
            raise ModelError(
                "the teacher is not the model that was cut\nhelp: pass the module given to cut()"
            )
        place = graph.find(split.place.name)
        taps = graph.taps(place)
        self.count = 1 + len(taps)
        self.teacher = copy.deepcopy(graph.tap_whole(place, taps)).requires_grad_(False).eval()
        self.tail = copy.deepcopy(graph.part_with_taps(place, taps)).eval()
        self.tail.load_state_dict(split.tail.state_dict())

    def features_stage(self) -> _Stage:
        split, lr = self.split, self.schedule.lr
        encoder = nn.ModuleList([split.bottleneck])
        groups = [
            {"params": list(encoder.parameters()), "lr": lr},
            {"params": list(split.head.parameters()), "lr": lr * HEAD_LR},
        ]
        return _Stage(
            "features",
            self.schedule.features,
            {"head": split.head, "bottleneck": split.bottleneck},
            torch.optim.Adam(groups),
            self._feature_loss,
            self._enter_features,
        )

    def task_stage(self) -> _Stage:
        split, lr = self.split, self.schedule.lr
        parts = {"decoder": split.bottleneck.decoder, "tail": self.tail}
        groups = [
            {"params": list(split.bottleneck.decoder.parameters()), "lr": lr * TASK_LR},
            {"params": list(self.tail.parameters()), "lr": lr * TASK_LR * HEAD_LR},
        ]
        if split.exit is not None:
            parts["exit"] = split.exit
            groups.append({"params": list(split.exit.parameters()), "lr": lr})
        return _Stage(
            "task",
            self.schedule.task,
            parts,
            torch.optim.Adam(groups),
            self._task_loss,
            self._enter_task,
        )

    def _enter_features(self) -> None:
        self.split.requires_grad_(True)
        self.tail.requires_grad_(False)
        self.split.bottleneck.train()

    def _enter_task(self) -> None:
        self.split.requires_grad_(True)
        self.split.head.requires_grad_(False)
        self.split.bottleneck.requires_grad_(False).eval()
        self.split.bottleneck.decoder.requires_grad_(True).train()
        self.tail.requires_grad_(True)
        if self.split.exit is not None:
            self.split.exit.train()

    def _feature_loss(self, x: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.teacher(x)
        z = blur(self.split.project(self.split.trunk(x)))
        first = self.split.bottleneck.decode(z)
        got = (first, *self.tail(first))
        pairs = zip(got, wanted, strict=True)
        return sum((_distance(a.float(), b.float()) for a, b in pairs), torch.zeros(()))

    def _task_loss(self, x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.teacher(x)[self.count :]
            trunk = self.split.trunk(x)
            z = blur(self.split.project(trunk))
        got = self.tail(self.split.bottleneck.decode(z))[self.count - 1 :]
        if self.split.classes is None:
            pairs = zip(got, wanted, strict=True)
            return sum((_distance(a.float(), b.float()) for a, b in pairs), torch.zeros(()))
        loss = _task(got[0], wanted[0], labels)
        if self.split.exit is not None:
            loss = loss + _task(self.split.exit(trunk), wanted[0], labels)
        return loss

    def settle(self) -> None:
        """Give the trained tail back to the split."""
        trained = self.tail.state_dict()
        self.split.tail.load_state_dict(
            {name: trained[name] for name in self.split.tail.state_dict()}
        )

    def steps(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """The pictures of one epoch, shuffled and varied by seed and epoch alone."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.frames), generator=random)
        device = next(self.split.parameters()).device
        for chosen in order.split(self.schedule.batch):
            if len(chosen) < 2:
                continue  # BatchNorm needs two
            batch = self.frames[chosen.numpy()]
            x = self.pixels(torch.from_numpy(batch.images).to(device))
            if self.schedule.augment:
                x = varied(x, random)
            labels = None if batch.labels is None else torch.from_numpy(batch.labels).to(device)
            yield x.contiguous(memory_format=torch.channels_last), labels


def _train(
    stage: _Stage, run: _Run, keeper: Keeper | None, advance: Callable[[str, float], None]
) -> None:
    stage.enter()
    batch, frames = run.schedule.batch, len(run.frames)
    steps = max(1, math.ceil(frames / batch))
    total = max(1, steps * stage.epochs)
    rates = [group["lr"] for group in stage.optimiser.param_groups]
    first = keeper.restore(stage) if keeper else 0
    advance(stage.name, first * steps)
    for epoch in range(first, stage.epochs):
        for number, (x, labels) in enumerate(run.steps(epoch + 1000 * (stage.name == "task"))):
            for group, rate in zip(stage.optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * _pace((epoch * steps + number) / total)
            with fast(x.device):
                loss = stage.loss(x, labels)
            stage.optimiser.zero_grad()
            loss.backward()
            stage.optimiser.step()
            advance(f"{stage.name} {loss.item():.3f}", 1)
        if keeper:
            keeper.keep(stage, epoch + 1)
    run.settle()


def _pace(done: float) -> float:
    """Warm up over the first twentieth, then a cosine to a hundredth."""
    return min(done / 0.05 + 0.01, 0.505 + 0.495 * math.cos(math.pi * done))


def _distance(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Squared error relative to the teacher's variance, so that every point weighs the same."""
    return functional.mse_loss(got, wanted) / wanted.var().clamp(min=1e-6)


def _task(
    got: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor | None, heat: float = 2.0
) -> torch.Tensor:
    """Half the labels, half the teacher's softened answer (Hinton et al. 2015)."""
    got, teacher = got.float(), teacher.float()
    soft = functional.kl_div(
        (got / heat).log_softmax(1), (teacher / heat).softmax(1), reduction="batchmean"
    )
    if labels is None:
        return heat**2 * soft
    return 0.5 * functional.cross_entropy(got, labels) + 0.5 * heat**2 * soft


def varied(x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Each picture of [N, C, H, W] mirrored or not and shifted by up to a tenth."""
    count, _, height, width = x.shape
    x = torch.where((torch.rand(count, generator=random) < 0.5).view(-1, 1, 1, 1), x, x.flip(3))
    reach = max(1, min(height, width) // 10)
    x = functional.pad(x, (reach,) * 4, mode="reflect")
    down, right = torch.randint(0, 2 * reach + 1, (2, count), generator=random)
    rows = down[:, None, None, None] + torch.arange(height)[None, None, :, None]
    columns = right[:, None, None, None] + torch.arange(width)[None, None, None, :]
    which = torch.arange(count)[:, None, None, None]
    return x[which, torch.arange(x.shape[1])[None, :, None, None], rows, columns]


def fast(device: torch.device) -> torch.autocast:
    """bfloat16 where the processor has instructions for it: about twice as fast."""
    able = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=able)
