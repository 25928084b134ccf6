"""A picture of any size as a model of changing sizes takes it."""

from __future__ import annotations

import numpy as np

from splitrt.core.sizes import Sizes
from splitrt.edge.capture import fit, proved
from splitrt.errors import PacketError

GREY = 114  # what detectors are trained to see around a picture


def place(image: np.ndarray, sizes: Sizes) -> np.ndarray:
    """uint8 [H, W, 3] -> the same, of an allowed size, in the way that `sizes.fit` names.

    A picture of an allowed size passes untouched. PacketError for anything that is no picture,
    and for a size that is not allowed where fit is exact.
    """
    height, width = proved(image).shape[:2]
    if sizes.fit == "letterbox":
        return _letterboxed(image, sizes)
    near = sizes.nearest((height, width))
    if sizes.fit == "stretch":
        return fit(image, *near)
    try:
        sizes.check((height, width))
    except PacketError as error:
        raise PacketError(f"{error}\nhelp: the nearest allowed is {near[0]}×{near[1]}") from error
    return image


def shrink(size: tuple[int, int], sizes: Sizes) -> float:
    """By how much a letterboxed picture of (height, width) is scaled: 1, or less.

    A pixel of the original is that many pixels of what the model sees, from the top left.
    """
    return min(1.0, *(most / pixels for pixels, most in zip(size, sizes.largest, strict=True)))


def _letterboxed(image: np.ndarray, sizes: Sizes) -> np.ndarray:
    scale = shrink((image.shape[0], image.shape[1]), sizes)
    height, width = (max(1, round(scale * pixels)) for pixels in image.shape[:2])
    inner = fit(image, height, width)
    low = zip(inner.shape[:2], sizes.smallest, strict=True)
    rows, columns = (max(least, -(-n // sizes.step) * sizes.step) for n, least in low)
    if (rows, columns) == (height, width):
        return inner
    placed = np.full((rows, columns, 3), GREY, np.uint8)
    placed[:height, :width] = inner
    return placed
