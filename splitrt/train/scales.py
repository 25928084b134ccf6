"""Static per-channel scales of the integer codes, from frames; never from the frame at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from splitrt.train.bottleneck import BITS, STEP, trained_low
from splitrt.train.cut import Split

QUANTILES = (0.001, 0.999)


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """value = code · step + low, per channel (the first dimension of what crosses)."""

    low: torch.Tensor  # float32 [channels]
    step: torch.Tensor  # float32 [channels]
    bits: int

    def codes(self, z: torch.Tensor) -> torch.Tensor:
        """uint8 codes of z [N, channels, ...]."""
        view = (1, -1) + (1,) * (z.dim() - 2)
        codes = torch.round((z - self.low.view(view)) / self.step.view(view))
        return codes.clamp(0, 2**self.bits - 1).to(torch.uint8)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """What the server makes of the codes."""
        view = (1, -1) + (1,) * (codes.dim() - 2)
        return codes.float() * self.step.view(view) + self.low.view(view)


def calibrate(split: Split, z: torch.Tensor, bits: int) -> Scale:
    """The scale of one rung, from what crossed for many frames, z [N, channels, ...].

    A trained bottleneck keeps the quantiser it was trained with at that width of code; everything
    else spans the 0.1 % to 99.9 % quantiles of its channel.
    """
    channels = z.shape[1]
    if split.bottleneck is not None and bits == BITS:
        return Scale(torch.full((channels,), trained_low()), torch.full((channels,), STEP), bits)
    rows = z.transpose(0, 1).reshape(channels, -1).float()
    rows = rows[:, :: max(1, rows.shape[1] // 100_000)]
    low, high = torch.quantile(rows, torch.tensor(QUANTILES), dim=1)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-6)
    return Scale(low, step, bits)
