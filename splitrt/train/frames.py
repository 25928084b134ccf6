"""Pictures to train and score with: a folder, or an .npz of pixels or JPEG bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from splitrt.errors import SplitrtError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Pictures of one size in memory, with their classes where they are known.

    images: uint8 [N, H, W, 3], RGB.  labels: int64 [N], or None.  interest: bool [N], or None:
    whether there is something in the picture that an emptiness filter is to let pass.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    interest: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: slice | np.ndarray) -> Frames:
        labels = None if self.labels is None else self.labels[chosen]
        interest = None if self.interest is None else self.interest[chosen]
        return Frames(self.images[chosen], labels, interest)

    def sample(self, count: int, seed: int = 0) -> Frames:
        """`count` of the frames, or all if there are fewer, chosen by the seed."""
        order = np.random.default_rng(seed).permutation(len(self))[:count]
        return self[np.sort(order)]

    def batches(self, size: int) -> Iterator[Frames]:
        """The frames in their order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


def read(path: str | Path, *, height: int, width: int, limit: int | None = None) -> Frames:
    """Frames from a folder (one subfolder a class, or flat) or an .npz file.

    An .npz holds `images` uint8 [N, H, W, 3], or JPEG files as `prefix`, `body`, `offset`; and
    `labels`. Pictures of another size are resized. With a limit, an even sample is taken.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".npz":
        return _read_npz(path, (height, width), limit)
    if path.is_dir():
        return _read_folder(path, (height, width), limit)
    raise SplitrtError(
        f"{path} is neither a folder of pictures nor an .npz file\n"
        "help: name a folder with one subfolder a class, or an .npz with images and labels"
    )


def _read_npz(path: Path, size: tuple[int, int], limit: int | None) -> Frames:
    with np.load(path, allow_pickle=False) as data:
        names = set(data.files)
        if "images" in names:
            pictures = data["images"]
            pick = _evenly(len(pictures), limit)
            images = [_sized(Image.fromarray(pictures[i]), size) for i in pick]
        elif {"prefix", "body", "offset"} <= names:
            head, body, offset = data["prefix"].tobytes(), data["body"], data["offset"]
            pick = _evenly(len(offset) - 1, limit)
            files = (head + body[offset[i] : offset[i + 1]].tobytes() for i in pick)
            images = [_sized(Image.open(io.BytesIO(file)), size) for file in files]
        else:
            raise SplitrtError(
                f"{path} holds {', '.join(sorted(names)) or 'nothing'}\n"
                "help: images (uint8 [N, H, W, 3]) or prefix, body, offset (JPEG), and labels"
            )
        labels = data["labels"][pick].astype(np.int64) if "labels" in names else None
    return Frames(np.stack(images), labels)


def _read_folder(path: Path, size: tuple[int, int], limit: int | None) -> Frames:
    classes = sorted(child for child in path.iterdir() if child.is_dir())
    files = [
        (file, label)
        for label, folder in enumerate(classes or [path])
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        beside = ", ".join(sorted(file.name for file in path.glob("*.npz")))
        hint = f"name one of its files: {beside}" if beside else "put jpg, png or webp files there"
        raise SplitrtError(f"{path} holds no pictures\nhelp: {hint}")
    files = [files[i] for i in _evenly(len(files), limit)]
    images = np.stack([_sized(Image.open(file), size) for file, _ in files])
    labels = np.array([label for _, label in files], np.int64) if classes else None
    return Frames(images, labels)


def _evenly(count: int, limit: int | None) -> np.ndarray:
    if limit is None or limit >= count:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).astype(np.int64)


def _sized(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    picture = picture.convert("RGB")
    if picture.size != size[::-1]:
        picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture)
