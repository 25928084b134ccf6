"""How detectors lay their boxes out: raw grids, queries, plain rows; which one, model.toml says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from splitrt.errors import PacketError

STRIDES = (8, 16, 32)  # of YOLOX's three levels
LARGEST = 1 << 24  # elements of an output
LARGEST_LOG = 15.0  # e to it times a stride: more than any picture is wide

Share = Annotated[float, Field(ge=0, le=1)]


class Layout(BaseModel):
    """[boxes] of model.toml: how the outputs are read.

    kind. yolox: one output [sum of h·w, 5 + classes] over strides 8, 16 and 32, raw boxes, the
    rest sigmoid already. fastestdet: [5 + classes, h, w], raw boxes, objectness and classes
    between 0 and 1. detr: class logits [queries, classes + 1] with nothing as the last, and centre,
    height and width [queries, 4] in shares. boxes: corners [n, 4] in pixels, then scores [n] and
    labels [n], or scores [n, classes].
    outputs: their names in that order; empty: the model's first ones.
    original: the boxes are in the pixels of the picture as it came, not of what the model saw.
    threshold: least score.  overlap: two boxes of one label that share more of their union are
    one; 1: all are kept.  most: boxes of a picture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["yolox", "fastestdet", "detr", "boxes"]
    outputs: Annotated[list[str], Field(max_length=3)] = []
    original: bool = False
    threshold: Share = 0.3
    overlap: Share = 0.5
    most: Annotated[int, Field(ge=1, le=1000)] = 100


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Candidates: corners [n, 4] in pixels of what the model saw, scores [n], labels [n]."""

    xyxy: np.ndarray
    score: np.ndarray
    label: np.ndarray

    def only(self, chosen: np.ndarray) -> Rows:
        """Those at these places."""
        return Rows(self.xyxy[chosen], self.score[chosen], self.label[chosen])

    def scaled(self, down: float, right: float) -> Rows:
        """For the picture so many times as high and as wide."""
        return Rows(self.xyxy * np.array([right, down, right, down]), self.score, self.label)


def read(layout: Layout, outputs: Mapping[str, np.ndarray], size: tuple[int, int]) -> Rows:
    """The candidates in a detector's outputs, which saw (height, width) pixels.

    PacketError if the outputs are not those of the layout. Numbers that are not finite stay.
    """
    names = layout.outputs or list(outputs)
    if layout.kind == "boxes":
        return _plain(_named(layout, outputs, max(2, min(len(names), 3))))
    if layout.kind == "detr":
        logits, shares = _named(layout, outputs, 2)
        return _detr(logits, shares, size)
    (raw,) = _named(layout, outputs, 1)
    return _yolox(raw, size) if layout.kind == "yolox" else _fastestdet(raw, size)


def _named(layout: Layout, outputs: Mapping[str, np.ndarray], count: int) -> list[np.ndarray]:
    names = layout.outputs or list(outputs)[:count]
    missing = [name for name in names if name not in outputs]
    if missing or len(names) != count:
        raise PacketError(
            f"boxes of kind {layout.kind!r} need {count} outputs, not {names} of {list(outputs)}\n"
            "help: name them as `outputs` in model.toml's table [boxes]"
        )
    arrays = [np.asarray(outputs[name]) for name in names]
    for name, array in zip(names, arrays, strict=True):
        if array.size > LARGEST or array.dtype.kind not in "iuf":
            raise PacketError(f"output {name!r} is {array.dtype} {list(array.shape)}, no boxes")
    return [array.astype(np.float64) for array in arrays]


def _yolox(raw: np.ndarray, size: tuple[int, int]) -> Rows:
    """(Ge et al. 2021: YOLOX.)"""
    levels = [(size[0] // stride, size[1] // stride, stride) for stride in STRIDES]
    count = sum(rows * columns for rows, columns, _ in levels)
    if raw.ndim != 2 or len(raw) != count or raw.shape[1] < 6:
        raise _wrong("yolox", raw, f"[{count}, 5 + classes] for {size[0]}×{size[1]} pixels")
    grid = np.concatenate([_grid(rows, columns) for rows, columns, _ in levels])
    step = np.concatenate([np.full(rows * columns, stride) for rows, columns, stride in levels])
    centre = (raw[:, :2] + grid) * step[:, None]
    sides = np.exp(np.minimum(raw[:, 2:4], LARGEST_LOG)) * step[:, None]
    return _best(centre, sides, raw[:, 4:5] * raw[:, 5:])


def _fastestdet(raw: np.ndarray, size: tuple[int, int]) -> Rows:
    """(dog-qiuqiu's FastestDet: one level; the score weighs objectness more than the class.)"""
    if raw.ndim != 3 or raw.shape[0] < 6 or 0 in raw.shape:
        raise _wrong("fastestdet", raw, "[5 + classes, h, w]")
    _, rows, columns = raw.shape
    flat = raw.reshape(len(raw), -1).T
    pixels = np.array([size[1], size[0]], np.float64)
    places = np.array([columns, rows], np.float64)
    centre = (_grid(rows, columns) + np.tanh(flat[:, 1:3])) / places * pixels
    sides = 1 / (1 + np.exp(-flat[:, 3:5].clip(-50, 50))) * pixels
    score = flat[:, :1].clip(0) ** 0.6 * flat[:, 5:].clip(0) ** 0.4
    return _best(centre, sides, score)


def _detr(logits: np.ndarray, shares: np.ndarray, size: tuple[int, int]) -> Rows:
    """(Carion et al. 2020: DETR.)"""
    _fours("detr", shares)
    if logits.ndim != 2 or len(logits) != len(shares) or logits.shape[1] < 2:
        raise _wrong("detr", logits, f"[{len(shares)}, classes + 1]")
    pixels = np.array([size[1], size[0]], np.float64)
    logits = np.where(np.isfinite(logits), logits, -1e9)
    grown = np.exp(logits - logits.max(1, keepdims=True))
    score = (grown / grown.sum(1, keepdims=True))[:, :-1]
    return _best(shares[:, :2] * pixels, shares[:, 2:] * pixels, score)


def _plain(arrays: list[np.ndarray]) -> Rows:
    corners, score, *rest = arrays
    _fours("boxes", corners)
    if score.ndim == 2 and not rest and len(score) == len(corners) and score.shape[1]:
        return Rows(corners, *_top(score))
    if score.shape != corners.shape[:1] or not rest or rest[0].shape != score.shape:
        raise _wrong("boxes", score, f"[{len(corners)}] with labels, or [{len(corners)}, classes]")
    label = np.where(np.isfinite(rest[0]), rest[0], -1).clip(-1, 1 << 30).astype(np.int64)
    return Rows(corners, score, label)


def _best(centre: np.ndarray, sides: np.ndarray, score: np.ndarray) -> Rows:
    """Of centres, sides and the scores of every class the corners and the best class."""
    return Rows(np.concatenate([centre - sides / 2, centre + sides / 2], 1), *_top(score))


def _top(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the best class's score, its number); a score that is not finite is the worst."""
    score = np.where(np.isfinite(score), score, -1.0)
    label = score.argmax(1)
    return score[np.arange(len(score)), label], label


def _grid(rows: int, columns: int) -> np.ndarray:
    """(x, y) of every place, row by row: [rows · columns, 2]."""
    y, x = np.mgrid[:rows, :columns]
    return np.stack([x.ravel(), y.ravel()], 1)


def _fours(kind: str, boxes: np.ndarray) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise _wrong(kind, boxes, "[n, 4]")


def _wrong(kind: str, found: np.ndarray, wanted: str) -> PacketError:
    return PacketError(f"boxes of kind {kind!r} from an output {list(found.shape)}, not {wanted}")
