"""The device's new exit in torch: learns to answer as the teacher does, and becomes a Revision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from splitrt.cloud.teach import Teacher
from splitrt.core.manifest import Plan
from splitrt.core.revision import Revision, wanted

SIZE = 7 << 10  # bytes of weights that a revision may have
MOST = 48  # maps; more gained .1 points
RATE = 3e-3
BATCH = 128
SMALL = 1e-3  # weight of the squared join in the loss
HEAT = tuple(2 ** (power / 8) for power in range(-12, 13))  # temperatures to choose from


@dataclass(frozen=True, slots=True, eq=False)
class Lot:
    """Samples as tensors: values [N, C, …], the exit's logits [N, K]; shares [N, K] to reach."""

    values: Tensor
    logits: Tensor
    shares: Tensor


class Pupil:
    """One attempt, from scratch: `practise` a while, then `revision`."""

    def __init__(self, teacher: Teacher, answers: int, *, heat: float, steps: int, seed: int):
        """heat: the temperature by which a device will read the logits.  steps: of all practice."""
        self.teacher, self.heat = teacher, heat
        self._random = torch.Generator().manual_seed(seed)
        maps, channels = room(answers, teacher.channels), teacher.channels
        mix = torch.randn(maps, channels, generator=self._random) / channels**0.5
        zeros = {name: torch.zeros(wanted(answers, channels, maps)[name]) for name in ZEROS}
        self.own = {**zeros, "mix": mix, "scale": torch.ones(1)}
        for tensor in self.own.values():
            tensor.requires_grad_()
        self.optimizer = torch.optim.Adam(list(self.own.values()), lr=RATE)
        self.rates = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def practise(self, lot: Lot, steps: int) -> None:
        """So many batches: the teacher's probabilities are to be reached, by cross-entropy."""
        known = self._known(lot.values)
        for _ in range(steps):
            rows = torch.randint(0, len(known), (BATCH,), generator=self._random)
            found = self._answers(known[rows], lot.logits[rows]) / self.heat
            loss = functional.cross_entropy(found, lot.shares[rows])
            loss = loss + SMALL * self.own["join"].square().sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.rates.step()

    @torch.no_grad()
    def calibrate(self, lot: Lot) -> None:
        """Stretch the logits to the temperature that the teacher's shares find likeliest."""
        found = self._answers(self._known(lot.values), lot.logits) / self.heat
        losses = [float(functional.cross_entropy(found / heat, lot.shares)) for heat in HEAT]
        best = HEAT[int(np.argmin(losses))]
        for name in ("scale", "bias", "join"):
            self.own[name] /= best

    @torch.no_grad()
    def revision(
        self, number: int, model: bytes, plan: Plan, axis: np.ndarray, edge: float
    ) -> Revision:
        """The teacher's statistics are folded into mix and lift. axis, edge: see Revision."""
        own = {name: tensor.detach() for name, tensor in self.own.items()}
        own["mix"] = own["mix"] / self.teacher.deviation.flatten()
        own["lift"] = own["lift"] - own["mix"] @ self.teacher.mean.flatten()
        weights = {name: tensor.numpy() for name, tensor in own.items()}
        weights |= {"axis": axis, "edge": np.array([edge])}
        return Revision(number, model, plan.width or "", plan.name, weights)

    def _known(self, values: Tensor) -> Tensor:
        """Values as the teacher normalises them [N, C, places]."""
        return ((values - self.teacher.mean) / self.teacher.deviation).flatten(2)

    def _answers(self, known: Tensor, logits: Tensor) -> Tensor:
        """As Revision computes it, for a batch."""
        own = self.own
        maps = torch.relu(own["mix"] @ known + own["lift"][:, None])  # [N, H, places]
        pooled = torch.cat((maps.mean(2), maps.amax(2)), 1)
        return own["scale"] * logits + own["bias"] + pooled @ own["join"].T


ZEROS = ("bias", "lift", "join")


def room(answers: int, channels: int) -> int:
    """How many maps a revision of SIZE bytes has room for, at least one."""
    left = SIZE // 2 - answers - channels - 2
    return max(1, min(MOST, left // (channels + 1 + 2 * answers)))
