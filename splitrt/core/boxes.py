"""Boxes around what a detector found, in the pixels of the picture as it came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from splitrt.core import layouts
from splitrt.core.layouts import Layout, Rows
from splitrt.core.sizes import Placing
from splitrt.errors import ModelError, PacketError

if TYPE_CHECKING:
    from splitrt.core.manifest import Manifest
    from splitrt.core.result import Result

CANDIDATES = 1000  # best rows that are compared with each other
LARGEST_LABEL = 1 << 15
FARTHEST = 1e9  # pixels from the picture's corner


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """What was found, best score first.

    xyxy: float32 [n, 4], left, top, right, bottom in pixels of the picture as it came.
    score: float32 [n], 0 to 1.  label: int64 [n], a place in the manifest's labels.
    """

    xyxy: np.ndarray
    score: np.ndarray
    label: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.score)
        if self.xyxy.shape != (count, 4) or (count,) != self.score.shape != self.label.shape:
            raise PacketError(
                f"boxes {list(self.xyxy.shape)}, scores {list(self.score.shape)}, labels "
                f"{list(self.label.shape)}\nhelp: they should be [n, 4], [n] and [n]"
            )

    @classmethod
    def none(cls) -> Boxes:
        """Of a picture in which there is nothing."""
        return cls(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, chosen: slice | np.ndarray) -> Boxes:
        return Boxes(self.xyxy[chosen], self.score[chosen], self.label[chosen])

    def scaled(self, down: float, right: float | None = None) -> Boxes:
        """For the picture so many times as high and as wide; one number is for both."""
        factors = np.array([down if right is None else right, down] * 2, np.float32)
        return Boxes(self.xyxy * factors, self.score, self.label)

    def normalised(self, size: tuple[int, int]) -> Boxes:
        """In shares, 0 to 1, of a picture of (height, width)."""
        return self.scaled(1 / size[0], 1 / size[1])

    def names(self, labels: list[str] | None) -> list[str]:
        """The label of each box in words; its number where the manifest has no word for it."""
        known = labels or []
        return [known[n] if 0 <= n < len(known) else str(n) for n in self.label.tolist()]

    def entries(self, labels: list[str] | None) -> list[dict[str, Any]]:
        """For JSON: of each box its label, score and xyxy."""
        rows = zip(self.names(labels), self.score.tolist(), self.xyxy.tolist(), strict=True)
        return [
            {"label": name, "score": round(score, 4), "xyxy": [round(edge, 1) for edge in xyxy]}
            for name, score, xyxy in rows
        ]

    def words(self, labels: list[str] | None) -> str:
        """The best one, and of how many: `person 0.93 of 3`; or `nothing`."""
        if not len(self):
            return "nothing"
        best = f"{self[:1].names(labels)[0]} {self.score[0]:.2f}"
        return best if len(self) == 1 else f"{best} of {len(self)}"


def found(manifest: Manifest, result: Result, size: tuple[int, int]) -> Boxes:
    """The boxes of a result, for a picture that came with that (height, width).

    None where nobody answered, or the frame was dropped as empty. ModelError if the model is no
    detector that model.toml says how to read; PacketError if the outputs are not what it says.

        boxes = found(edge.manifest, result, frame.image.shape[:2])
    """
    if manifest.boxes is None:
        raise ModelError(
            f"{manifest.name} does not say how its outputs are boxes\n"
            "help: give its model.toml a table [boxes], or export(…, boxes=Layout(kind=…))"
        )
    if not result.outputs:
        return Boxes.none()
    return decode(manifest.boxes, result.outputs, placing(manifest, size))


def placing(manifest: Manifest, size: tuple[int, int]) -> Placing:
    """Where a picture of (height, width) lies in what the model sees."""
    if manifest.sizes is not None:
        return manifest.sizes.placing(size)
    shape = manifest.input.shape
    if len(shape) != 3:
        raise ModelError(f"a detector takes pictures, {manifest.name} takes {shape}")
    height, width = shape[:2] if manifest.input.kind == "pixels" else shape[1:]
    return Placing(size, (height, width), (height, width))


def decode(layout: Layout, outputs: Mapping[str, np.ndarray], place: Placing) -> Boxes:
    """The boxes in a detector's outputs: those above the threshold, one a thing."""
    with np.errstate(all="ignore"):  # what is not finite is left out below
        rows = layouts.read(layout, outputs, place.outer)
        if not layout.original:
            down, right = (came / lies for came, lies in zip(place.came, place.inner, strict=True))
            rows = rows.scaled(down, right)
    sound = (np.abs(rows.xyxy) < FARTHEST).all(1) & np.isfinite(rows.score)
    sound &= (rows.score >= layout.threshold) & (rows.label >= 0) & (rows.label < LARGEST_LABEL)
    rows = rows.only(np.flatnonzero(sound))
    rows = rows.only(np.argsort(-rows.score, kind="stable")[:CANDIDATES])
    rows = rows.only(np.array(suppressed(rows, layout.overlap, layout.most), np.int64))
    height, width = place.came
    within = rows.xyxy.clip(0, np.array([width, height, width, height], np.float32))
    boxes = Boxes(
        within.astype(np.float32), rows.score.astype(np.float32), rows.label.astype(np.int64)
    )
    solid = (boxes.xyxy[:, 2] > boxes.xyxy[:, 0]) & (boxes.xyxy[:, 3] > boxes.xyxy[:, 1])
    return boxes[solid]


def suppressed(rows: Rows, overlap: float, most: int) -> list[int]:
    """The rows that no better one of their label covers: greedy, best first.

    (Neubeck and Van Gool 2006.) At an overlap of 1 nothing is suppressed.
    """
    kept: list[int] = []
    left = np.arange(len(rows.score))
    while len(left) and len(kept) < most:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        if overlap < 1:
            covered = iou(rows.xyxy[best : best + 1], rows.xyxy[left])[0] > overlap
            left = left[~(covered & (rows.label[left] == rows.label[best]))]
    return kept


def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of [n, 4] with every one of [m, 4]: [n, m]."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))
