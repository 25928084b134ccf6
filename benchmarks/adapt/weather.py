"""Fog, frost, snow and spatter, all computed. Batches float [N, H, W, C], 0 to 1."""

from __future__ import annotations

import numpy as np

from benchmarks.adapt.optics import convolved, gaussian, streak, zoomed

GREY = np.array([0.299, 0.587, 0.114])
ICE = np.array([0.86, 0.93, 1.0])  # the colour of frost
WATER, MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255


def plasma(count: int, side: int, decay: float, random: np.random.Generator) -> np.ndarray:
    """Clouds [count, side, side], 0 to 1, by diamonds and squares; side: a power of two."""
    clouds = np.zeros((count, side, side))
    step, rough = side, 100.0

    def shaken(total: np.ndarray) -> np.ndarray:
        return total / 4 + rough * random.uniform(-1, 1, total.shape)

    while step >= 2:
        half = step // 2
        corner = clouds[:, ::step, ::step]
        beside = corner + np.roll(corner, -1, 1)
        clouds[:, half::step, half::step] = shaken(beside + np.roll(beside, -1, 2))
        middle = clouds[:, half::step, half::step]
        up = middle + np.roll(middle, 1, 1)
        left = middle + np.roll(middle, 1, 2)
        clouds[:, ::step, half::step] = shaken(up + corner + np.roll(corner, -1, 2))
        clouds[:, half::step, ::step] = shaken(left + corner + np.roll(corner, -1, 1))
        step, rough = half, rough / decay
    clouds -= clouds.min((1, 2), keepdims=True)
    return clouds / clouds.max((1, 2), keepdims=True)


def fog(
    pictures: np.ndarray, thick: float, decay: float, random: np.random.Generator
) -> np.ndarray:
    """Light clouds before it, then darkened to the range that it had."""
    count, side = pictures.shape[:2]
    most = pictures.max((1, 2, 3), keepdims=True)
    clouds = plasma(count, side, decay, random)[..., None]
    return (pictures + thick * clouds) * most / (most + thick)


def frost(pictures: np.ndarray, seen: float, ice: float, random: np.random.Generator) -> np.ndarray:
    """Ice whose ridges are where clouds are half dense; the published kind takes photographs."""
    count, side = pictures.shape[:2]
    coarse, fine = (plasma(count, side, decay, random) for decay in (1.7, 1.3))
    ridges = (1 - np.abs(2 * coarse - 1)) ** 2
    layer = (0.35 + 0.65 * ridges) * (0.5 + 0.5 * fine)
    return seen * pictures + ice * layer[..., None] * ICE


def snow(
    pictures: np.ndarray, flakes: tuple[float, ...], random: np.random.Generator
) -> np.ndarray:
    """Flakes that fall aslant, and a paler picture.

    flakes: mean and deviation of their brightness, size, least brightness, length and deviation
    of their streaks, how much of the picture stays.
    """
    mean, deviation, size, least, length, spread, stays = flakes
    count, height, width, _ = pictures.shape
    layer = zoomed(random.normal(mean, deviation, (count, height, width, 1)), size)
    layer = np.where(layer < least, 0, layer).clip(0, 1)
    angles = random.uniform(-135, -45, count)
    layer = convolved(layer, streak(int(length), spread, angles))
    pale = np.maximum(pictures, (pictures @ GREY)[..., None] * 1.5 + 0.5)
    return stays * pictures + (1 - stays) * pale + layer + np.rot90(layer, 2, (1, 2))


def spatter(
    pictures: np.ndarray, drops: tuple[float, ...], random: np.random.Generator
) -> np.ndarray:
    """Drops of water, or of mud, on the lens; without the published kind's edge detector.

    drops: mean and deviation of a random field, its blur, the least that is a drop, how dense
    drops are, and 1 for mud.
    """
    mean, deviation, blur, least, dense, mud = drops
    field = random.normal(mean, deviation, (*pictures.shape[:3], 1))
    field = gaussian(field, blur)
    field = np.where(field < least, 0, field)
    if mud:
        cover = gaussian((field > least).astype(float), dense)
        cover = np.where(cover < 0.8, 0, cover)
        return pictures * (1 - cover) + cover * MUD
    most = np.maximum(field.max((1, 2), keepdims=True), 1e-9)
    return pictures + dense * (field / most) * WATER
