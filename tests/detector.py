"""Two small detectors: one of the kind that real ones are, and one that is exported in a moment."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from splitrt.train import Layout, cut, export

ANCHORS = 2
BOXED = ["person", "dog", 'a "cat"', "car", "bird"]  # the labels of `boxed`


class Detector(nn.Module):
    """Pictures [N, 3, H, W] and their original sizes [N, 2] -> boxes [N, A, 4], scores [N, A, K].

    A = 2 · (H/8 · W/8 + H/16 · W/16 + H/32 · W/32). The boxes are in the original's pixels.
    """

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.classes = classes
        self.stem = nn.Sequential(_conv(3, 8, 2), _conv(8, 12, 2))
        self.levels = nn.ModuleList([_conv(12, 16, 2), _conv(16, 24, 2), _conv(24, 32, 2)])
        self.sides = nn.ModuleList([nn.Conv2d(width, 16, 1) for width in (16, 24, 32)])
        self.smooth = nn.ModuleList([_conv(16, 16) for _ in range(3)])
        self.boxes = nn.Conv2d(16, ANCHORS * 4, 3, 1, 1)
        self.scores = nn.Conv2d(16, ANCHORS * classes, 3, 1, 1)

    def forward(self, image: torch.Tensor, size: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = [self.levels[0](self.stem(image))]
        for level in self.levels[1:]:
            maps.append(level(maps[-1]))
        merged, boxes, scores = None, [], []
        for place in (2, 1, 0):
            side = self.sides[place](maps[place])
            if merged is not None:
                side = side + functional.interpolate(merged, size=side.shape[-2:])
            merged = side
            x = self.smooth[place](merged)
            boxes.append(_decoded(self.boxes(x), 8 << place))
            scores.append(_rows(self.scores(x), self.classes))
        taken = torch.tensor([image.shape[2], image.shape[3]], device=image.device)
        scale = (size.float() / taken)[:, [1, 0, 1, 0]].unsqueeze(1)
        return {"boxes": torch.cat(boxes, 1) * scale, "scores": torch.cat(scores, 1).sigmoid()}


def anchors(height: int, width: int) -> int:
    """How many boxes a picture of that size has."""
    return ANCHORS * sum((height // n) * (width // n) for n in (8, 16, 32))


def _decoded(raw: torch.Tensor, stride: int) -> torch.Tensor:
    """[N, anchors · 4, h, w] -> corners [N, h · w · anchors, 4] in the picture's pixels."""
    height, width = raw.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([x, y], 2).reshape(1, -1, 1, 2).to(raw.device)
    raw = _rows(raw, 4).reshape(raw.shape[0], -1, ANCHORS, 4)
    centre = (raw[..., :2].sigmoid() + grid) * stride
    half = raw[..., 2:].clamp(max=4).exp() * stride / 2
    return torch.cat([centre - half, centre + half], 3).flatten(1, 2)


def _rows(x: torch.Tensor, last: int) -> torch.Tensor:
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, last)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def detector(classes: int = 5) -> Detector:
    """With random weights, and BatchNorm that has seen a few batches."""
    torch.manual_seed(3)
    model = Detector(classes).train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(4, 3, 96, 96), torch.full((4, 2), 96.0))
    return model.eval()


class Boxed(nn.Module):
    """Pictures [N, 3, 64, 96] -> corners [N, 96, 4] in pixels, scores [N, 96, 5]."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU())
        self.last = nn.Conv2d(8, 9, 2, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        raw = self.last(self.stem(x)).flatten(2).transpose(1, 2)
        middle = 40 + 30 * torch.tanh(raw[..., :2])
        half = 5 + 5 * raw[..., 2:4].sigmoid()
        boxes = torch.cat([middle - half, middle + half], 2)
        return {"boxes": boxes, "scores": raw[..., 4:].sigmoid()}


def boxed(folder: Path, seed: int = 0) -> Path:
    """A directory of that one, cut: its model.toml says how its outputs are boxes."""
    split = cut(Boxed(seed).eval(), after="stem", shape=(1, 3, 64, 96))
    export(split, folder, labels=BOXED, boxes=Layout(kind="boxes", threshold=0.2))
    return folder
