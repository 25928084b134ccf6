"""How many replicas there are to be: by the frames that each has in flight."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from splitrt.errors import SplitrtError

INFLIGHT = "inflight"  # the figure's name


@dataclass(frozen=True, slots=True)
class Scale:
    """From `least` to `most` replicas, so that each has about `busy` frames in flight.

    up, down: seconds for which more, or fewer, must have been wanted.
    """

    least: int = 2
    most: int = 2
    busy: float = 8.0
    up: float = 10.0
    down: float = 120.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise SplitrtError(
                f"{self.least} to {self.most} replicas\nhelp: 1 or more, as 2 or as 1..4"
            )
        if not 0 < self.busy < math.inf:
            raise SplitrtError(f"{self.busy} frames in flight\nhelp: more than 0")


def counted(text: str) -> tuple[int, int]:
    """The least and the most of `2` or `1..4`; SplitrtError if it is neither."""
    found = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", text)
    if found is None:
        raise SplitrtError(f"{text!r} replicas\nhelp: a number, or from..to such as 1..4")
    return int(found[1]), int(found[2] or found[1])


def surplus(here: int, others: Sequence[int]) -> int:
    """How many of the devices here are to go on now, so that all servers come to have as many.

    A quarter of those that are too many: what is known of the others is a second old.
    """
    fair = math.ceil((here + sum(others)) / (1 + len(others)))
    return math.ceil(max(0, here - fair) / 4)


def wanted(context: Any) -> tuple[float, dict[str, Any]]:
    """What Ray's controller asks: a number of replicas, before its delays and bounds.

    Frames go to the replicas by themselves, so Ray's own count of requests would be 0: each replica
    reports what it has in flight, on average over Ray's look-back.
    """
    loads = (context.aggregated_metrics or {}).get(INFLIGHT, {})
    if not loads:  # none has reported yet
        return context.target_num_replicas, {}
    return sum(loads.values()) / context.config.target_ongoing_requests, {}
