"""Pictures of any size for models of changing sizes."""

from __future__ import annotations

import numpy as np
import pytest

from splitrt.core.sizes import Sizes
from splitrt.edge.place import GREY, place
from splitrt.errors import PacketError

SIZES = [(1, 1), (64, 64), (65, 64), (100, 150), (160, 192), (161, 192), (700, 300), (10, 5000)]


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def sizes(fit: str) -> Sizes:
    return Sizes.between((64, 64), (160, 192), fit=fit)


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
@pytest.mark.parametrize("size", SIZES)
def test_every_picture_comes_out_of_an_allowed_size(fit, size):
    placed = place(picture(*size), sizes(fit))
    sizes(fit).check(placed.shape[:2])


@pytest.mark.parametrize("fit", ["exact", "letterbox", "stretch"])
def test_a_picture_of_an_allowed_size_passes_untouched(fit):
    image = picture(96, 160)
    assert np.array_equal(place(image, sizes(fit)), image)


def test_a_letterboxed_picture_lies_at_the_top_left_on_grey():
    placed = place(picture(100, 70), sizes("letterbox"))
    assert placed.shape == (128, 96, 3)
    assert np.array_equal(placed[:100, :70], picture(100, 70))
    assert (placed[100:] == GREY).all() and (placed[:, 70:] == GREY).all()


def test_a_picture_that_is_too_large_keeps_the_ratio_of_its_sides():
    assert sizes("letterbox").placing((320, 192)).inner == (160, 96)
    placed = place(np.full((320, 192, 3), 7, np.uint8), sizes("letterbox"))
    assert placed.shape == (160, 96, 3) and (placed == 7).all()
    assert sizes("letterbox").placing((10, 10)).inner == (10, 10)


def test_exact_names_the_nearest_size():
    with pytest.raises(
        PacketError, match=r"no multiple of 32\nhelp: the nearest allowed is 96×160"
    ):
        place(picture(97, 160), sizes("exact"))


@pytest.mark.parametrize(
    "wrong", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3)), np.zeros(3)]
)
@pytest.mark.parametrize("fit", ["exact", "letterbox", "stretch"])
def test_what_is_no_picture_is_said(fit, wrong):
    with pytest.raises(PacketError, match="should be uint8"):
        place(wrong, sizes(fit))
