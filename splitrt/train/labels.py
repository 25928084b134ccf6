"""Where the words of a chart go, so that no two lie on each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Point = tuple[float, float]

DISTANCES = (7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 64.0, 84.0)  # pixels from a point to its label
ANGLES = (90, 270, 0, 180, 45, 135, 315, 225)  # above, below, right, left, then the corners
HAIR = 14.0  # pixels from which on a line leads from the label to its point


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float) -> Box:
        """The box of that size whose centre is (x, y)."""
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    @property
    def middle(self) -> Point:
        """The centre."""
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def meets(self, other: Box) -> bool:
        """Whether some area lies in both."""
        return (
            min(self.right, other.right) > max(self.left, other.left)
            and min(self.top, other.top) > max(self.bottom, other.bottom)
        )  # fmt: skip

    def holds(self, other: Box) -> bool:
        """Whether all of the other lies inside."""
        return (
            self.left <= other.left
            and self.bottom <= other.bottom
            and self.right >= other.right
            and self.top >= other.top
        )

    def nearest(self, point: Point) -> Point:
        """The place of the box that is nearest to a point."""
        x, y = point
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)

    def distance(self, point: Point) -> float:
        """Pixels between a point and the box."""
        return math.dist(point, self.nearest(point))

    def slid(self, inside: Box) -> Box:
        """The box moved sideways as far as it takes to be inside."""
        by = max(inside.left - self.left, 0.0) + min(inside.right - self.right, 0.0)
        return Box(self.left + by, self.bottom, self.right + by, self.top)


def place(
    points: Sequence[Point],
    sizes: Sequence[Point],
    *,
    taken: Iterable[Box] = (),
    inside: Box,
) -> list[Box | None]:
    """A box for the label of each point, in turn: near it, on nothing, inside.

    points: pixels.  sizes: width and height of the labels.  taken: what is not to be covered; if
    there is no other place it is, but never another label. None if nothing is left.
    """
    drawn, labels, hairs = list(taken), list[Box](), list[Box]()
    found: list[Box | None] = []
    for point, size in zip(points, sizes, strict=True):
        free = [box for box in _around(point, size, inside) if not _any(labels, [box])]
        clear = (box for box in free if not _any([*hairs, *drawn], [box]))
        best = next((box for box in clear if not _any(labels, _hair(point, box))), None)
        box = best or next(iter(free), None)
        found.append(box)
        if box is not None:
            labels.append(box)
            hairs += _hair(point, box)
    return found


def _any(some: Iterable[Box], others: Sequence[Box]) -> bool:
    return any(one.meets(other) for one in some for other in others)


def along(points: Sequence[Point], step: float = 5.0) -> list[Box]:
    """Small boxes along a line of pixels, for `taken`."""
    boxes = []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        count = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / step))
        boxes += [
            Box.around(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count, 3, 3)
            for i in range(count + 1)
        ]
    return boxes


def _hair(point: Point, box: Box) -> list[Box]:
    """The line from a label to its point, if it is far enough to need one."""
    return along([point, box.middle]) if box.distance(point) > HAIR else []


def _around(point: Point, size: Point, inside: Box) -> Iterator[Box]:
    """Candidates from near to far; a label's edge, not its centre, has the distance."""
    for distance in DISTANCES:
        for angle in ANGLES:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x = point[0] + across * distance + _sign(across) * size[0] / 2
            y = point[1] + up * distance + _sign(up) * size[1] / 2
            box = Box.around(x, y, *size).slid(inside)
            if inside.holds(box):
                yield box


def _sign(value: float) -> int:
    return 0 if abs(value) < 1e-9 else (1 if value > 0 else -1)
