"""Who answers in the server's stead where the model has no exit: its local tail, if it has one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from splitrt import Edge, Frame, Result


class Stead:
    """A device, and who stands in on it.  words: who that is, for people.

    An `Edge` answers by its exit itself. A detector has none; its tail takes longer than an exit,
    but a frame whose server is lost or late is better answered late than not at all.
    """

    def __init__(self, model: Path, edge: Edge) -> None:
        self.edge, manifest = edge, edge.manifest
        self._alone: Edge | None = None
        if any(width.exit is not None for width in manifest.widths):
            self.words = "The device answers"
        elif any(plan.place == "edge" and not plan.exits for plan in manifest.plans):
            self._alone = Edge(model, plan="local", threads=1)
            self.words = "The device answers by its local tail"
        else:
            self.words = "Nobody answers"

    def stream(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, Result]]:
        """Every frame with its result, by `Edge.stream`; those without an answer get one here."""
        for frame, result in self.edge.stream(frames):
            if result.where is None and self._alone is not None:
                result = self._instead(self._alone, frame, result)
            yield frame, result

    def _instead(self, alone: Edge, frame: Frame, result: Result) -> Result:
        """What the local tail says; its time comes on top."""
        here = alone(frame.image)
        timings = replace(here.timings, total=result.timings.total + here.timings.total)
        return replace(here, timings=timings, reason=result.reason, sent_bytes=result.sent_bytes)
