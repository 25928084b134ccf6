"""Train a bottleneck in BottleFit's two stages, against the whole model as teacher.

1. features: head, encoder and decoder learn to give the tail what the whole model gave it,
   measured at the cut, at several points behind it and at the outputs; the tail is frozen.
2. task: head and encoder are frozen; decoder, tail and local exit learn the task.

(Matsubara, Callegaro, Singh, Levorato, Restuccia 2022: BottleFit.)

A student head is trained otherwise: in the first stage it learns its codes, the decoder and the
tail the task, at several widths a step and with a quantiser drawn for each; in the second, on
frozen features, its exits and its filter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

from splitrt.errors import ModelError
from splitrt.train.checkpoint import Keeper, bar
from splitrt.train.cut import Split, trunk_shapes, wants_pixels
from splitrt.train.exits import Filter
from splitrt.train.frames import Frames
from splitrt.train.graph import trace
from splitrt.train.muon import Muon
from splitrt.train.rungs import drawn, seen
from splitrt.train.slim import Slim

STUDENT_LR = 10.0  # times the rate: a student starts from nothing, and Muon's steps are its own
DECAY = 0.05
FEATURES = 0.1  # what the distance at the cut weighs beside the task
INPLACE = 0.5  # what the widest's answer weighs beside labels and teacher
RATE_LR = 3.0  # times the student's: gains and priors are a few numbers with small gradients
HEAD_LR = 0.1  # the head was trained already: a tenth of the rate of the fresh layers
TASK_LR = 0.3

Far: TypeAlias = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast: epochs of the two stages, Adam's rate, pictures a step.

    Restarts are those of Loshchilov and Hutter 2017 (SGDR); without one the rate falls once.
    """

    features: int = 10
    task: int = 10
    lr: float = 2e-3
    batch: int = 256
    augment: bool = True
    hole: int = 0  # pixels a side of the patch that is blanked
    once: bool = False  # ask the teacher once a picture, not anew for each variation of it
    restart: tuple[int, ...] = ()  # epochs of the first stage before which the rate warms up anew


