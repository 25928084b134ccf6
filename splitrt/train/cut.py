"""A model parted in two, with or without a bottleneck between the halves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from splitrt.core.sizes import Rule
from splitrt.errors import ModelError
from splitrt.train.bottleneck import bottleneck
from splitrt.train.exits import Exit
from splitrt.train.free import Free, shrunk
from splitrt.train.graph import Cut, Graph, trace
from splitrt.train.slim import Slim, Student, student_for
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

    Called, it answers as the whole model does (a tuple of tensors), without quantisation. Methods
    take the place of a width; without a student head there is one.
    """

    def __init__(self, graph: Graph, place: Cut, pixels: Pixels | None) -> None:
        super().__init__()
        head, tail = graph.part(place)
        self.head, self.tail = copy.deepcopy(head), copy.deepcopy(tail)
        self.graph, self.place, self.pixels = graph, place, pixels
        self.bottleneck: nn.Module | None = None
        self.shared = False  # whether the head is another split's, and stays as it is
        self.exits = nn.ModuleList()  # one a width, or none
        self.filters = nn.ModuleList()

    @property
    def slim(self) -> Slim | None:
        """The student head, if there is one."""
        return self.bottleneck if isinstance(self.bottleneck, Slim) else None

    @property
    def crossings(self) -> list[tuple[int, ...]]:
        """The shape of what crosses at each width, without batch."""
        if self.slim is not None:
            return self.slim.shapes
        return [self.place.shape if self.bottleneck is None else self.bottleneck.shape]

    @property
    def crossing(self) -> tuple[int, ...]:
        """The shape of what crosses at the widest, without batch."""
        return self.crossings[-1]

    @property
    def classes(self) -> int | None:
        """The number of classes, where the first output is logits [N, K]."""
        shape = self.graph.output_shapes[0]
        return shape[0] if len(shape) == 1 else None

    def rules(self) -> list[Rule]:
        """How the shape of what crosses follows from the picture's."""
        return shrunk(self.graph.rules(self.place), self.crossing, self.place.shape)

    def trunk(self, x: torch.Tensor, width: int = -1) -> torch.Tensor:
        """The device's features, which exit, filter and the encoder's last layer read."""
        if self.slim is not None:
            return self.slim.trunk(x, width)
        features = self.head(x)
        return features if self.bottleneck is None else self.bottleneck.trunk(features)

    def project(self, trunk: torch.Tensor, width: int = -1) -> torch.Tensor:
        """What crosses, before quantisation."""
        if self.slim is not None:
            return self.slim.project(trunk, width)
        return trunk if self.bottleneck is None else self.bottleneck.project(trunk)

    def answer(self, z: torch.Tensor, *side: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The server's part: from what crossed, of any width, and side inputs to the outputs."""
        if self.slim is not None:
            z = self.slim.padded(z)
        return self.tail(z if self.bottleneck is None else self.bottleneck.decode(z), *side)

    def forward(self, x: torch.Tensor, *side: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.answer(self.project(self.trunk(x)), *side)


def cut(
    whole: nn.Module,
    *,
    after: str,
    channels: int | None = None,
    student: Student | Sequence[int] | None = None,
    shape: Sequence[int] = (1, 3, 224, 224),
    example: torch.Tensor | None = None,
    pixels: Pixels | None = None,
    free: Free = Free(),
) -> Split:
    """Part a model after the module `after`; with `channels`, put a bottleneck there.

    With `student`, a small network of several widths takes the place of the head; the channels that
    cross at each width are enough, then the rest is fitted to the cut. `shape` (with
    batch) or `example` says what the model takes. `pixels` says how a picture becomes that; the
    default for three channels is ImageNet's, for anything else none: then the device hands the
    model's own input. ModelError where more than one tensor would cross.

        split = cut(resnet, after="layer2", channels=12)
        split = cut(resnet, after="layer2", student=(6, 12))

    `free` says that pictures change their size, and which further inputs the tail takes:

        sizes = Sizes.between((64, 64), (640, 640), step=32)
        side = {"size": torch.tensor([[480.0, 640.0]])}
        split = cut(detector, after="stem", free=Free(sizes, side))
    """
    if free.sizes is not None:
        shape = (*shape[:2], *free.sizes.largest)
    example = example_of(shape) if example is None else example
    graph = trace(whole, example, free)
    if pixels is None and example.dim() == 4 and example.shape[1] == 3:
        pixels = Pixels()
    split = Split(graph, graph.find(after), pixels)
    if student is not None:
        split.bottleneck = _slim(split, student, example)
        split.head = nn.Identity()
    elif channels is not None:
        split.bottleneck = bottleneck(split.place.shape, channels)
    if split.bottleneck is not None and free.sizes is not None:
        split.bottleneck.size = (None, None)  # nothing is cropped: every size is a multiple
        split.rules()
    if split.bottleneck is not None and split.classes is not None:
        split.exits = nn.ModuleList(Exit(s, split.classes) for s in trunk_shapes(split))
    return split.eval()


def another(split: Split, whole: nn.Module, *, after: str) -> Split:
    """Another model's tail for a trained head, which stays as it is (FrankenSplit's way).

    Its decoder is new, for what crosses `after` that module of `whole`; `distill` trains it, and
    `export(…, head=…)` writes a model directory that takes the first one's payloads.

        scenes = distill(another(split, places, after="layer2"), teacher=places, frames=frames)
        export(scenes, "models/places", head="models/cifar10-resnet")
    """
    if split.bottleneck is None:
        raise ModelError("a head without a bottleneck has no other tail\nhelp: cut(…, channels=12)")
    graph = trace(whole, split.graph.example, split.graph.free)
    made = Split(graph, graph.find(after), split.pixels)
    made.head, made.shared = split.head, True
    made.bottleneck = copy.deepcopy(split.bottleneck)
    if len(made.place.shape) != 3:
        raise ModelError(f"what crosses after {after!r} is {list(made.place.shape)}, no maps")
    made.bottleneck.decoder = made.bottleneck.decoder_for(made.place.shape)
    return made.eval()


def trunk_shapes(split: Split) -> list[tuple[int, ...]]:
    """The device's features at each width, without batch."""
    if split.slim is not None:
        return split.slim.trunk_shapes
    assert split.bottleneck is not None
    return [split.bottleneck.trunk_shape]


def _slim(split: Split, student: Student | Sequence[int], example: torch.Tensor) -> Slim:
    if example.dim() != 4 or len(split.place.shape) != 3:
        raise ModelError(
            f"a student head takes pictures and gives maps, not {list(split.place.shape)}\n"
            "help: cut where feature maps [C, H, W] cross, or use channels="
        )
    channels, height, width = split.place.shape
    if not isinstance(student, Student):
        student = student_for(example.shape[1:], split.place.shape, student)
    return Slim(example.shape[1:], (channels, height, width), student)


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
