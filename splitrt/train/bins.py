"""How right an exit and a plan are on frames of which the exit is equally sure.

A plan is better than the exit mostly where the exit is unsure, so its accuracy over all frames says
little of those that are worth sending: both are told in bins of the exit's confidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST = 8  # bins
FEWEST = 100  # held-out frames in one: 0.5 points of its accuracy are noise in the best of cases
GRAIN = 1e6  # edges a unit of confidence


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """edges: ascending, between one bin and the next.  place: the bin of each frame [N]."""

    edges: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, confidence: np.ndarray) -> Bins | None:
        """Equally full bins of so many confidences [N]; None where there are too few for two."""
        count = min(MOST, len(confidence) // FEWEST)
        cuts = np.quantile(confidence, np.arange(1, count) / max(count, 1))
        edges = np.unique(np.floor(GRAIN * cuts) / GRAIN)
        place = np.searchsorted(edges, confidence, side="right")
        full = np.bincount(place, minlength=len(edges) + 1) >= FEWEST
        if len(edges) == 0 or not full.all():  # many frames of one confidence
            return None
        return cls(edges, place)

    @property
    def shares(self) -> np.ndarray:
        """Of the frames, in each bin."""
        return np.bincount(self.place, minlength=len(self.edges) + 1) / len(self.place)

    def exit(self, hits: np.ndarray) -> np.ndarray:
        """The exit's accuracy in each bin, by where it is right, bool [N].

        Never falling: a calibrated exit that is surer is right more often, what falls is noise.
        """
        return rising(self._mean(hits), self.shares)

    def plan(self, sent: np.ndarray, hits: np.ndarray) -> np.ndarray:
        """A plan's accuracy in each bin, by where it and where the exit is right, bool [N].

        It is the exit's and a gain that never rises with the confidence. The most that can be
        gained is what the exit gets wrong, and that falls; of two bins of a few hundred frames the
        surer one often seems to gain more by chance alone. A controller that takes the better of
        both in each bin would collect every such chance as a gain, so neighbours are averaged until
        none is left.
        """
        gain = -rising(-self._mean(sent.astype(float) - hits), self.shares)
        return np.clip(self.exit(hits) + gain, 0.0, 1.0)

    def _mean(self, values: np.ndarray) -> np.ndarray:
        sums = np.bincount(self.place, weights=values, minlength=len(self.edges) + 1)
        return np.asarray(sums / (self.shares * len(self.place)))


def rising(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest values that never fall, their weighted mean kept (Ayer et al. 1955)."""
    pools: list[tuple[float, float, int]] = []  # value, weight, how many
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            before = pools.pop()
            both = before[1] + pool[1]
            mean = (before[0] * before[1] + pool[0] * pool[1]) / both
            pool = (mean, both, before[2] + pool[2])
        pools.append(pool)
    return np.array([value for value, _, count in pools for _ in range(count)])
