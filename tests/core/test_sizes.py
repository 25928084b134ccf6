"""Rules by which shapes grow, and which pictures are allowed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from splitrt.core.manifest import Manifest
from splitrt.core.sizes import Growth, Sizes, ruled, terms, value
from splitrt.errors import ModelError, PacketError
from tests.core.test_manifest import edited

BOUNDS = {"smallest": (64, 64), "largest": (160, 192), "step": 32}


@pytest.mark.parametrize(
    ("rule", "factors"),
    [("4h", (0, 4, 0, 0)), ("63hw", (0, 0, 0, 63)), ("16hw+w-2h+1", (1, -2, 1, 16))],
)
def test_a_rule_is_a_sum_of_terms_and_is_written_as_it_was_read(rule, factors):
    assert terms(rule) == factors
    assert ruled(factors) == rule
    assert value(rule, 3, 5) == factors[0] + 3 * factors[1] + 5 * factors[2] + 15 * factors[3]


@pytest.mark.parametrize(
    "rule",
    ["", "-", "h*w", "4hh", "wh", "4.5h", "h" * 99, "+", "4h+", "__import__('os')", "9" * 12],
)
def test_what_is_no_rule_is_refused_and_never_evaluated(rule):
    with pytest.raises(ValueError, match="wanted is"):
        terms(rule)


def test_a_number_needs_no_rule():
    assert ruled((7, 0, 0, 0)) == value(7, 2, 2) == 7


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((32, 64), "64×64 to 160×192"),
        ((64, 224), "64×64 to 160×192"),
        ((2**33, 64), "is wanted"),
        ((0, 0), "is wanted"),
        ((65, 64), "no multiple of 32"),
    ],
)
def test_a_size_that_is_not_allowed_is_said(size, words):
    with pytest.raises(PacketError, match=words):
        Sizes(**BOUNDS).check(size)


def test_the_nearest_size_is_allowed():
    sizes = Sizes(**BOUNDS)
    for size in ((1, 1), (70, 90), (5000, 81), (112, 112)):
        sizes.check(sizes.nearest(size))
    assert sizes.nearest((70, 90)) == (64, 96)


@pytest.mark.parametrize(
    "wrong",
    [
        {"smallest": (60, 64)},
        {"largest": (32, 64)},
        {"step": 0},
        {"fit": "crop"},
        {"largest": (1,)},
    ],
)
def test_sizes_that_make_no_sense_are_a_model_error(wrong):
    given = {**BOUNDS, **wrong}
    with pytest.raises(ModelError, match="help:"):
        Sizes.between(given.pop("smallest"), given.pop("largest"), **given)


@pytest.mark.parametrize("rule", ["4h-8", "-1h", "900-100h", "h-3"])
def test_a_dimension_is_at_least_one_and_never_more_than_the_largest_pictures(rule):
    with pytest.raises(ValidationError, match="at most"):
        Growth(**BOUNDS, crossing=[16, rule], outputs=[])


def test_the_manifest_at_a_size_has_that_sizes_shapes(detector_dir):
    manifest = Manifest.load(detector_dir)
    at = manifest.at((64, 96))
    assert (at.input.shape, at.cut.shape) == ([64, 96, 3], [16, 8, 12])
    assert [output.shape for output in at.outputs] == [[42 * 6, 4], [42 * 6, 5]]
    assert at.widths[0].elements == 16 * 8 * 12
    assert at.digest == manifest.digest
    assert manifest.at((160, 192)).widths == manifest.widths


def test_a_model_of_one_size_takes_no_size_and_another_needs_one(model_dir, detector_dir):
    assert Manifest.load(model_dir).at(None) is not None
    with pytest.raises(PacketError, match="have but one"):
        Manifest.load(model_dir).at((32, 32))
    with pytest.raises(PacketError, match="without the size"):
        Manifest.load(detector_dir).at(None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"4h"', '"8h"'),
        ('"4h"', '"4x"'),
        ('"42hw"', '"43hw"'),
        ("step = 32", "step = 16"),
        ("step = 32", "step = 0"),
        ('fit = "exact"', 'fit = "crop"'),
        ("[sizes]", "[sizes]\nsurprise = 1"),
        ('name = "size"', 'name = "image"'),
        ('name = "size"', 'name = "../size"'),
        ('dtype = "int64"\npicture', 'dtype = "object"\npicture'),
    ],
)
def test_a_manifest_whose_sizes_do_not_agree_is_a_model_error(detector_dir, tmp_path, old, new):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(detector_dir, copy)
    edited(copy, old, new)
    with pytest.raises(ModelError):
        Manifest.load(copy)
