"""How a frame ended: the answer and where it was made, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds by the words of the sentence; what a frame did not pass is 0.

    `link` is the way there and back; `server` the checking and decompressing there, `batch` the
    wait for a batch, `tail` its run.
    """

    capture: float = 0.0
    head: float = 0.0
    gate: float = 0.0
    codec: float = 0.0
    link: float = 0.0
    server: float = 0.0
    batch: float = 0.0
    tail: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The end of one frame.

    outputs: arrays by name, without batch; empty if nobody answered.
    where: "edge" or "cloud"; None if nobody answered, and then `reason` says why.
    plan: the plan that made the answer.  reason: also set when the edge stood in for the cloud.
    confidence: of the local exit, 0 to 1, where it ran.  sent_bytes: of the whole message.
    revision: number of the exit's revision that answered, judged or helped the server;
    0: the exit as it was shipped.
    """

    outputs: dict[str, np.ndarray]
    where: Literal["edge", "cloud"] | None
    plan: str
    reason: str | None = None
    confidence: float | None = None
    timings: Timings = field(default_factory=Timings)
    sent_bytes: int = 0
    revision: int = 0
