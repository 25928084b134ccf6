"""Boxes of a picture within a deadline: by the server, by this device in its stead, or none."""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path
from types import TracebackType

import numpy as np

from splitrt.core.boxes import Boxes, found
from splitrt.core.manifest import TAIL, Manifest
from splitrt.core.result import Result
from splitrt.edge.edge import Edge
from splitrt.edge.trust import Trust
from splitrt.errors import LinkError, ModelError, ModelMismatch, PacketError, SplitrtError

logger = logging.getLogger(__name__)

DEADLINE = 0.15  # seconds
SPARE = 2.0  # times the local tail's fastest run are kept for it
TRIES = 3


class Finder:
    """What a detector finds in a picture: by the server, or in time from this device.

    cloud: host:port; without, everything is found here.  deadline: seconds for a picture. Where the
    model has no exit, its local tail stands in for a server that is lost or late, if the directory
    holds one and half of the deadline is enough for it; its time is kept back. Else nothing is
    found.  counts: pictures by who answered: cloud, edge, or none.

        with Finder("models/person", "gpu-box:50700") as finder:
            finder(image).label

    ModelError for a model that is no detector of pictures. A call raises PacketError for a picture
    that the model does not take; a server that is lost, late, another one or a liar is no error.
    """

    def __init__(
        self,
        folder: str | Path,
        cloud: str | None = None,
        *,
        deadline: float = DEADLINE,
        plan: str | None = None,
        trust: Trust = Trust(),
        threads: int | None = None,
    ) -> None:
        if not 0 < deadline < math.inf:
            raise SplitrtError(f"deadline = {deadline}\nhelp: seconds, more than 0")
        self.manifest = _proved(folder)
        self.deadline, self.kept, self._alone = deadline, 0.0, None
        self._exit = any(width.exit is not None for width in self.manifest.widths)
        if cloud is not None and not self._exit and TAIL in self.manifest.files:
            self._keep(Edge(folder, plan="local", threads=threads))
        self._here = cloud is None
        if cloud is None:
            self._edge = Edge(folder, plan=plan, threads=threads)
        else:
            left = deadline - self.kept
            self._edge = Edge(
                folder, cloud=cloud, deadline=left, plan=plan, trust=trust, threads=threads
            )
        self.counts: Counter[str] = Counter()
        self._trouble = ""

    _alone: Edge | None

    @property
    def stands_in(self) -> str:
        """Who answers where the server does not, in words."""
        if self._alone is not None:
            return f"the local tail, for which {1000 * self.kept:.0f} ms are kept"
        return "the model's exit" if self._exit else "nobody: then there are no boxes"

    def __enter__(self) -> Finder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the server."""
        self._edge.close()
        if self._alone is not None:
            self._alone.close()

    def __call__(self, image: np.ndarray) -> Boxes:
        """The boxes in a picture, uint8 [height, width, 3], RGB."""
        try:
            result = self._edge(image)
            self._told(result.reason or "")
        except (LinkError, ModelMismatch, PacketError) as error:
            if self._here:
                raise
            self._told(str(error).splitlines()[0])
            result = self._instead(image)
        boxes = found(self.manifest, result, image.shape[:2])
        self.counts[result.where or "none"] += 1
        return boxes

    def _instead(self, image: np.ndarray) -> Result:
        """From here, where that is quick enough; else nothing."""
        return Result({}, None, self._edge.plan) if self._alone is None else self._alone(image)

    def _keep(self, alone: Edge) -> None:
        """Let the local tail stand in, unless it takes too long for that."""
        blank = np.zeros(self.manifest.input.shape, np.uint8)
        seconds = min(alone(blank).timings.total for _ in range(TRIES)) / 1000
        if SPARE * seconds <= self.deadline / 2:
            self._alone, self.kept = alone, SPARE * seconds
            return
        alone.close()
        taken = f"{1000 * seconds:.0f} of {1000 * self.deadline:.0f} ms"
        logger.warning("the local tail takes %s: it does not stand in", taken)

    def _told(self, trouble: str) -> None:
        """Say once what is wrong with the server, and once that it is right again."""
        if trouble and not self._trouble:
            logger.warning("no answer of the server: %s", trouble)
        elif self._trouble and not trouble:
            logger.warning("the server answers again")
        self._trouble = trouble


def _proved(folder: str | Path) -> Manifest:
    manifest = Manifest.load(folder)
    if manifest.boxes is None or manifest.input.kind != "pixels":
        raise ModelError(
            f"{folder} is no detector of pictures\nhelp: its model.toml needs a table [boxes]"
        )
    return manifest
