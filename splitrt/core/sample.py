"""The next token, by noise that depends on the seed and the position alone.

Gumbel-max (Gumbel 1954; Kool et al. 2019): the largest of logit / temperature + noise is a sample
of the softmax. Device and server draw the same noise for a position, so that a draft is accepted
if it is the same token, and a text depends on neither drafts, batches nor retries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from splitrt.errors import PacketError

LOW = 0xFFFFFFFF
Array = TypeVar("Array", bound=Any)  # int64, of numpy or of torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. temperature 0: the best.  top_p: of the likeliest, so much."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise PacketError(f"temperature {self.temperature}\nhelp: 0 to 100; 0 takes the best")
        if not 0 < self.top_p <= 1:
            raise PacketError(f"top_p {self.top_p}\nhelp: more than 0, at most 1")
        if not 0 <= self.seed < 1 << 63:
            raise PacketError(f"seed {self.seed}\nhelp: 0 to 2**63 - 1")


def mixed(x: Array) -> Array:
    """32 bits of an int64 array, well mixed (lowbias32, Wellons 2018)."""
    x = (x ^ x >> 16) * 0x7FEB352D & LOW
    x = (x ^ x >> 15) * 0x846CA68B & LOW
    return x ^ x >> 16


def bits(tokens: Array, seed: int, position: int) -> Array:
    """32 random bits for each token's number; the same from numpy and from torch, on any device."""
    key = _key(seed, position)
    return mixed(mixed(tokens ^ key & LOW) ^ key >> 32)


def noise(vocab: int, seed: int, position: int) -> np.ndarray:
    """Gumbel noise for every token at a position: float64 [vocab]."""
    uniform = (bits(np.arange(vocab, dtype=np.int64), seed, position) + 0.5) / (LOW + 1)
    return -np.log(-np.log(uniform))


def pick(logits: np.ndarray, how: Sampling, position: int) -> int:
    """The token at a position, of logits [vocab]; of equals the first."""
    if how.temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / how.temperature
    if how.top_p < 1:
        scaled = np.where(likeliest(scaled, how.top_p), scaled, -np.inf)
    return int((scaled + noise(len(logits), how.seed, position)).argmax())


def likeliest(scaled: np.ndarray, share: float) -> np.ndarray:
    """The fewest tokens with that share of the softmax (Holtzman et al. 2020): bool [vocab]."""
    order = np.argsort(-scaled, kind="stable")
    shares = np.exp(scaled[order] - scaled[order[0]])
    before = np.cumsum(shares) - shares
    kept = np.zeros(len(scaled), bool)
    kept[order[before < share * shares.sum()]] = True
    return kept


def _key(seed: int, position: int) -> int:
    """64 bits of a seed and a position (splitmix64, Steele et al. 2014)."""
    key = (seed + 0x9E3779B97F4A7C15 * (position + 1)) & (1 << 64) - 1
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    key = (key ^ key >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    return key ^ key >> 31
