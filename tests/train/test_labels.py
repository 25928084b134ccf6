"""Labels of a chart: near their points, inside, never on each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from splitrt.train.labels import Box, along, place

FRAME = Box(0, 0, 600, 400)


@pytest.mark.parametrize("seed", range(5))
def test_no_label_lies_on_another_or_outside(seed):
    random = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in random.uniform((0, 0), (600, 400), (25, 2))]
    marks = [Box.around(*point, 10, 10) for point in points]
    found = place(points, [(90.0, 14.0)] * 25, taken=marks, inside=FRAME)
    boxes = [box for box in found if box is not None]
    assert len(boxes) >= 23
    assert all(FRAME.holds(box) for box in boxes)
    assert not any(one.meets(other) for one, other in itertools.combinations(boxes, 2))


def test_a_lonely_point_has_its_label_right_above():
    (box,) = place([(300, 200)], [(50, 10)], inside=FRAME)
    assert box == Box(275, 207, 325, 217)


def test_a_line_is_avoided_while_there_is_room():
    line = along([(0, 212), (600, 212)])
    (box,) = place([(300, 200)], [(50, 10)], taken=line, inside=FRAME)
    assert not any(box.meets(one) for one in line)


def test_at_the_border_a_label_slides_inside():
    (box,) = place([(2, 200)], [(50, 10)], inside=FRAME)
    assert box.left == 0 and box.distance((2, 200)) < 10


def test_where_there_is_no_room_there_is_no_label():
    assert place([(5, 5)], [(50, 10)], inside=Box(0, 0, 10, 10)) == [None]
