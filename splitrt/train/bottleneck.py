"""The bottleneck: an encoder that ends the head, a decoder that begins the tail, few bits between.

The two-stage recipe that trains it is BottleFit's (Matsubara et al. 2022); the straight-through
gradient of the quantiser is Bengio et al. 2013.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from splitrt.errors import ModelError

BITS = 4
STEP = 0.5  # in standard deviations: 3.0 bits of entropy a code, and 16 of them span ± 3.75


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input passes unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Maps(nn.Module):
    """Bottleneck of feature maps: [N, C, H, W] <-> [N, channels, H/stride, W/stride].

    `trunk` then `project` run on the device, `decode` on the server. The crossing tensor has
    mean 0 and deviation 1 per channel, so that the quantiser's steps are constants.
    """

    def __init__(self, shape: tuple[int, int, int], channels: int, stride: int) -> None:
        super().__init__()
        inputs, height, width = shape
        inner = min(inputs, 64)
        self.size = (height, width)
        self.trunk_shape = (inner, math.ceil(height / stride), math.ceil(width / stride))
        self.shape = (channels, *self.trunk_shape[1:])
        self.trunk = nn.Sequential(_conv(inputs, inner, stride), Residual(inner))
        self.project = nn.Sequential(
            nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=False)
        )
        wide = 2 * inner
        self.decoder = nn.Sequential(
            _conv(channels, wide),
            Residual(wide),
            nn.ConvTranspose2d(wide, inputs, stride, stride),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            Residual(inputs),
            nn.Conv2d(inputs, inputs, 1),
        )

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        height, width = self.size
        return self.decoder(z)[:, :, :height, :width]


class Tokens(nn.Module):
    """Bottleneck of tokens: [N, T, C] <-> [N, channels, T]; one code vector a token."""

    def __init__(self, shape: tuple[int, int], channels: int) -> None:
        super().__init__()
        tokens, inputs = shape
        inner = min(inputs, 128)
        self.trunk_shape = (inner, tokens)
        self.shape = (channels, tokens)
        self.trunk = nn.Sequential(
            nn.LayerNorm(inputs), nn.Linear(inputs, inner), nn.GELU(), _Turn()
        )
        self.project = nn.Sequential(
            nn.Conv1d(inner, channels, 1, bias=False), nn.BatchNorm1d(channels, affine=False)
        )
        self.decoder = nn.Sequential(
            _Turn(), nn.Linear(channels, inputs), nn.GELU(), nn.Linear(inputs, inputs)
        )

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(z)


def bottleneck(shape: tuple[int, ...], channels: int, *, stride: int = 2) -> Maps | Tokens:
    """The bottleneck for a crossing tensor of `shape` (without batch)."""
    if channels < 1:
        raise ModelError(f"channels = {channels}\nhelp: a bottleneck has at least 1 channel")
    if len(shape) == 3:
        return Maps((shape[0], shape[1], shape[2]), channels, stride)
    if len(shape) == 2:
        return Tokens((shape[0], shape[1]), channels)
    raise ModelError(
        f"no bottleneck fits a crossing tensor of shape {list(shape)}\n"
        "help: cut where feature maps [C, H, W] or tokens [T, C] cross"
    )


def quantise(z: torch.Tensor, low: torch.Tensor, step: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes 0 … 2^bits − 1 as floats; `low` and `step` broadcast against z."""
    return torch.clamp(torch.round((z - low) / step), 0, 2**bits - 1)


def blur(z: torch.Tensor) -> torch.Tensor:
    """z as the server will see it after the trained quantiser; the gradient passes straight."""
    low = torch.full((), trained_low(), device=z.device)
    step = torch.full((), STEP, device=z.device)
    seen = quantise(z.detach().float(), low, step, BITS) * step + low
    return z + (seen - z).detach()


def trained_low() -> float:
    """The value of code 0 of the trained quantiser, whose codes lie evenly about 0."""
    return -STEP * (2**BITS - 1) / 2


class _Turn(nn.Module):
    """[N, T, C] <-> [N, C, T]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
