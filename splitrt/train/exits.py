"""The local exit: a small classifier on the device's features, whose confidence is its accuracy.

Temperature scaling and the calibration error are those of Guo et al. 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

WIDE = 128


class Exit(nn.Module):
    """Logits [N, classes] from the device's features: maps [N, C, H, W] or [N, C, T]."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        maps = len(shape) == 3
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if maps else (nn.Conv1d, nn.BatchNorm1d)
        layers: list[nn.Module] = []
        inputs = shape[0]
        if inputs > WIDE // 2:
            layers += [conv(inputs, WIDE // 2, 1, bias=False), norm(WIDE // 2), nn.ReLU()]
            inputs = WIDE // 2
        layers += [conv(inputs, WIDE, 3, 2, 1, bias=False), norm(WIDE), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.mean = nn.AdaptiveAvgPool2d(1) if maps else nn.AdaptiveAvgPool1d(1)
        self.most = nn.AdaptiveMaxPool2d(1) if maps else nn.AdaptiveMaxPool1d(1)
        self.classify = nn.Linear(2 * WIDE, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.classify(torch.cat([self.mean(x).flatten(1), self.most(x).flatten(1)], 1))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What held-out frames say of an exit."""

    temperature: float
    threshold: float
    accuracy: float  # of the exit on all frames
    share: float  # of frames whose confidence reaches the threshold
    sure_accuracy: float  # of the exit on those frames
    ece: float  # expected calibration error, 15 bins


def calibrate(logits: torch.Tensor, labels: torch.Tensor, target: torch.Tensor) -> Calibration:
    """Temperature and threshold from held-out logits [N, K] and labels [N].

    The threshold is the lowest confidence from which on the exit is right as often as `target`
    (bool [N]: where the whole model is right) on the same frames, so a sure answer costs nothing.
    """
    temperature = _temperature(logits, labels)
    confidence, answer = (logits / temperature).softmax(1).max(1)
    right = answer == labels
    threshold = _threshold(confidence, right, target)
    sure = confidence >= threshold
    return Calibration(
        temperature=temperature,
        threshold=threshold,
        accuracy=right.float().mean().item(),
        share=sure.float().mean().item(),
        sure_accuracy=right[sure].float().mean().item() if sure.any() else 1.0,
        ece=calibration_error(confidence, right),
    )


def calibration_error(confidence: torch.Tensor, right: torch.Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal bins, weighted by their share."""
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins).index_add(0, place, confidence - right.float())
    return gaps.abs().sum().item() / len(confidence)


def _temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    log = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([log], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = functional.cross_entropy(logits / log.exp(), labels)
        value.backward()
        return value

    optimiser.step(loss)
    return log.exp().item()


def _threshold(confidence: torch.Tensor, right: torch.Tensor, target: torch.Tensor) -> float:
    order = confidence.argsort(descending=True)
    lost = (target[order].long() - right[order].long()).cumsum(0)  # answers lost by exiting here
    free = (lost <= 0).nonzero()
    if not len(free):
        return 1.0
    return min(confidence[order[free[-1, 0]]].item(), 1.0)
