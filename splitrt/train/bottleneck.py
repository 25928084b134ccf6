"""The bottleneck: an encoder that ends the head, a decoder that begins the tail, few bits between.

The two-stage recipe that trains it is BottleFit's (Matsubara et al. 2022).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from splitrt.errors import ModelError


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
        self.stride = stride
        self.decoder = self.decoder_for(shape)

    def decoder_for(self, wanted: tuple[int, int, int]) -> nn.Module:
        """A fresh decoder to maps of that shape; its height and width are the first one's."""
        if tuple(wanted[1:]) != self.size:
            raise ModelError(
                f"the other cut's maps are {wanted[1]} × {wanted[2]}, this one's "
                f"{self.size[0]} × {self.size[1]}\n"
                "help: cut the other model where they are as large"
            )
        inner, outputs = 2 * self.trunk_shape[0], wanted[0]
        return nn.Sequential(
            _conv(self.shape[0], inner),
            Residual(inner),
            nn.ConvTranspose2d(inner, outputs, self.stride, self.stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            Residual(outputs),
            nn.Conv2d(outputs, outputs, 1),
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


class _Turn(nn.Module):
    """[N, T, C] <-> [N, C, T]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
