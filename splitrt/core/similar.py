"""How much a picture has changed since another: a number for deciding whether to ask again."""

from __future__ import annotations

import numpy as np

BLOCKS = 48  # along the longer side: 16 pixels each of 768
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of R, G, B; ITU-R BT.601


def blocks(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [rows, columns], the mean luminance of each block, 0 to 255.

    Blocks are squares; the last of a row or column takes what is left over.
    """
    height, width, _ = image.shape
    side = max(1, min(-(-max(height, width) // BLOCKS), height, width))
    rows = _sums(image.reshape(height, -1), side).reshape(-1, width, 3)  # [rows, W, 3]
    sums = _sums((rows @ LUMINANCE).T, side).T
    area = np.outer(_lengths(height, side), _lengths(width, side))
    return np.asarray(sums / area, np.float32)


def change(one: np.ndarray, other: np.ndarray) -> float:
    """From `blocks` of two pictures: their mean difference plus the largest of any block.

    The mean sees light and camera move, the largest a small thing that comes or goes. Grey
    levels, 0 to 510; infinite if the pictures have different sizes.
    """
    if one.shape != other.shape:
        return float("inf")
    gap = np.abs(one - other)
    return float(gap.mean() + gap.max())


def _sums(array: np.ndarray, side: int) -> np.ndarray:
    """[n, m] -> float32 [n // side, m]: sums of `side` rows, the last with what is left over."""
    count, width = len(array) // side, array.shape[1]
    kind = np.uint32 if array.dtype == np.uint8 else np.float32
    sums = array[: count * side].reshape(count, side, width).sum(1, dtype=kind)
    sums[-1] += array[count * side :].sum(0, dtype=kind)
    return sums.astype(np.float32, copy=False)


def _lengths(size: int, side: int) -> np.ndarray:
    lengths = np.full(size // side, side, np.float32)
    lengths[-1] += size % side
    return lengths
