"""The quantisers a bottleneck is trained with: fixed steps for q4, q2, q1; a learned rate.

The rate's prior is learned beside the codes and gives their length in bits (Ballé et al. 2017,
Entropic Student, Matsubara et al. 2022); on the wire stand static tables counted afterwards.
"""

from __future__ import annotations

import torch
from torch import nn

BITS = {"q8": 8, "q4": 4, "q2": 2, "q1": 1}
# In standard deviations, the best uniform steps for a Gaussian (Max 1960); at 4 bits wider,
# because what is clipped hurts more than what is rounded.
STEPS = {"q4": 0.5, "q2": 1.0, "q1": 1.6}
REACH = 7  # of the rate's codes, to both sides of 0
RATED = 0.7  # of the steps train a rate rung where there are any
GENEROUS = 6.0  # times more than the aim at first
EASED = 0.4  # of the training, until the aim holds
PUSH = 0.05  # of the rate's price towards its aim, per step
CHEAP, DEAR = -13.0, -4.0  # bounds of the price's logarithm


class Rate(nn.Module):
    """One width's rate-trained rung: a gain and a logistic prior per channel, and the price."""

    def __init__(self, channels: int, aim: float) -> None:
        super().__init__()
        self.aim = aim  # bits a frame
        self.gain = nn.Parameter(torch.zeros(channels))  # logarithm of 1 / step
        self.centre = nn.Parameter(torch.zeros(channels))
        self.spread = nn.Parameter(torch.full((channels,), -1.0))  # logarithm
        self.register_buffer("price", torch.tensor(-7.5))  # logarithm of loss per bit

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z [N, c, h, w] as the server will see it, and its bits a frame; gradients pass."""
        gain = self.gain.exp().view(1, -1, 1, 1)
        codes = straight((z * gain).clamp(-REACH - 0.4, REACH + 0.4))
        spread, centre = self.spread.exp().view(1, -1, 1, 1), self.centre.view(1, -1, 1, 1)
        above, below = (codes + 0.5 - centre) / spread, (codes - 0.5 - centre) / spread
        likely = (above.sigmoid() - below.sigmoid()).clamp(min=1e-6)
        bits = -likely.log2().flatten(1).sum(1).mean()
        return codes / gain, bits

    @torch.no_grad()
    def charge(self, bits: torch.Tensor, done: float) -> torch.Tensor:
        """Loss per bit now; moves so that the bits come to their aim, which starts generous."""
        aim = self.aim * (1 + GENEROUS * max(0.0, 1 - done / EASED))
        price = self.price.exp().clone()
        self.price += PUSH * (bits.detach() / aim - 1).clamp(-1, 1)
        self.price.clamp_(CHEAP, DEAR)
        return price

    def step(self) -> torch.Tensor:
        """The trained step of each channel, float32 [c]."""
        return (-self.gain.detach()).exp().float()


def seen(z: torch.Tensor, rung: str) -> torch.Tensor:
    """z with deviation 1 as the server will see it after a fixed rung; the gradient passes."""
    step, levels = STEPS[rung], 2 ** BITS[rung]
    half = (levels - 1) / 2
    codes = straight(((z / step) + half).clamp(-0.4, levels - 0.6))
    return (codes - half) * step


def rate_name(aim: int) -> str:
    """The rung that aims at so many bytes."""
    return f"r{aim}"


def bits_of(rung: str) -> int:
    """Bits of a packed code."""
    return BITS.get(rung, 4)


def fixed_low(rung: str) -> float:
    """The value of code 0 of a fixed rung, in steps: its codes lie evenly about 0."""
    return -(2 ** BITS[rung] - 1) / 2


def levels(rung: str) -> int:
    """How many codes a rung has."""
    return 2 ** BITS[rung] if rung in BITS else 2 * REACH + 1


def contexts(rung: str) -> list[int]:
    """What a code tells its neighbours: below, about or above the middle; all of it if short."""
    count = levels(rung)
    if count <= 4:
        return list(range(count))
    middle, reach = (count - 1) / 2, 2.0 if rung in BITS else 0.5
    return [0 if c < middle - reach else 2 if c > middle + reach else 1 for c in range(count)]


def straight(x: torch.Tensor) -> torch.Tensor:
    """Rounded; the gradient passes straight (Bengio et al. 2013)."""
    return x + (x.round() - x).detach()


def drawn(names: list[str], random: torch.Generator) -> str:
    """One of the rungs a student is trained with."""
    fixed, rated = ([n for n in names if (n in STEPS) == kind] for kind in (True, False))
    among = rated if rated and (not fixed or torch.rand(1, generator=random) < RATED) else fixed
    return among[int(torch.randint(len(among), (1,), generator=random))]
