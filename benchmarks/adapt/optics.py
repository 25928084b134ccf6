"""Lenses and motion: kernels, and pictures sampled anew. Batches float [N, H, W, C], 0 to 1."""

from __future__ import annotations

import numpy as np

FAR = 4.0  # deviations of a Gaussian that its kernel holds
DISK = 8  # pixels around its middle


def defocus(pictures: np.ndarray, radius: float, soft: float) -> np.ndarray:
    """A disk of that radius, its rim softened over three pixels by a Gaussian of deviation soft."""
    along = np.arange(-DISK, DISK + 1)
    disk = (along[:, None] ** 2 + along**2 <= radius**2).astype(float)
    soften = np.exp(-(np.arange(-1, 2) ** 2) / (2 * soft**2))
    soften /= soften.sum()
    for axis in (0, 1):
        disk = np.apply_along_axis(lambda row: np.convolve(row, soften, "same"), axis, disk)
    return convolved(pictures, disk[None] / disk.sum())


def gaussian(pictures: np.ndarray, deviation: float) -> np.ndarray:
    """A Gaussian blur over the last two axes but channels."""
    reach = int(FAR * deviation + 0.5)
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    kernel /= kernel.sum()
    return convolved(pictures, (kernel[:, None] * kernel)[None])


def glass(
    pictures: np.ndarray, deviation: float, reach: int, rounds: int, random: np.random.Generator
) -> np.ndarray:
    """Blurred, each place overwritten by a neighbour up or left of it, and blurred again.

    The published code means to swap the two, but its numpy views overwrite: so does this.
    """
    found = np.floor(255 * gaussian(pictures, deviation)) / 255
    count, height, width, _ = found.shape
    every = np.arange(count)
    for _ in range(rounds):
        for y in range(height - reach, reach, -1):
            for x in range(width - reach, reach, -1):
                dx, dy = random.integers(-reach, reach, (2, count))
                found[:, y - 1, x - 1] = found[every, y - 1 + dy, x - 1 + dx]
    return gaussian(found, deviation)


def streak(reach: int, deviation: float, angles: np.ndarray) -> np.ndarray:
    """Kernels [N, side, side] of a motion: half a Gaussian along a line of so many degrees."""
    steps = np.arange(2 * reach + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    kernels = np.zeros((len(angles), 4 * reach + 1, 4 * reach + 1))
    rows = 2 * reach + np.outer(np.sin(np.radians(angles)), steps)
    columns = 2 * reach + np.outer(np.cos(np.radians(angles)), steps)
    every = np.arange(len(angles))[:, None]
    for y, x, part in _corners(rows, columns):
        inside = (y < kernels.shape[1]) & (x < kernels.shape[2])
        rim = kernels.shape[1] - 1
        np.add.at(kernels, (every, y.clip(0, rim), x.clip(0, rim)), weights * part * inside)
    return kernels / kernels.sum((1, 2), keepdims=True)


def zoomed(pictures: np.ndarray, factor: float) -> np.ndarray:
    """The middle, so many times as large."""
    _, height, width, _ = pictures.shape
    rows = (height - 1) / 2 + (np.arange(height) - (height - 1) / 2) / factor
    columns = (width - 1) / 2 + (np.arange(width) - (width - 1) / 2) / factor
    grid = np.meshgrid(rows, columns, indexing="ij")
    return sampled(pictures, *(np.broadcast_to(one, (len(pictures), *one.shape)) for one in grid))


def elastic(
    pictures: np.ndarray,
    strength: float,
    deviation: float,
    stretch: float,
    random: np.random.Generator,
) -> np.ndarray:
    """A random affine map of a triangle whose corners move by `stretch`, then a smooth warp."""
    count, height, width, _ = pictures.shape
    middle, third = height / 2, height / 3
    corners = middle + third * np.array([[1, 1], [1, -1], [-1, -1]], float)
    moved = corners + random.uniform(-stretch, stretch, (count, 3, 2))
    ones = np.ones((count, 3, 1))
    maps = np.linalg.solve(np.concatenate((moved, ones), 2), np.tile(corners, (count, 1, 1)))
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    places = np.stack((x, y, np.ones_like(x)), -1).astype(float)  # [H, W, 3]
    back = np.einsum("hwi,nij->nhwj", places, maps)
    found = sampled(pictures, back[..., 1], back[..., 0])
    shift = np.zeros((count, height, width, 2))
    if strength:
        rough = random.uniform(-1, 1, (count, height, width, 2))
        shift = strength * (gaussian(rough, deviation) if deviation else rough)
    return sampled(found, y + shift[..., 0], x + shift[..., 1])


def convolved(pictures: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Each picture with its kernel [N or 1, side, side], the rim mirrored."""
    reach = kernels.shape[1] // 2
    height, width = pictures.shape[1:3]
    rim = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    size = (height + 2 * reach, width + 2 * reach)
    padded = np.fft.rfft2(np.pad(pictures, rim, mode="symmetric"), axes=(1, 2))
    turned = np.fft.rfft2(kernels, size, axes=(1, 2))[..., None]
    whole = np.fft.irfft2(padded * turned, size, axes=(1, 2))
    return whole[:, 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


def sampled(pictures: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear samples at rows and columns [N, H, W]; beyond the rim it is mirrored."""
    height, width = pictures.shape[1:3]
    every = np.arange(len(pictures))[:, None, None]
    found = np.zeros((*rows.shape, pictures.shape[3]))
    for y, x, part in _corners(_mirrored(rows, height), _mirrored(columns, width)):
        at = pictures[every, y.clip(0, height - 1), x.clip(0, width - 1)]
        found += part[..., None] * at
    return found


def _corners(
    rows: np.ndarray, columns: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The four pixels around each place, and each one's part."""
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = rows - top, columns - left
    return [
        (top, left, (1 - down) * (1 - right)),
        (top, left + 1, (1 - down) * right),
        (top + 1, left, down * (1 - right)),
        (top + 1, left + 1, down * right),
    ]


def _mirrored(places: np.ndarray, size: int) -> np.ndarray:
    turn = 2 * (size - 1)
    folded = np.abs(places) % turn
    return np.minimum(folded, turn - folded)
