"""A student head with several widths: the first channels of every layer are a head of their own.

It replaces the layers before the cut (BottleFit, Matsubara et al. 2022; FrankenSplit, Furutanpey et
al. 2023). Widths share their weights and keep private statistics (slimmable networks, Yu et al.
2019), so a thin width computes less, not only sends less.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from splitrt.errors import ModelError
from splitrt.train.rungs import STEPS, Rate, rate_name, seen

FIRST = 16  # channels of the first stage of a student that is fitted to a cut
GROUPS = 8  # of the decoder's GroupNorm, which needs no statistics and so fits every width


@dataclass(frozen=True, slots=True)
class Student:
    """The shape of a student head.

    codes: channels that cross, per width, ascending.  shares: of the layers' channels, per width.
    stages: (channels, stride, residual blocks) of the widest.  fixed: rungs of fixed steps that it
    is trained with.  payload: bytes that its rate-trained rungs aim at, each at every width.
    decoder: (channels, residual blocks) on the server.
    """

    codes: tuple[int, ...] = (4, 8, 16)
    shares: tuple[float, ...] = (0.5, 0.75, 1.0)
    stages: tuple[tuple[int, int, int], ...] = ((16, 2, 0), (32, 2, 1), (64, 2, 2))
    fixed: tuple[str, ...] = ("q4", "q2", "q1")
    payload: tuple[int, ...] = ()
    decoder: tuple[int, int] = (128, 2)

    def __post_init__(self) -> None:
        rising = list(self.codes) == sorted(set(self.codes)) and self.codes[0] >= 1
        if not rising or len(self.shares) != len(self.codes) or self.shares[-1] != 1.0:
            raise ModelError(
                f"codes {self.codes} with shares {self.shares}\n"
                "help: both ascend, one a width; the last share is 1.0"
            )
        if not self.rungs or any(rung not in STEPS for rung in self.fixed):
            raise ModelError(f"fixed {self.fixed}\nhelp: some of {', '.join(STEPS)}, or a payload")
        if len(self.codes) > 8 or any(size < 1 for size in self.payload):
            raise ModelError(f"codes {self.codes}, payload {self.payload}\nhelp: up to 8 widths")

    @property
    def rungs(self) -> list[str]:
        """The names of all it is trained with: q4, q2, q1, r64 …"""
        return [*self.fixed, *(rate_name(size) for size in self.payload)]


def student_for(
    image: Sequence[int], wanted: Sequence[int], codes: Sequence[int], payload: Sequence[int] = ()
) -> Student:
    """A student whose map is as large as the cut's: a stage a halving, channels doubling.

    image: [C, H, W] of the input.  wanted: [C, h, w] at the cut.  The narrowest of several widths
    has half of every layer's channels.
    """
    halvings = (image[1] // max(wanted[1], 1)).bit_length() - 1
    stages = tuple((FIRST << place, 2, int(place > 1)) for place in range(max(halvings, 1)))
    steps = max(len(codes) - 1, 1)
    shares = tuple(1.0 - 0.5 * (len(codes) - 1 - place) / steps for place in range(len(codes)))
    return Student(codes=tuple(codes), shares=shares, stages=stages, payload=tuple(payload))


class Slim(nn.Module):
    """The student and its decoder: the model's input -> codes [N, c, h, w] -> what the tail takes.

    `trunk` and `project` run on the device at one width, `decode` on the server; it takes all
    widths, with zeros for the channels that were not sent.
    """

    def __init__(
        self, image: Sequence[int], wanted: tuple[int, int, int], student: Student
    ) -> None:
        super().__init__()
        self.student = student
        plans = [scaled(channels, student.shares) for channels, _, _ in student.stages]
        layers: list[nn.Module] = []
        inputs, size = [image[0]] * len(student.codes), tuple(image[1:])
        for (_, stride, blocks), channels in zip(student.stages, plans, strict=True):
            layers += [Conv(inputs, channels, stride), *(Block(channels) for _ in range(blocks))]
            inputs, size = channels, tuple(-(-side // stride) for side in size)
        self.layers = nn.ModuleList(layers)
        self.last = Conv(inputs, list(student.codes), 1, kernel=1, affine=False)
        self.shapes = [(codes, *size) for codes in student.codes]
        self.trunk_shapes = [(channels, *size) for channels in plans[-1]]
        self.shape = self.shapes[-1]
        self.rates = nn.ModuleList(
            nn.ModuleDict({rate_name(aim): Rate(codes, 8.0 * aim) for aim in student.payload})
            for codes in student.codes
        )
        self.decoder = _decoder(self.shape, wanted, *student.decoder)

    def trunk(self, x: torch.Tensor, width: int = -1) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, width)
        return x

    def project(self, trunk: torch.Tensor, width: int = -1) -> torch.Tensor:
        """What crosses: mean 0 and deviation 1 per channel."""
        return self.last(trunk, width)

    def seen(
        self, z: torch.Tensor, rung: str, width: int, done: float | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """z as the server will see it, and what its bits cost in the loss.

        done: 0 to 1, the share of the training; None where the codes are trained no more.
        """
        if rung in STEPS:
            return seen(z, rung), z.new_zeros(())
        rate = self.rates[width][rung]
        values, bits = rate(z)
        if done is None:
            return values, z.new_zeros(())
        return values, bits * rate.charge(bits, done)

    def decoder_for(self, wanted: tuple[int, int, int]) -> nn.Module:
        """A fresh decoder to maps of another shape."""
        return _decoder(self.shape, wanted, *self.student.decoder)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(z)

    def alone(self, width: int) -> Slim:
        """A copy of the head whose layers are those of one width; without the decoder."""
        one = copy.copy(self)
        one._modules = {
            "layers": nn.ModuleList(layer.alone(width) for layer in self.layers),
            "last": self.last.alone(width),
        }
        return one

    def padded(self, z: torch.Tensor) -> torch.Tensor:
        """What crossed, with zeros for the channels that its width leaves out."""
        return functional.pad(z, (0, 0, 0, 0, 0, self.shape[0] - z.shape[1]))


class Conv(nn.Module):
    """Convolution of nested widths with BatchNorm of each width's own, then ReLU if affine."""

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        stride: int = 1,
        *,
        kernel: int = 3,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride, self.affine = inputs, outputs, stride, affine
        self.weight = nn.Parameter(torch.empty(max(outputs), max(inputs), kernel, kernel))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norms = nn.ModuleList(nn.BatchNorm2d(count, affine=affine) for count in outputs)

    def forward(self, x: torch.Tensor, width: int = -1) -> torch.Tensor:
        weight = self.weight[: self.outputs[width], : self.inputs[width]]
        x = functional.conv2d(x, weight, None, self.stride, weight.shape[-1] // 2)
        x = self.norms[width](x)
        return functional.relu(x) if self.affine else x

    def alone(self, width: int) -> Conv:
        """A copy of one width."""
        inputs, outputs = self.inputs[width], self.outputs[width]
        one = Conv(
            [inputs], [outputs], self.stride, kernel=self.weight.shape[-1], affine=self.affine
        )
        one.weight.data = self.weight.data[:outputs, :inputs].clone()
        one.norms = nn.ModuleList([copy.deepcopy(self.norms[width])])
        return one.train(self.training)


class Block(nn.Module):
    """Two convolutions around which the input passes unchanged (He et al. 2015)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.first, self.second = Conv(channels, channels), Conv(channels, channels)

    def forward(self, x: torch.Tensor, width: int = -1) -> torch.Tensor:
        return x + self.second(self.first(x, width), width)

    def alone(self, width: int) -> Block:
        """A copy of one width."""
        one = Block([1])
        one.first, one.second = self.first.alone(width), self.second.alone(width)
        return one


class GroupBlock(nn.Module):
    """The decoder's residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.GroupNorm(GROUPS, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.GroupNorm(GROUPS, channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def scaled(channels: int, shares: Sequence[float]) -> list[int]:
    """A layer's channels at each width: multiples of 4, as vector units like them."""
    return [max(4, 4 * round(channels * share / 4)) for share in shares]


def _decoder(
    crossing: tuple[int, ...], wanted: tuple[int, int, int], channels: int, blocks: int
) -> nn.Sequential:
    codes, height, width = crossing
    grow = wanted[1] // height
    if (grow * height, grow * width) != tuple(wanted[1:]):
        raise ModelError(
            f"the student's map is {height} × {width}, the cut's {wanted[1]} × {wanted[2]}\n"
            "help: choose stages whose strides give the cut's size or a whole fraction of it"
        )
    layers: list[nn.Module] = [
        nn.Conv2d(codes, channels, 3, 1, 1),
        nn.GroupNorm(GROUPS, channels),
        nn.ReLU(),
    ]
    if grow > 1:
        layers.append(nn.ConvTranspose2d(channels, channels, grow, grow))
    layers += [GroupBlock(channels) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.Conv2d(channels, wanted[0], 1))
