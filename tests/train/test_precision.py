"""Average precision, on cases that can be reckoned by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from splitrt import Boxes, PacketError
from splitrt.train import precision


def boxes(*rows: tuple[float, float, float, float, float, int]) -> Boxes:
    """Rows of left, top, right, bottom, score, label."""
    array = np.array(rows, np.float32).reshape(-1, 6)
    return Boxes(array[:, :4], array[:, 4], array[:, 5].astype(np.int64))


FIRST = (0, 0, 10, 10, 1, 0)
SECOND = (50, 0, 60, 10, 1, 0)


def test_what_was_wanted_is_perfect():
    wanted = [boxes(FIRST, SECOND, (0, 0, 10, 10, 1, 3)), boxes(), boxes(FIRST)]
    assert precision(wanted, wanted) == 1.0


def test_what_was_not_found_lowers_it():
    wanted = [boxes(FIRST, SECOND)]
    assert precision([boxes(FIRST)], wanted) == pytest.approx(51 / 101)  # recalls 0 to .5
    assert precision([boxes()], wanted) == 0.0


def test_a_false_box_counts_by_its_rank():
    wanted = [boxes(FIRST, SECOND)]
    false = (80, 80, 90, 90)
    last = precision([boxes(FIRST, SECOND, (*false, 0.1, 0))], wanted)
    first = precision([boxes((*FIRST[:4], 0.5, 0), (*SECOND[:4], 0.4, 0), (*false, 1, 0))], wanted)
    assert last == 1.0
    assert first == pytest.approx(2 / 3)  # 1/2 at the first, but 2/3 at a higher recall


def test_a_thing_is_found_once():
    twice = boxes(FIRST, (0, 0, 10, 10, 0.9, 0), (*SECOND[:4], 0.8, 0))
    wanted = precision([twice], [boxes(FIRST, SECOND)])
    assert wanted == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_overlap_decides_at_each_step_of_five():
    half = boxes((0, 0, 10, 6.2, 1, 0))  # .62 of the wanted box
    assert precision([half], [boxes(FIRST)]) == pytest.approx(0.3)  # .5, .55, .6 of ten
    assert precision([half], [boxes(FIRST)], overlaps=[0.5]) == 1.0


def test_labels_weigh_alike_and_one_can_be_asked_for():
    wanted = [boxes(FIRST, SECOND, (0, 0, 10, 10, 1, 1))]
    found = [boxes(FIRST, SECOND)]
    assert precision(found, wanted) == 0.5
    assert precision(found, wanted, label=0) == 1.0
    assert math.isnan(precision(found, wanted, label=7))


def test_as_many_pictures_are_compared():
    with pytest.raises(PacketError, match="2 pictures, 1 wanted"):
        precision([boxes(), boxes()], [boxes()])
