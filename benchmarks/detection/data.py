"""COCO128 and the video: pictures as they came, boxes where people drew some, labels in words."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from splitrt import Boxes, Camera

VIDEO = Path("video") / "one-by-one-person-detection.mp4"
HALF = 697  # of its 1,394 frames: the first may be trained on


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture, uint8 [H, W, 3], RGB, and what people saw in it, if anybody has said."""

    image: np.ndarray
    truth: Boxes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]


def labels(data: Path) -> list[str]:
    """COCO's 80 classes."""
    return (data / "coco128" / "coco.names").read_text().split("\n")[:80]


def coco(data: Path, part: str) -> list[Picture]:
    """`part`: train2017 or val2017, 128 pictures each, in the order of their names."""
    with zipfile.ZipFile(data / "coco128" / f"{part}.zip") as archive:
        there = set(archive.namelist())
        names = sorted(name for name in there if name.endswith(".jpg"))
        return [_labelled(archive, name, there) for name in names]


def extra(data: Path) -> list[Picture]:
    """A thousand pictures of 256 pixels a side, one a class of ImageNet."""
    with zipfile.ZipFile(data / "imagenet_sample1000" / "images_256.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        return [Picture(_opened(archive.read(name))) for name in names]


def video(data: Path, frames: range) -> Iterator[Picture]:
    """Those frames of the video."""
    with Camera(str(data / VIDEO)) as camera:
        for frame in camera:
            if frame.index >= frames.stop:
                return
            if frame.index in frames:
                yield Picture(frame.image)


def resized(pictures: list[Picture], side: int) -> np.ndarray:
    """All of them stretched to [N, side, side, 3], as the device does it."""
    size, how = (side, side), Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(p.image).resize(size, how)) for p in pictures])


def _labelled(archive: zipfile.ZipFile, name: str, there: set[str]) -> Picture:
    image = _opened(archive.read(name))
    text = name.replace("images", "labels").replace(".jpg", ".txt")
    rows = archive.read(text).decode().split() if text in there else []
    found = np.array(rows, np.float64).reshape(-1, 5)  # class, centre x, y, width, height
    corners = np.concatenate(
        [found[:, 1:3] - found[:, 3:] / 2, found[:, 1:3] + found[:, 3:] / 2], 1
    )
    shares = Boxes(
        corners.astype(np.float32), np.ones(len(found), np.float32), found[:, 0].astype(np.int64)
    )
    return Picture(image, shares.scaled(*image.shape[:2]))


def _opened(file: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(file)).convert("RGB"))
