"""What a frame is, and the pictures of a folder as frames; cameras are in camera and pan."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from splitrt.errors import PacketError, SplitrtError

logger = logging.getLogger(__name__)

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
LARGEST = 80_000_000  # pixels; Pillow itself warns from 89 million, raises from 179 million
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's, for some broken PNGs
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where warnings are errors
)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture: uint8 [H, W, 3] RGB, when it was taken (time.monotonic), and its name.

    side: what the model takes beside it, by name.
    """

    image: np.ndarray
    index: int
    captured: float
    name: str
    side: Mapping[str, np.ndarray] = field(default_factory=dict)


class Pictures:
    """The pictures of a folder by name, or one picture; those that cannot be read are named."""

    def __init__(self, path: str | Path, *, limit: int | None = None) -> None:
        path = Path(path)
        if not path.exists():
            raise SplitrtError(f"there is no {path}\nhelp: name a picture or a folder of pictures")
        if limit is not None and limit < 1:
            raise SplitrtError(f"limit is {limit}\nhelp: 1 or more; without it, every picture")
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [file for file in files if file.suffix.lower() in PICTURES and file.is_file()]
        if not files:
            kinds = " ".join(sorted(PICTURES))
            raise SplitrtError(f"no pictures in {path}\nhelp: wanted are files in {kinds}")
        self.files = files[:limit]
        self.skipped: list[str] = []
        self._closed = False

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; an iteration in progress ends."""
        self._closed = True

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Frame]:
        for index, file in enumerate(self.files):
            if self._closed:
                return
            try:
                image = picture(file)
            except BROKEN as error:
                if file.name not in self.skipped:  # when the folder is gone through again
                    self.skipped.append(file.name)
                logger.warning("skipped %s: %s", file, error)
                continue
            yield Frame(image, index, time.monotonic(), file.name)


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture at that size, resized if it has another; PacketError if it is no picture."""
    if proved(image).shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def proved(image: np.ndarray) -> np.ndarray:
    """The picture itself; PacketError if it is none."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise PacketError(
            f"a picture of dtype {image.dtype} and shape {list(image.shape)}\n"
            "help: it should be uint8 [height, width, 3], RGB"
        )
    return image


def picture(file: Path) -> np.ndarray:
    """uint8 [H, W, 3] RGB, upright; one of BROKEN if it cannot be read."""
    with Image.open(file) as opened:
        if opened.width * opened.height > LARGEST:
            raise ValueError(f"{opened.width} x {opened.height} pixels are too many")
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
