"""FastestDet (dog-qiuqiu, BSD-3) as a torch module, for the real weights where they are there."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """A ShuffleNetV2 block: half of the channels pass, or are halved in size beside it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, inner = stride, outputs // 2
        self.branch_main = nn.Sequential(
            *_point(inputs, inner),
            *_depthwise(inner, 3, stride),
            *_point(inner, outputs - inputs),
        )
        if stride == 2:
            self.branch_proj = nn.Sequential(*_depthwise(inputs, 3, 2), *_point(inputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 2:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        batch, channels, height, width = x.shape
        pairs = x.reshape(batch, channels // 2, 2, height, width)
        return torch.cat([pairs[:, :, 0], self.branch_main(pairs[:, :, 1])], 1)


class Backbone(nn.Module):
    """Maps of /8, /16 and /32."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        inputs = 24
        for name, outputs, count in (("stage2", 48, 4), ("stage3", 96, 8), ("stage4", 192, 4)):
            blocks = [Block(inputs, outputs, 2)]
            blocks += [Block(outputs // 2, outputs, 1) for _ in range(count - 1)]
            self.add_module(name, nn.Sequential(*blocks))
            inputs = outputs

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        first = self.stage2(self.pool(self.first_conv(x)))
        second = self.stage3(first)
        return [first, second, self.stage4(second)]


class Pool(nn.Module):
    """Three receptive fields beside each other."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.Conv1x1 = Point(inputs, outputs)
        for name, count in (("S1", 1), ("S2", 2), ("S3", 3)):
            layers = [layer for _ in range(count) for layer in (*_depthwise(outputs, 5), nn.ReLU())]
            self.add_module(name, nn.Sequential(*layers))
        self.output = nn.Sequential(*_point(3 * outputs, outputs)[:2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.Conv1x1(x)
        y = torch.cat([self.S1(x), self.S2(x), self.S3(x)], 1)
        return torch.relu(x + self.output(y))


class Point(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(*_point(inputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1x1(x)


class Layers(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv5x5 = nn.Sequential(
            *_depthwise(inputs, 5), nn.ReLU(), *_point(inputs, outputs)[:2]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv5x5(x)


class Ends(nn.Module):
    """Objectness, box and classes of every place."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv1x1 = Point(inputs, inputs)
        self.obj_layers = Layers(inputs, 1)
        self.reg_layers = Layers(inputs, 4)
        self.cls_layers = Layers(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1x1(x)
        classes = self.cls_layers(x).softmax(1)
        return torch.cat([self.obj_layers(x).sigmoid(), self.reg_layers(x), classes], 1)


class FastestDet(nn.Module):
    """BGR / 255 [N, 3, H, W] -> [N, 85, H/16, W/16]: objectness, box, 80 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.SPP = Pool(336, 96)
        self.detect_head = Ends(96, 80)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third = self.backbone(x)
        first = functional.avg_pool2d(first, 3, 2, 1)
        third = functional.interpolate(third, scale_factor=2.0)
        return self.detect_head(self.SPP(torch.cat([first, second, third], 1)))


def _point(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _depthwise(channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]
