"""Where frames come from: pictures in a folder, a video file, a camera."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from splitrt.errors import PacketError, SplitrtError

logger = logging.getLogger(__name__)

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
VIDEOS = {".mp4", ".mov", ".mkv", ".avi", ".webm"}
LIVE = ("/dev/video", "v4l2://", "rtsp://", "csi://")
LARGEST = 100_000_000  # pixels
RETRIES = 5  # reads in a row that fail before a camera is opened anew
PATIENCE = 10.0  # seconds without a frame before a camera is given up


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture: uint8 [H, W, 3] RGB, when it was taken (time.monotonic), and its name."""

    image: np.ndarray
    index: int
    captured: float
    name: str


class Pictures:
    """The pictures of a folder by name, or one picture; those that cannot be read are named."""

    def __init__(self, path: str | Path, *, limit: int | None = None) -> None:
        path = Path(path)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        else:
            files = [path] if path.is_file() else []
        if not files:
            raise SplitrtError(f"no pictures in {path}\nhelp: a folder with jpg, png or webp files")
        self.files = files[:limit]
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Frame]:
        for index, file in enumerate(self.files):
            try:
                image = _picture(file)
            except (OSError, UnidentifiedImageError, ValueError) as error:
                self.skipped.append(file.name)
                logger.warning("skipped %s: %s", file, error)
                continue
            yield Frame(image, index, time.monotonic(), file.name)


class Camera:
    """A camera, a stream or a video file. A file gives every frame, a live source the latest.

    with Camera("rtsp://door/stream") as camera:
        for frame in camera: ...
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.live = source.startswith(LIVE)
        self.dropped = 0
        self._cv2 = _opencv()
        self._capture = self._open()
        self._closed = threading.Event()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; an iteration in progress ends."""
        self._closed.set()

    def __iter__(self) -> Iterator[Frame]:
        return self._latest() if self.live else self._all()

    def _all(self) -> Iterator[Frame]:
        index = 0
        while not self._closed.is_set():
            there, image = self._capture.read()
            if not there:
                return
            yield self._frame(image, index, time.monotonic())
            index += 1

    def _latest(self) -> Iterator[Frame]:
        """Whatever was read last; a thread reads, so that nothing waits in a driver's queue."""
        fresh = threading.Condition()
        latest: list[tuple[int, Any, float]] = []

        def watch() -> None:
            count = failed = 0
            while not self._closed.is_set():
                there, image = self._capture.read()
                failed = 0 if there else failed + 1
                if failed >= RETRIES:
                    logger.warning("%s gives no frames; opening it anew", self.source)
                    self._capture.release()
                    self._capture, failed = self._open(), 0
                if there:
                    with fresh:
                        self.dropped += len(latest)
                        latest[:] = [(count, image, time.monotonic())]
                        fresh.notify()
                    count += 1
            self._capture.release()

        threading.Thread(target=watch, name="camera", daemon=True).start()
        while not self._closed.is_set():
            with fresh:
                if not fresh.wait_for(lambda: latest, PATIENCE):
                    raise SplitrtError(f"{self.source} gave no frame for {PATIENCE:.0f} s")
                index, image, captured = latest.pop()
            yield self._frame(image, index, captured)

    def _frame(self, image: Any, index: int, captured: float) -> Frame:
        return Frame(np.ascontiguousarray(image[:, :, ::-1]), index, captured, f"frame-{index}")

    def _open(self) -> Any:
        source = self.source.removeprefix("file://").removeprefix("v4l2://")
        if source.startswith("csi://"):
            pipeline = (
                f"nvarguscamerasrc sensor-id={source.removeprefix('csi://')} ! nvvidconv ! "
                "video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
                "appsink drop=1 max-buffers=1"
            )
            capture = self._cv2.VideoCapture(pipeline, self._cv2.CAP_GSTREAMER)
        else:
            capture = self._cv2.VideoCapture(source)
        if not capture.isOpened():
            raise SplitrtError(
                f"{self.source} cannot be opened\nhelp: is it there, and not in use?"
            )
        return capture


def open_source(text: str) -> Pictures | Camera:
    """Pictures for a folder or a picture, else a Camera."""
    path = Path(text)
    if path.is_dir() or path.suffix.lower() in PICTURES:
        return Pictures(path)
    if text.startswith((*LIVE, "file://")) or path.suffix.lower() in VIDEOS:
        return Camera(text)
    raise SplitrtError(
        f"no source {text!r}\nhelp: a folder, a picture, a video, /dev/video0, rtsp://…, csi://0"
    )


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture at that size, resized if it has another; PacketError if it is no picture."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise PacketError(
            f"a picture of dtype {image.dtype} and shape {list(image.shape)}\n"
            "help: it should be uint8 [height, width, 3], RGB"
        )
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _picture(file: Path) -> np.ndarray:
    with Image.open(file) as opened:
        if opened.width * opened.height > LARGEST:
            raise ValueError(f"{opened.width} x {opened.height} pixels are too many")
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise SplitrtError(
            "cameras and videos need OpenCV\nhelp: pip install 'splitrt[apps]'"
        ) from error
    return cv2
