"""Static per-channel scales of the integer codes, from frames; never from the frame at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from splitrt.train.cut import Split
from splitrt.train.rungs import BITS, REACH, STEPS, bits_of, fixed_low, levels
from splitrt.train.slim import Slim

QUANTILES = (0.001, 0.999)


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """value = code · step + low, per channel (the first dimension of what crosses)."""

    low: torch.Tensor  # float32 [channels]
    step: torch.Tensor  # float32 [channels]
    bits: int
    levels: int = 0  # codes in use; 0: all that the bits can tell apart

    def codes(self, z: torch.Tensor) -> torch.Tensor:
        """uint8 codes of z [N, channels, ...]."""
        view = (1, -1) + (1,) * (z.dim() - 2)
        codes = torch.round((z - self.low.view(view)) / self.step.view(view))
        return codes.clamp(0, (self.levels or 2**self.bits) - 1).to(torch.uint8)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """What the server makes of the codes."""
        view = (1, -1) + (1,) * (codes.dim() - 2)
        return codes.float() * self.step.view(view) + self.low.view(view)


def scales_of(split: Split, z: torch.Tensor, width: int) -> dict[str, Scale]:
    """The scale of every rung of one width, from what crossed for many frames, z [N, c, ...].

    A student keeps the quantisers it was trained with, a bottleneck that of q4; everything else
    spans the 0.1 % to 99.9 % quantiles of its channel.
    """
    if split.slim is not None:
        return {rung: _trained(split.slim, rung, width) for rung in split.slim.student.rungs}
    channels = z.shape[1]
    scales = {rung: spanned(z, BITS[rung]) for rung in ("q8", "q4")}
    if split.bottleneck is not None:
        step = STEPS["q4"]
        low = step * fixed_low("q4")
        scales["q4"] = Scale(torch.full((channels,), low), torch.full((channels,), step), 4)
    return scales


def _trained(slim: Slim, rung: str, width: int) -> Scale:
    if rung in STEPS:
        step = torch.full((slim.shapes[width][0],), STEPS[rung])
        return Scale(step * fixed_low(rung), step, BITS[rung])
    step = slim.rates[width][rung].step()
    return Scale(-REACH * step, step, bits_of(rung), levels(rung))


def spanned(z: torch.Tensor, bits: int) -> Scale:
    """The scale that spans the quantiles of each channel of z [N, channels, ...]."""
    channels = z.shape[1]
    rows = z.transpose(0, 1).reshape(channels, -1).float()
    rows = rows[:, :: max(1, rows.shape[1] // 100_000)]
    low, high = torch.quantile(rows, torch.tensor(QUANTILES), dim=1)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-6)
    return Scale(low, step, bits)
