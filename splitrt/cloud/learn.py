"""From the samples of one device's stream to revisions of its exit, in small units of work.

CEMA (Chen et al. 2024): the server's model adapts to what a device selected, and teaches the
device's. A round is: take statistics, some lessons for the teacher, practice for a pupil from
scratch, and a judgement on samples held out. What fails it is never sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splitrt.cloud.program import load_program
from splitrt.cloud.pupil import Lot, Pupil
from splitrt.cloud.replay import LARGEST, Replay, Sample
from splitrt.cloud.tail import unpacked
from splitrt.cloud.teach import Teacher
from splitrt.core.codec import codecs
from splitrt.core.manifest import Manifest, verified
from splitrt.core.revision import Revision, classes, coded
from splitrt.core.scales import scale
from splitrt.errors import ModelError

FIRST = 32  # samples before the first round; later ones come when they have doubled
APART = 384  # at most so many new samples between rounds
LEAST = 6  # held-out samples, to judge by
EPOCHS, TAUGHT = 4, 64  # of the teacher in a round, and samples in each lesson
LESSONS = 4  # in one unit of work
STEPS, UNIT = 300, 60  # of a pupil's practice, and in one unit of work
MOVED = 1.0  # the same, from where the samples were begun: they are of another stream
FAR = 0.9  # from source to stream, in deviations of a frame's mark over all channels
GAIN = 0.01  # nats of the teacher's answers that a revision explains better than what is in use
SMALLEST = 1e-6  # for what is divided by
VARIED = 0.2  # nats by which the classes of a stream's answers may grow less varied
HELP = "help: adapt a model of one input and one size, with an exit"


@dataclass(slots=True)
class Tally:
    """What became of a stream. Ended rounds = sent + refused + near."""

    samples: int = 0
    rounds: int = 0
    sent: int = 0
    refused: int = 0  # no better than what was in use
    near: int = 0  # the stream was too like those of the training for any
    reverted: int = 0  # back to the one before
    moved: int = 0  # times that the stream became another


class Learner:
    """Learns from one device's samples: `add` them, and `step` when there is time.

    `current` is the revision that the device should use, None for its own exit. Everything
    follows from the samples and the seed.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Manifest,
        plan: str | None = None,
        *,
        tail: torch.fx.GraphModule | None = None,
        largest: int = LARGEST,
        seed: int = 0,
    ) -> None:
        """plan: by which codes cross, the default one without.  tail: from `opened`, to share it.

        largest: bytes of samples to keep.
        """
        self.manifest, self.plan = manifest, manifest.plan(plan or manifest.default_plan)
        self.width = manifest.width(self.plan)
        _check(manifest, self.plan.name)
        self.exit = self.width.exit
        self.answers = classes(manifest, self.width)
        self.codec = codecs(folder, manifest)[self.plan.name]
        self.scale = scale(folder, manifest, self.plan)
        self.tail = opened(folder, manifest) if tail is None else tail
        names = [output.name for output in manifest.outputs]
        place = names.index(self.exit.output) if self.exit is not None else 0
        self.teacher = Teacher(self.tail, manifest.cut.shape, self.width.shape[0], answer=place)
        self.replay, self.seed = Replay(largest=largest, seed=seed), seed
        self.tally = Tally()
        self.current: Revision | None = None
        self.before: Revision | None = None
        self._level: np.ndarray | None = None  # mean mark of the stream, as the device said
        self._home: np.ndarray | None = None  # the same, when the first round of the samples began
        self._spread = np.ones(self.width.shape[0], np.float32)  # of single frames' marks
        self._since, self._next, self._number = 0, FIRST, 0
        self._round: Iterator[Revision | None] | None = None

    def add(self, packed: bytes, logits: np.ndarray, level: np.ndarray | None = None) -> None:
        """A sample: the packed codes of a frame and its exit's own logits [K].

        level: the stream's mean mark [C] where the device sent it, as it does now and then.
        """
        rows = torch.frombuffer(bytearray(packed), dtype=torch.uint8)[None]
        codes = unpacked(rows, self.codec).numpy().reshape(self.width.shape)
        self.replay.add(Sample(codes, np.asarray(logits, np.float32).reshape(-1)))
        if level is not None:
            self._follow(np.asarray(level, np.float32))
        self.tally.samples += 1
        self._since += 1

    def revert(self) -> None:
        """The device is back at the exit as it was shipped: what comes next is measured by that."""
        self.current = self.before = None

    def _follow(self, level: np.ndarray) -> None:
        """Take the stream's mean mark; if it has moved far, forget the samples from before."""
        self._level = level
        if self._home is not None and _far(level - self._home, self._spread) > MOVED:
            self.replay.clear()
            self._since, self._next, self._home, self._round = 0, FIRST, None, None
            self.tally.moved += 1

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return self._round is not None or self._due()

    def step(self) -> Revision | None:
        """One unit of work, a fraction of a second; the new revision, if that was its end."""
        if self._round is None:
            if not self._due():
                return None
            self._round = self._learn()
        try:
            return next(self._round)
        except StopIteration:
            self._round = None
            return None

    def _due(self) -> bool:
        enough = len(self.replay.held) >= LEAST and self._level is not None
        return enough and self._since >= self._next

    def _learn(self) -> Iterator[Revision | None]:
        """A round, in units."""
        self._next = min(APART, max(FIRST, self.tally.samples))
        self._since = 0
        self.tally.rounds += 1
        values, logits = self._tensors(list(self.replay.taught))
        held = self._tensors(list(self.replay.held))
        axis, edge, far = self._place(held[0], values)
        if far < FAR:
            self.tally.near += 1
            return
        self.teacher.reset()  # a teacher that goes on learning from few samples collapses: LOG.md
        self.teacher.settle(values, torch.from_numpy(self._level))
        random = torch.Generator().manual_seed(self.seed + self.tally.rounds)
        orders = [torch.randperm(len(values), generator=random) for _ in range(EPOCHS)]
        for lesson, rows in enumerate(row for order in orders for row in order.split(TAUGHT)):
            self.teacher.lesson(values[rows])
            if lesson % LESSONS == 0:
                yield None
        lot, judged = self._lot(values, logits), self._lot(*held)
        heat = self.exit.temperature if self.exit is not None else 1.0
        seed = self.seed + self.tally.rounds
        pupil = Pupil(self.teacher, self.answers, heat=heat, steps=STEPS, seed=seed)
        for _ in range(STEPS // UNIT):
            pupil.practise(lot, UNIT)
            yield None
        pupil.calibrate(judged)
        found = pupil.revision(self._number + 1, self.manifest.contract, self.plan, axis, edge)
        yield self._judged(found, judged)

    def _judged(self, found: Revision, lot: Lot) -> Revision | None:
        """The revision if it is better than what is in use, and the teacher has not collapsed."""
        new, now, old = (self._loss(one, lot) for one in (found, self.current, self.before))
        sound = self._varied(found, lot) > self._varied(None, lot) - VARIED
        if sound and new <= min(now, old) - GAIN:
            self.before, self.current = self.current, found
            self._number = found.number
            self.tally.sent += 1
            return found
        self.tally.refused += 1
        if old < now - GAIN and old < new:
            self.current, self.before = self.before, None
            self.tally.reverted += 1
        return None

    def _loss(self, revision: Revision | None, lot: Lot) -> float:
        """Cross-entropy of an exit's shares to the teacher's, in nats."""
        found = self._shares(revision, lot).clamp(min=SMALLEST)
        return float(-(lot.shares * found.log()).sum(1).mean())

    def _varied(self, revision: Revision | None, lot: Lot) -> float:
        """Entropy of the mean of an exit's shares, in nats: a collapsed teacher's pupil has 0."""
        mean = self._shares(revision, lot).mean(0)
        return float(-(mean * mean.clamp(min=SMALLEST).log()).sum())

    def _shares(self, revision: Revision | None, lot: Lot) -> Tensor:
        heat = self.exit.temperature if self.exit is not None else 1.0
        return (_through(revision, lot) / heat).softmax(1)

    @torch.no_grad()
    def _lot(self, values: Tensor, logits: Tensor) -> Lot:
        return Lot(values, logits, self.teacher(values).softmax(1))

    def _tensors(self, samples: list[Sample]) -> tuple[Tensor, Tensor]:
        """Values [N, C, …] and logits [N, K]."""
        values = np.stack([self.scale(sample.codes) for sample in samples])
        logits = np.stack([sample.logits for sample in samples])
        return torch.from_numpy(values), torch.from_numpy(logits)

    def _place(self, *values: Tensor) -> tuple[np.ndarray, float, float]:
        """Axis and edge between source and stream, and how far apart they are.

        Each channel weighs by the spread of single frames; sources have mean 0.
        """
        level = self._level
        assert level is not None  # or no round was due
        self._spread = torch.cat(values).flatten(2).mean(2).numpy().var(0) + SMALLEST
        if self._home is None:
            self._home = level
        axis = level / self._spread
        size = np.abs(axis).max() + SMALLEST
        edge = float(axis @ level) / 2
        return axis / size, edge / size, _far(level, self._spread)


def _far(gap: np.ndarray, spread: np.ndarray) -> float:
    """The length of a gap [C] between marks, each channel by its spread (a variance)."""
    return float(np.sqrt((gap**2 / spread).sum()))


def opened(folder: str | Path, manifest: Manifest) -> torch.fx.GraphModule:
    """A model's tail with weights that can learn; the learners of several devices share it."""
    module = load_program(verified(folder, manifest, "tail.pt2")).module()
    module.graph.eliminate_dead_code()
    module.recompile()
    for tensor in module.parameters():
        tensor.requires_grad_(False)
    return module


def _check(manifest: Manifest, name: str) -> None:
    """ModelError unless the exit beside that plan can be revised."""
    plan = manifest.plan(name)
    if not coded(manifest, plan):
        raise ModelError(f"plan {name!r} sends no codes to learn from\nhelp: one of 8 bits or less")
    if manifest.width(plan).exit is None or manifest.sizes is not None or manifest.side:
        raise ModelError(f"{manifest.name} has no exit that could learn\n{HELP}")


def _through(revision: Revision | None, lot: Lot) -> Tensor:
    """Logits [N, K] of the exit, revised."""
    if revision is None:
        return lot.logits
    pairs = zip(lot.logits.numpy(), lot.values.numpy(), strict=True)
    return torch.from_numpy(np.stack([revision(logits, values) for logits, values in pairs]))
