"""Boxes of a picture within a deadline: by the server, by this device in its stead, or none."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from pathlib import Path
from types import TracebackType

import numpy as np

from splitrt.core.boxes import Boxes, found
from splitrt.core.manifest import Manifest
from splitrt.edge.edge import Edge
from splitrt.edge.trust import Trust
from splitrt.errors import ModelError, SplitrtError

logger = logging.getLogger(__name__)

DEADLINE = 0.15  # seconds
INSTEAD = {  # who answers where the server does not
    "exit": "the model's exit",
    "local": "the local tail",
    None: "nobody: then there are no boxes",
}


class Finder:
    """What a detector finds in a picture: by the server, or in time from this device.

    cloud: host:port; without, everything is found here.  deadline: seconds for a picture. For a
    server that is lost or late the model's exit stands in, or its local tail; see `Edge`. Else
    nothing is found.  counts: pictures by who answered: cloud, edge, or none.

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
        self._edge = Edge(
            folder,
            cloud=cloud,
            deadline=None if cloud is None else deadline,
            plan=plan,
            trust=trust,
            threads=threads,
        )
        self.counts: Counter[str] = Counter()
        self._trouble = ""

    @property
    def stands_in(self) -> str:
        """Who answers where the server does not, in words."""
        return INSTEAD[self._edge.standin]

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

    def __call__(self, image: np.ndarray) -> Boxes:
        """The boxes in a picture, uint8 [height, width, 3], RGB."""
        result, _ = self._edge.land(self._edge.launch(image, time.monotonic()))
        self._told(result.reason or "")
        boxes = found(self.manifest, result, image.shape[:2])
        self.counts[result.where or "none"] += 1
        return boxes

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