def distill(
    split: Split,
    *,
    teacher: nn.Module,
    frames: Frames,
    schedule: Schedule = Schedule(),
    far: Far | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Split:
    """Train the split's bottleneck, exit and, if the frames have `interest`, filter in place.

    Returns the split. Labels are used where the frames have them, else the teacher's answers alone.
    far: how far outputs are from the teacher's, both tuples of [N, ...], where they are no classes;
    without it the squared error relative to the variance, which every place in a grid weighs
    alike: a detector learns more from one that looks where its teacher found something.
    With `checkpoint` (a file without suffix) the state is kept after every epoch, and a run that
    was interrupted goes on from there and ends as it would have.
    """
    if split.bottleneck is None:
        raise ModelError("there is no bottleneck to train\nhelp: cut(…, channels=12)")
    torch.manual_seed(seed)
    if frames.interest is not None and not len(split.filters) and not split.shared:
        split.filters = nn.ModuleList(Filter(shape) for shape in trunk_shapes(split))
    run = _Run(split, teacher, frames, schedule, far or _apart, seed)
    keeper = Keeper(Path(checkpoint)) if checkpoint else None
    steps = math.ceil(len(frames) / schedule.batch) * (schedule.features + schedule.task)
    with bar(progress, steps) as advance:
        for stage in run.stages():
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
    restart: tuple[int, ...] = ()


class _Run:
    """The networks of one distillation and the losses between them."""

    def __init__(
        self,
        split: Split,
        teacher: nn.Module,
        frames: Frames,
        schedule: Schedule,
        far: Far,
        seed: int,
    ) -> None:
        self.split, self.frames, self.schedule, self.seed = split, frames, schedule, seed
        self.far = far
        self.pixels = wants_pixels(split)
        graph = trace(teacher, split.graph.example, split.graph.free)
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
        self.done = 0.0  # share of the stage before its first restart
        self.known: torch.Tensor | None = None  # the teacher's answers to the batch
        self.answers = self._answers()

    @torch.inference_mode()
    def _answers(self) -> torch.Tensor | None:
        """The teacher's first output on every frame as it is, if the schedule wants it once."""
        if not self.schedule.once or self.split.slim is None:
            return None
        device, parts = next(self.split.parameters()).device, []
        for part in self.frames.batches(self.schedule.batch):
            x = self.pixels(torch.from_numpy(part.images).to(device))
            with fast(device):
                parts.append(self.teacher(x)[self.count].float())
        return torch.cat(parts).clone()

    def stages(self) -> list[_Stage]:
        if self.split.slim is not None:
            stages = [self.joint_stage(self.split.slim)]
            return stages if self.split.shared else [*stages, self.exits_stage()]
        if self.split.shared:
            return [self.task_stage()]
        return [self.features_stage(), self.task_stage()]

    def joint_stage(self, slim: Slim) -> _Stage:
        lr = self.schedule.lr * STUDENT_LR
        rates = list(slim.rates.parameters())
        known = {id(parameter) for parameter in rates}
        rest = [p for p in slim.parameters() if id(p) not in known]
        if self.split.shared:
            rest, rates = list(slim.decoder.parameters()), []
        groups = [
            {"params": rest, "lr": lr, "weight_decay": DECAY},
            {"params": list(self.tail.parameters()), "lr": lr * HEAD_LR, "weight_decay": DECAY},
        ]
        if rates:
            groups.append({"params": rates, "lr": lr * RATE_LR})
        return _Stage(
            "features",
            self.schedule.features,
            {"bottleneck": slim, "tail": self.tail},
            Muon(groups),
            lambda x, labels: self._sandwich_loss(slim, x, labels),
            self._enter_joint,
            self.schedule.restart,
        )

    def exits_stage(self) -> _Stage:
        exits, filters = self.split.exits, self.split.filters
        groups = [{"params": [*exits.parameters(), *filters.parameters()], "lr": self.schedule.lr}]
        return _Stage(
            "task",
            self.schedule.task if len(exits) + len(filters) else 0,
            {"exits": exits, "filters": filters},
            torch.optim.Adam(groups) if groups[0]["params"] else torch.optim.Adam([torch.zeros(1)]),
            self._exits_loss,
            self._enter_exits,
        )

    def _enter_joint(self) -> None:
        self.split.requires_grad_(True)
        self.tail.requires_grad_(True)
        self.split.bottleneck.train()
        if self.split.shared:
            self.split.bottleneck.requires_grad_(False).eval()
            self.split.bottleneck.decoder.requires_grad_(True).train()

    def _enter_exits(self) -> None:
        self.split.requires_grad_(False).eval()
        self.split.exits.requires_grad_(True).train()
        self.split.filters.requires_grad_(True).train()

    def _sandwich_loss(
        self, slim: Slim, x: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Widest, narrowest and up to two between; the widest teaches beside the whole model.

        (Yu and Huang 2019, whose sandwich rule and in-place distillation this is. The thinner ones
        see half a batch each: two thirds of the time for three widths.)
        """
        wanted = self._wanted(x)
        total, widest = torch.zeros((), device=x.device), None
        halves = (slice(0, len(x) // 2), slice(len(x) // 2, len(x)))
        for place, width in enumerate(self._widths(len(slim.shapes))):
            rows = slice(None) if place == 0 or len(x) < 4 else halves[place % 2]
            z = slim.project(slim.trunk(x[rows], width), width).float()
            rung = drawn(slim.student.rungs, self.random)
            values, cost = slim.seen(z, rung, width, None if self.split.shared else self.done)
            first = slim.decode(slim.padded(values))
            got, aim = (first, *self.tail(first)), [one[rows] for one in wanted]
            total = total + cost + self._far(got[: len(aim) - 1], aim[:-1])
            own = got[self.count]
            if self.split.classes is None:
                total = total + self.far([own.float()], [aim[-1].float()])
                continue
            total = total + _task(own, aim[-1], None if labels is None else labels[rows])
            if widest is not None:
                total = total + INPLACE * _task(own, widest[rows], None)
            widest = own.detach() if widest is None else widest
        return total

    def _wanted(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The teacher's features at the cut and behind it, then its first output."""
        if self.known is not None:
            return (self.known,)
        with torch.no_grad():
            return self.teacher(x)[: self.count + 1]

    def _far(self, got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
        weight = 1.0 if self.split.classes is None else FEATURES
        pairs = zip(got, wanted, strict=True)
        return weight * sum((_distance(a.float(), b.float()) for a, b in pairs), torch.zeros(()))

    def _widths(self, count: int) -> list[int]:
        between = torch.randperm(max(count - 2, 0), generator=self.random)[:2] + 1
        return [count - 1, *between.tolist(), *([0] if count > 1 else [])]

    def _exits_loss(self, x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        wanted = self._wanted(x)[-1]
        with torch.no_grad():
            trunks = [self.split.trunk(x, width) for width in range(len(self.split.crossings))]
        loss = self._filters_loss(trunks)
        for place, local in enumerate(self.split.exits):
            loss = loss + _task(local(trunks[place]), wanted, labels)
        return loss

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
            self.schedule.restart,
        )

    def task_stage(self) -> _Stage:
        split, lr = self.split, self.schedule.lr
        parts = {"decoder": split.bottleneck.decoder, "tail": self.tail}
        groups = [
            {"params": list(split.bottleneck.decoder.parameters()), "lr": lr * TASK_LR},
            {"params": list(self.tail.parameters()), "lr": lr * TASK_LR * HEAD_LR},
        ]
        if len(split.exits):
            parts["exits"] = split.exits
            groups.append({"params": list(split.exits.parameters()), "lr": lr})
        if len(split.filters):
            parts["filters"] = split.filters
            groups.append({"params": list(split.filters.parameters()), "lr": lr})
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
        self.split.exits.train()

    def _feature_loss(self, x: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.teacher(x, *self._side(x))
        z = seen(self.split.project(self.split.trunk(x)), "q4")
        first = self.split.bottleneck.decode(z)
        got = (first, *self.tail(first, *self._side(x)))
        return _apart(got[: self.count], wanted[: self.count]) + self._outputs_apart(got, wanted)

    def _outputs_apart(
        self, got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """How far the outputs, which come behind the taps, are from the teacher's."""
        ends = [[one.float() for one in each[self.count :]] for each in (got, wanted)]
        return _apart(*ends) if self.split.classes is not None else self.far(*ends)

    def _task_loss(self, x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.teacher(x, *self._side(x))
            trunk = self.split.trunk(x)
            z = seen(self.split.project(trunk), "q4")
        first = self.split.bottleneck.decode(z)
        got = (first, *self.tail(first, *self._side(x)))
        loss = self._filters_loss([trunk])
        if self.split.classes is None:
            return loss + self._outputs_apart(got, wanted)
        loss = loss + _task(got[self.count], wanted[self.count], labels)
        for local in self.split.exits:
            loss = loss + _task(local(trunk), wanted[self.count], labels)
        return loss

    def _filters_loss(self, trunks: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of the emptiness filter of each width, on the features that it reads."""
        loss = torch.zeros((), device=trunks[0].device)
        for trunk, judge in zip(trunks, self.split.filters, strict=False):  # or there are none
            logits = judge(trunk).float().squeeze(1)
            loss = loss + functional.binary_cross_entropy_with_logits(logits, self.interest)
        return loss

    def _side(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Side inputs for a batch: their examples, over and over."""
        return [side.to(x.device) for side in self.split.graph.side_examples(len(x))]

    def settle(self) -> None:
        """Give the trained tail back to the split."""
        trained = self.tail.state_dict()
        self.split.tail.load_state_dict(
            {name: trained[name] for name in self.split.tail.state_dict()}
        )

    def steps(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """The pictures of one epoch, shuffled and varied by seed and epoch alone."""
        random = self.random = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.frames), generator=random)
        device = next(self.split.parameters()).device
        for chosen in order.split(self.schedule.batch):
            if len(chosen) < 2:
                continue  # BatchNorm needs two
            batch = self.frames[chosen.numpy()]
            x = self.pixels(torch.from_numpy(batch.images).to(device))
            if self.schedule.augment:
                x = varied(x, random)
            if self.schedule.hole:
                x = holed(x, self.schedule.hole, random)
            self.known = None if self.answers is None else self.answers[chosen]
            if batch.interest is not None:
                self.interest = torch.from_numpy(batch.interest).float().to(device)
            labels = None if batch.labels is None else torch.from_numpy(batch.labels).to(device)
            yield x.contiguous(memory_format=torch.channels_last), labels


def _train(
    stage: _Stage, run: _Run, keeper: Keeper | None, advance: Callable[[str, float], None]
) -> None:
    stage.enter()
    batch, frames = run.schedule.batch, len(run.frames)
    steps = max(1, math.ceil(frames / batch))
    rates = [group["lr"] for group in stage.optimiser.param_groups]
    starts = [0, *stage.restart, stage.epochs]
    first = keeper.restore(stage) if keeper else 0
    advance(stage.name, first * steps)
    for epoch in range(first, stage.epochs):
        start, end = next(span for span in pairwise(starts) if epoch < span[1])
        for number, (x, labels) in enumerate(run.steps(epoch + 1000 * (stage.name == "task"))):
            done = (epoch - start + number / steps) / (end - start)
            for group, rate in zip(stage.optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * _pace(done)
            run.done = 1.0 if start else done
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


def _apart(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of the distances of pairs."""
    pairs = zip(got, wanted, strict=True)
    return sum((_distance(a.float(), b.float()) for a, b in pairs), torch.zeros(()))


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


def holed(x: torch.Tensor, side: int, random: torch.Generator) -> torch.Tensor:
    """Each picture of [N, C, H, W] with one square set to 0 (Cutout, DeVries and Taylor 2017)."""
    count, _, height, width = x.shape
    top = torch.randint(0, max(1, height - side + 1), (count, 1), generator=random)
    left = torch.randint(0, max(1, width - side + 1), (count, 1), generator=random)
    rows, columns = torch.arange(height)[None], torch.arange(width)[None]
    inside = ((rows >= top) & (rows < top + side))[:, None, :, None]
    return x.masked_fill(inside & ((columns >= left) & (columns < left + side))[:, None, None], 0)


def fast(device: torch.device) -> torch.autocast:
    """bfloat16 where the processor has instructions for it: about twice as fast."""
    able = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=able)
