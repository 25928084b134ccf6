"""The local exit: a small classifier on the device's features, whose confidence is its accuracy.

Temperature scaling and the calibration error are those of Guo et al. 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

WIDE = 128
HIDDEN = 16
FEW = 16  # places of a map that is deep enough to be pooled at once


class Exit(nn.Module):
    """Logits [N, classes] from the device's features: maps [N, C, H, W] or [N, C, T]."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        maps = len(shape) == 3
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if maps else (nn.Conv1d, nn.BatchNorm1d)
        layers: list[nn.Module] = []
        inputs, few = shape[0], math.prod(shape[1:]) <= FEW
        if inputs > WIDE // 2 and not few:
            layers += [conv(inputs, WIDE // 2, 1, bias=False), norm(WIDE // 2), nn.ReLU()]
            inputs = WIDE // 2
        last = conv(inputs, WIDE, 1, bias=False) if few else conv(inputs, WIDE, 3, 2, 1, bias=False)
        layers += [last, norm(WIDE), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.mean = nn.AdaptiveAvgPool2d(1) if maps else nn.AdaptiveAvgPool1d(1)
        self.most = nn.AdaptiveMaxPool2d(1) if maps else nn.AdaptiveMaxPool1d(1)
        self.classify = nn.Linear(2 * WIDE, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.classify(torch.cat([self.mean(x).flatten(1), self.most(x).flatten(1)], 1))


class Filter(nn.Module):
    """One logit [N, 1] from the device's features: above 0, something of interest is likely."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.judge = nn.Sequential(nn.Linear(2 * shape[0], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2)
        return self.judge(torch.cat([x.mean(2), x.amax(2)], 1))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What held-out frames say of an exit."""

    temperature: float
    accuracy: float  # of the exit on all frames
    ece: float  # expected calibration error, 15 bins


def calibrate(logits: torch.Tensor, labels: torch.Tensor) -> Calibration:
    """The temperature at which confidence is accuracy, from held-out logits [N, K], labels [N]."""
    temperature = _temperature(logits, labels)
    confidence, answer = (logits / temperature).softmax(1).max(1)
    right = answer == labels
    error = calibration_error(confidence, right)
    return Calibration(temperature, right.float().mean().item(), error)


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
