"""How a frame of the daemon ended: whose it was, its result, and why in one word."""

from __future__ import annotations

from dataclasses import dataclass

from splitrt.core.boxes import Boxes, found
from splitrt.core.manifest import Manifest
from splitrt.core.result import Result
from splitrt.errors import PacketError

API = "api"  # the camera of frames that came over the socket


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One frame's end.

    index: of the camera's frames since it was configured; none is left out.  at: seconds since
    1970 when it was taken.  cause: none, similar, empty, chosen (the controller kept it), or the
    error's name, such as DeadlineMissed.  manifest: of the model that had it.
    size: of the picture, height and width.
    """

    camera: str
    model: str
    frame: str
    index: int
    at: float
    result: Result
    cause: str
    manifest: Manifest | None = None
    size: tuple[int, int] = (0, 0)

    @property
    def boxes(self) -> Boxes | None:
        """What a detector found; None of another model, and of outputs that are no boxes."""
        if self.manifest is None or self.manifest.boxes is None:
            return None
        try:
            return found(self.manifest, self.result, self.size)
        except PacketError:
            return None


def cause(result: Result, fault: str | None) -> str:
    """Why a frame ended as it did, as one of few words: it becomes a label."""
    if fault is not None:
        return fault
    if result.plan in ("similar", "empty"):
        return result.plan
    return "none" if result.reason is None else "chosen"
