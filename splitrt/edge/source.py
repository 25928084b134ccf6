"""From a word to a source of frames: what --source takes, and what a daemon's cameras are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from splitrt.edge.camera import PATIENCE, Camera
from splitrt.edge.capture import PICTURES, Frame, Pictures
from splitrt.edge.lens import LIVE
from splitrt.edge.pan import Pan
from splitrt.errors import SplitrtError

VIDEOS = {".mp4", ".mov", ".mkv", ".avi", ".webm"}
PAN = "pan:"


class Source(Protocol):
    """Frames one after the other, and a `with` around them."""

    def __iter__(self) -> Iterator[Frame]: ...
    def __enter__(self) -> Source: ...
    def __exit__(self, *_: object) -> None: ...
    def close(self) -> None: ...


def source(text: str, *, patience: float | None = PATIENCE) -> Pictures | Camera | Pan:
    """Pictures for a folder or a picture, a Pan for pan:photo.jpg, else a Camera.

    patience: seconds that a live camera may be silent; None: it is opened anew for ever.

        with source("rtsp://door/stream") as frames:
            for frame in frames: ...
    """
    if text.startswith(PAN):
        return Pan(text.removeprefix(PAN))
    path = Path(text)
    if (text and path.is_dir()) or path.suffix.lower() in PICTURES:
        return Pictures(path)
    if text.startswith((*LIVE, "file://")) or path.suffix.lower() in VIDEOS:
        return Camera(text, patience=patience)
    raise SplitrtError(
        f"no source {text!r}\n"
        "help: a folder, a picture, a video, pan:photo.jpg, /dev/video0, rtsp://…, csi://0"
    )
