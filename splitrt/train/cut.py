"""A model parted in two, with or without a bottleneck between the halves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from splitrt.errors import ModelError
from splitrt.train.bottleneck import bottleneck
from splitrt.train.exits import Exit
from splitrt.train.graph import Cut, Graph, trace
from splitrt.train.whole import example as example_of


@dataclass(frozen=True, slots=True)
class Pixels:
    """How a uint8 picture becomes the model's input: (x / 255 − mean) / std, channels first."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [N, H, W, C] -> float32 [N, C, H, W]."""
        mean = torch.tensor(self.mean, device=images.device).mul(255)
        std = torch.tensor(self.std, device=images.device).mul(255)
        return ((images.float() - mean) / std).permute(0, 3, 1, 2)


class Split(nn.Module):
    """Head, bottleneck, exit and tail: copies of the whole model's layers that can be trained.

    Called, it answers as the whole model does (a tuple of tensors), without quantisation.
    """

    def __init__(self, graph: Graph, place: Cut, pixels: Pixels | None) -> None:
        super().__init__()
        head, tail = graph.part(place)
        self.head, self.tail = copy.deepcopy(head), copy.deepcopy(tail)
        self.graph, self.place, self.pixels = graph, place, pixels
        self.bottleneck: nn.Module | None = None
        self.exit: Exit | None = None

    @property
    def crossing(self) -> tuple[int, ...]:
        """The shape of what crosses, without batch."""
        return self.place.shape if self.bottleneck is None else self.bottleneck.shape

    @property
    def classes(self) -> int | None:
        """The number of classes, where the first output is logits [N, K]."""
        shape = self.graph.output_shapes[0]
        return shape[0] if len(shape) == 1 else None

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        """The device's features, which the exit and the encoder's last layer read."""
        features = self.head(x)
        return features if self.bottleneck is None else self.bottleneck.trunk(features)

    def project(self, trunk: torch.Tensor) -> torch.Tensor:
        """What crosses, before quantisation."""
        return trunk if self.bottleneck is None else self.bottleneck.project(trunk)

    def answer(self, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The server's part: from what crossed to the outputs."""
        return self.tail(z if self.bottleneck is None else self.bottleneck.decode(z))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.answer(self.project(self.trunk(x)))


def cut(
    whole: nn.Module,
    *,
    after: str,
    channels: int | None = None,
    shape: Sequence[int] = (1, 3, 224, 224),
    example: torch.Tensor | None = None,
    pixels: Pixels | None = None,
) -> Split:
    """Part a model after the module `after`; with `channels`, put a bottleneck there.

    `shape` (with batch) or `example` says what the model takes. `pixels` says how a picture
    becomes that; the default for three channels is ImageNet's, for anything else none: then the
    device hands the model's own input. ModelError where more than one tensor would cross.

        split = cut(resnet, after="layer2", channels=12)
    """
    example = example_of(shape) if example is None else example
    graph = trace(whole, example)
    if pixels is None and example.dim() == 4 and example.shape[1] == 3:
        pixels = Pixels()
    split = Split(graph, graph.find(after), pixels)
    if channels is not None:
        split.bottleneck = bottleneck(split.place.shape, channels)
        if split.classes is not None:
            split.exit = Exit(split.bottleneck.trunk_shape, split.classes)
    return split.eval()


def frozen(part: nn.Module) -> nn.Module:
    """The part without gradients, in eval mode."""
    return part.requires_grad_(False).eval()


def wants_pixels(split: Split) -> Pixels:
    """The split's preprocessing; ModelError if it takes something other than pictures."""
    if split.pixels is None:
        raise ModelError(
            "this model does not take pictures\nhelp: pass pixels=Pixels(mean, std) to cut()"
        )
    return split.pixels
