"""A picture of any size as a model of changing sizes takes it."""

from __future__ import annotations

import numpy as np

from splitrt.core.sizes import Sizes
from splitrt.edge.capture import fit, proved

GREY = 114  # what detectors are trained to see around a picture


def place(image: np.ndarray, sizes: Sizes) -> np.ndarray:
    """uint8 [H, W, 3] -> the same, of an allowed size, in the way that `sizes.fit` names.

    A picture of an allowed size passes untouched. PacketError for anything that is no picture,
    and for a size that is not allowed where fit is exact.
    """
    height, width = proved(image).shape[:2]
    lies = sizes.placing((height, width))
    inner = fit(image, *lies.inner)
    if lies.inner == lies.outer:
        return inner
    placed = np.full((*lies.outer, 3), GREY, np.uint8)
    placed[: lies.inner[0], : lies.inner[1]] = inner
    return placed
