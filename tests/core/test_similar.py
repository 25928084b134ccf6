"""How much a picture changed: light, cameras, and the small thing that comes into view."""

from __future__ import annotations

import numpy as np
import pytest

from splitrt.core.similar import LUMINANCE, blocks, change


def scene(height: int = 432, width: int = 768, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 200, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(432, 768, 27, 48), (32, 32, 32, 32), (433, 771, 25, 45), (1, 500, 1, 500), (5, 2000, 1, 400)],
)
def test_every_pixel_counts_once(height, width, rows, columns):
    image = scene(height, width)
    small = blocks(image)
    assert small.shape == (rows, columns) and small.dtype == np.float32
    for row, column in ((0, 0), (height - 1, width - 1), (height // 2, width // 3)):
        changed = image.copy()
        changed[row, column] = 255
        assert (blocks(changed) != small).sum() == 1


def test_blocks_are_means_of_the_luminance():
    image = scene()
    wanted = (image.astype(np.float64) @ LUMINANCE.astype(np.float64)).reshape(27, 16, 48, 16)
    np.testing.assert_allclose(blocks(image), wanted.mean((1, 3)), rtol=1e-5)


def test_the_same_picture_has_not_changed_and_another_has():
    assert change(blocks(scene()), blocks(scene())) == 0
    black, white = (np.full((432, 768, 3), value, np.uint8) for value in (0, 255))
    assert change(blocks(black), blocks(white)) == pytest.approx(510, abs=0.01)


def test_a_small_thing_is_seen_though_the_mean_hardly_moves():
    image = np.full((432, 768, 3), 100, np.uint8)
    changed = image.copy()
    changed[200:216, 400:416] = 160  # 256 of 331,776 pixels, wherever the blocks lie
    gap = np.abs(blocks(changed) - blocks(image))
    assert gap.mean() < 0.1
    assert change(blocks(changed), blocks(image)) > 15


def test_a_little_noise_is_little_change():
    image = scene()
    noise = np.random.default_rng(1).normal(0, 2, image.shape)
    noisy = (image + noise).clip(0, 255).round().astype(np.uint8)
    assert change(blocks(noisy), blocks(image)) < 2


def test_another_size_is_another_picture():
    assert change(blocks(scene(32, 32)), blocks(scene(40, 32))) == float("inf")
