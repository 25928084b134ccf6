"""Pictures as a bad day shows them: 15 kinds, and 4 to tune on, as in CIFAR-10-C.

The kinds and their constants are those of Hendrycks and Dietterich 2019; the code is ours, in
numpy and Pillow, so single pictures differ from the published ones, and frost is computed.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.adapt.optics import (
    convolved,
    defocus,
    elastic,
    gaussian,
    glass,
    streak,
    zoomed,
)
from benchmarks.adapt.weather import fog, frost, snow, spatter

Batch = np.ndarray
Maker = Callable[[Batch, object, np.random.Generator], Batch]

# By severity 3 and 5 of the published five.
STRENGTHS: dict[str, tuple[object, object]] = {
    "gaussian_noise": (0.08, 0.10),  # deviation
    "shot_noise": (100, 50),  # photons
    "impulse_noise": (0.03, 0.07),  # share of numbers
    "defocus_blur": ((0.5, 0.6), (1.5, 0.1)),
    "glass_blur": ((0.4, 1, 1), (0.4, 1, 2)),
    "motion_blur": ((6, 2.0), (9, 2.5)),  # pixels, deviation
    "zoom_blur": (1.15, 1.25),  # largest factor
    "snow": ((0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
    "frost": ((0.9, 0.4), (0.75, 0.45)),
    "fog": ((0.75, 2.5), (1.5, 1.75)),
    "brightness": (0.15, 0.3),  # of value in HSV
    "contrast": (0.4, 0.15),  # of the distance to the mean
    "elastic": ((2.56, 1.92, 1.92), (3.2, 0.96, 0.96)),
    "pixelate": (0.85, 0.65),  # of the side
    "jpeg": (58, 40),  # quality
}
TUNING: dict[str, tuple[object, object]] = {
    "speckle_noise": (0.12, 0.2),
    "gaussian_blur": (0.7, 1.0),
    "spatter": ((0.65, 0.3, 1, 0.69, 0.5, 0), (0.65, 0.1, 0.5, 0.68, 0.6, 1)),
    "saturate": ((1.5, 0.0), (2.5, 0.2)),
}
SEVERITIES = (3, 5)
ZOOM_STEP = 0.01


def corrupted(images: np.ndarray, kind: str, severity: int, seed: int) -> np.ndarray:
    """uint8 [N, H, W, 3] -> the same, corrupted; each picture in its own way."""
    strength = {**STRENGTHS, **TUNING}[kind][SEVERITIES.index(severity)]
    random = np.random.default_rng([seed, severity, *kind.encode()])
    found = MAKERS[kind](images / 255, strength, random)
    return np.asarray(255 * found.clip(0, 1)).astype(np.uint8)


def _impulse(pictures: Batch, share: float, random: np.random.Generator) -> Batch:
    hit = random.random(pictures.shape) < share
    return np.where(hit, random.integers(0, 2, pictures.shape), pictures)


def _motion(pictures: Batch, how: tuple[int, float], random: np.random.Generator) -> Batch:
    angles = random.uniform(-45, 45, len(pictures))
    return convolved(pictures, streak(*how, angles))


def _zoom(pictures: Batch, most: float, random: np.random.Generator) -> Batch:
    factors = np.arange(1 + ZOOM_STEP, most + ZOOM_STEP / 2, ZOOM_STEP)
    return (pictures + sum(zoomed(pictures, one) for one in factors)) / (len(factors) + 1)


def _brightness(pictures: Batch, more: float, random: np.random.Generator) -> Batch:
    """Hue and saturation stay, value grows."""
    value = pictures.max(-1, keepdims=True)
    grown = (value + more).clip(0, 1)
    return np.where(value > 0, pictures * grown / np.maximum(value, 1e-9), grown)


def _saturate(pictures: Batch, how: tuple[float, float], random: np.random.Generator) -> Batch:
    value, least = pictures.max(-1, keepdims=True), pictures.min(-1, keepdims=True)
    had = (value - least) / np.maximum(value, 1e-9)
    now = (had * how[0] + how[1]).clip(0, 1)
    factor = np.where(had > 0, now / np.maximum(had, 1e-9), 0)
    return value - (value - pictures) * factor


def _contrast(pictures: Batch, stays: float, random: np.random.Generator) -> Batch:
    mean = pictures.mean((1, 2), keepdims=True)
    return mean + stays * (pictures - mean)


def _pixelate(pictures: Batch, share: float, random: np.random.Generator) -> Batch:
    height, width = pictures.shape[1:3]
    small = (int(width * share), int(height * share))

    def coarse(image: Image.Image) -> Image.Image:
        return image.resize(small, Image.Resampling.BOX).resize(
            (width, height), Image.Resampling.BOX
        )

    return _each(pictures, coarse)


def _jpeg(pictures: Batch, quality: int, random: np.random.Generator) -> Batch:
    def squeezed(image: Image.Image) -> Image.Image:
        kept = io.BytesIO()
        image.save(kept, "JPEG", quality=quality)
        return Image.open(kept)

    return _each(pictures, squeezed)


def _each(pictures: Batch, change: Callable[[Image.Image], Image.Image]) -> Batch:
    whole = np.rint(255 * pictures).astype(np.uint8)
    return np.stack([np.asarray(change(Image.fromarray(one))) for one in whole]) / 255


MAKERS: dict[str, Callable[..., Batch]] = {
    "gaussian_noise": lambda x, c, r: x + r.normal(0, c, x.shape),
    "shot_noise": lambda x, c, r: r.poisson(x * c) / c,
    "impulse_noise": _impulse,
    "speckle_noise": lambda x, c, r: x + x * r.normal(0, c, x.shape),
    "defocus_blur": lambda x, c, r: defocus(x, *c),
    "gaussian_blur": lambda x, c, r: gaussian(x, c),
    "glass_blur": lambda x, c, r: glass(x, *c, r),
    "motion_blur": _motion,
    "zoom_blur": _zoom,
    "snow": snow,
    "frost": lambda x, c, r: frost(x, *c, r),
    "fog": lambda x, c, r: fog(x, *c, r),
    "spatter": spatter,
    "brightness": _brightness,
    "saturate": _saturate,
    "contrast": _contrast,
    "elastic": lambda x, c, r: elastic(x, *c, r),
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}
