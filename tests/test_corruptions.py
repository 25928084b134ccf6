"""The corruptions by which adapting is measured."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.adapt.corrupt import SEVERITIES, STRENGTHS, TUNING, corrupted
from tests.conftest import pictures

IMAGES = pictures(12, seed=4).images
KINDS = [*STRENGTHS, *TUNING]


def distance(kind: str, severity: int) -> float:
    changed = corrupted(IMAGES, kind, severity, 0).astype(float)
    return float(np.abs(changed - IMAGES).mean())


def test_there_are_the_fifteen_kinds_and_four_others_to_tune_on():
    assert len(STRENGTHS) == 15 and len(TUNING) == 4 and not set(STRENGTHS) & set(TUNING)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_changes_pictures_and_leaves_them_pictures(kind):
    for severity in SEVERITIES:
        changed = corrupted(IMAGES, kind, severity, 0)
        assert changed.dtype == np.uint8 and changed.shape == IMAGES.shape
        assert 0.5 < distance(kind, severity) < 100
        assert changed.reshape(len(changed), -1).std(1).min() > 1  # something is left to see


@pytest.mark.parametrize("kind", ["gaussian_noise", "impulse_noise", "contrast", "jpeg", "fog"])
def test_the_higher_severity_changes_more(kind):
    assert distance(kind, 5) > distance(kind, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_pictures(kind):
    one, again = (corrupted(IMAGES, kind, 5, 7) for _ in range(2))
    assert np.array_equal(one, again)


def test_pictures_are_not_all_corrupted_alike():
    same = np.repeat(IMAGES[:1], 4, 0)
    for kind in ("gaussian_noise", "snow", "fog", "elastic", "motion_blur"):
        made = corrupted(same, kind, 5, 0)
        assert not np.array_equal(made[0], made[1]), kind


def test_contrast_keeps_the_mean_and_a_zoom_keeps_the_middle_of_a_flat_picture():
    changed = corrupted(IMAGES, "contrast", 5, 0)
    gap = changed.mean((1, 2)) - IMAGES.mean((1, 2))
    assert np.abs(gap).max() < 1
    flat = np.full((2, 32, 32, 3), 90, np.uint8)
    for kind in ("zoom_blur", "defocus_blur", "motion_blur", "gaussian_blur", "pixelate"):
        assert np.abs(corrupted(flat, kind, 5, 0).astype(int) - 90).max() <= 1, kind
