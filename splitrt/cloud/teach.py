"""The server's tail as a teacher: it fits its norms to a stream nobody labelled.

What crosses is normalised anew by the stream's own mean and deviation of every channel: the
encoder's last norm, which has no affine part, as prediction-time BatchNorm (Nado et al. 2020)
does it. Then the affine parameters of the tail's norms learn by the entropy of answers that are
sure enough, the surer the more: Tent (Wang et al. 2021), EATA (Niu et al. 2022).
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

RATE, MOMENTUM = 2e-2, 0.9
SURE = 0.4  # of ln K: E_0; less sure answers teach the teacher nothing
SHRINK = 16  # samples that source statistics count for
LEAST = 1e-3  # of a channel's deviation
aten = torch.ops.aten
# Where weight and bias stand among a norm's arguments.
NORMS = {
    aten._native_batch_norm_legit_no_training.default: (1, 2),
    aten.batch_norm.default: (1, 2),
    aten.group_norm.default: (2, 3),
    aten.layer_norm.default: (2, 3),
}


class Teacher(torch.fx.Interpreter):
    """A tail whose norms can learn. `tail` itself is shared and never changed."""

    def __init__(
        self, tail: torch.fx.GraphModule, shape: list[int], channels: int, *, answer: int = 0
    ) -> None:
        """shape: of the tail's features without batch.  channels: of them that cross.

        answer: the place of the logits among the tail's outputs.
        """
        super().__init__(tail)
        self.shape, self.channels, self.answer = shape, channels, answer
        self.names = _norms(tail)
        self.reset()

    def reset(self) -> None:
        """Back to the tail as it was exported."""
        flat = (1, self.channels, *[1] * (len(self.shape) - 1))
        self.mean, self.deviation = torch.zeros(flat), torch.ones(flat)
        self.gain, self.shift = (_learns(one(flat)) for one in (torch.ones, torch.zeros))
        owned = ((name, operator.attrgetter(name)(self.module)) for name in self.names)
        self.learnt = {name: _learns(tensor.detach().clone()) for name, tensor in owned}
        known = [self.gain, self.shift, *self.learnt.values()]
        self.optimizer = torch.optim.SGD(known, lr=RATE, momentum=MOMENTUM)

    def settle(self, values: Tensor, level: Tensor) -> None:
        """Take the statistics of values [N, C, …], little of few: source pictures have 0 and 1.

        level: mean [C] of all the stream's frames, where values are those worth sending.
        """
        places = [0, *range(2, values.dim())]
        weight = len(values) / (len(values) + SHRINK)
        spread = values.var(places, unbiased=False, keepdim=True)
        self.mean = weight * level.view(self.mean.shape)
        self.deviation = (weight * spread + 1 - weight).sqrt().clamp(min=LEAST)

    def lesson(self, values: Tensor) -> None:
        """One step of entropy minimisation on a batch [N, C, …]."""
        shares = self(values).log_softmax(1)
        most = math.log(shares.shape[1])
        entropy = -(shares.exp() * shares).sum(1)
        sure = (entropy < SURE * most) * torch.exp(SURE * most - entropy)
        self.optimizer.zero_grad()
        (sure.detach() * entropy).mean().backward()
        self.optimizer.step()

    def __call__(self, values: Tensor) -> Tensor:
        """Values [N, C, …] that crossed -> logits [N, K]."""
        known = (values - self.mean) / self.deviation * self.gain + self.shift
        if self.channels < self.shape[0]:
            missing = torch.zeros(len(values), self.shape[0] - self.channels, *self.shape[1:])
            known = torch.cat((known, missing), 1)
        return self.run(known)[self.answer].flatten(1)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A norm's own weight, or what all teachers share."""
        found = self.learnt.get(target)
        return super().get_attr(target, args, kwargs) if found is None else found


def _norms(tail: torch.fx.GraphModule) -> list[str]:
    """The names of the weights and biases of norms."""
    found = []
    for node in tail.graph.nodes:
        for place in NORMS.get(node.target, ()):
            given = node.args[place] if place < len(node.args) else None
            if isinstance(given, torch.fx.Node) and given.op == "get_attr":
                found.append(str(given.target))
    return found


def _learns(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_()
