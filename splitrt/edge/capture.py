"""Where frames come from: pictures in a folder, a video file, a camera."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from splitrt.errors import PacketError, SplitrtError

logger = logging.getLogger(__name__)

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
VIDEOS = {".mp4", ".mov", ".mkv", ".avi", ".webm"}
LIVE = ("/dev/video", "v4l2://", "rtsp://", "csi://")
LARGEST = 80_000_000  # pixels; Pillow itself warns from 89 million, raises from 179 million
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's, for some broken PNGs
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where warnings are errors
)
READ = 2000  # milliseconds that a network camera has for a frame; OpenCV would wait 30 s
RETRIES = 3  # reads in a row that fail before a camera is opened anew
PAUSE = 0.2  # seconds after a read that failed
PATIENCE = 20.0  # seconds without a frame before a camera is given up


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

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Frame]:
        for index, file in enumerate(self.files):
            try:
                image = _picture(file)
            except BROKEN as error:
                if file.name not in self.skipped:  # when the folder is gone through again
                    self.skipped.append(file.name)
                logger.warning("skipped %s: %s", file, error)
                continue
            yield Frame(image, index, time.monotonic(), file.name)


class Camera:
    """A camera, a stream or a video file. A file gives every frame, a live source the latest.

    width, height: asked of a local camera, in pixels; its driver may give the nearest it has.

        with Camera("rtsp://door/stream") as camera:
            for frame in camera: ...
    """

    def __init__(self, source: str, *, width: int | None = None, height: int | None = None) -> None:
        self.source = source
        self.live = source.startswith(LIVE)
        self.size = _size(source, width, height)
        self.dropped = 0
        self._cv2 = _opencv()
        self._capture = self._open()
        self._closed = threading.Event()
        self._fresh = threading.Condition()
        self._newest: list[tuple[int, Any, float]] = []  # none or one
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; an iteration in progress ends."""
        self._closed.set()
        with self._fresh:
            self._fresh.notify_all()
        if self.live and self._watcher is None:
            self._capture.release()  # else whoever reads releases: not under a read in progress

    def __iter__(self) -> Iterator[Frame]:
        return self._latest() if self.live else self._all()

    def _all(self) -> Iterator[Frame]:
        index = 0
        while not self._closed.is_set():
            there, image = self._capture.read()
            if not there:
                break
            yield self._frame(image, index, time.monotonic())
            index += 1
        self._capture.release()

    def _latest(self) -> Iterator[Frame]:
        """Whatever was read last; a thread reads, so that nothing waits in a driver's queue."""
        if self._watcher is None and not self._closed.is_set():
            self._watcher = threading.Thread(target=self._watch, name="camera", daemon=True)
            self._watcher.start()
        while True:
            with self._fresh:
                self._fresh.wait_for(lambda: self._newest or self._closed.is_set(), PATIENCE)
                if self._closed.is_set():
                    return
                if not self._newest:
                    raise SplitrtError(
                        f"{self.source} gave no frame for {PATIENCE:.0f} s\n"
                        "help: is it plugged in, switched on, within reach?"
                    )
                index, image, captured = self._newest.pop()
            yield self._frame(image, index, captured)

    def _watch(self) -> None:
        count = failed = 0
        while not self._closed.is_set():
            there, image = self._capture.read()
            if there:
                failed = 0
                with self._fresh:
                    self.dropped += len(self._newest)
                    self._newest[:] = [(count, image, time.monotonic())]
                    self._fresh.notify()
                count += 1
                continue
            failed += 1
            self._closed.wait(PAUSE)
            if failed >= RETRIES:
                failed = 0
                self._reopen()
        self._capture.release()

    def _reopen(self) -> None:
        logger.warning("%s gives no frames; opening it anew", self.source)
        self._capture.release()
        try:
            self._capture = self._open()
        except SplitrtError as error:  # not back yet: its reads fail, and it is tried again
            logger.warning("%s", error)

    def _frame(self, image: Any, index: int, captured: float) -> Frame:
        return Frame(np.ascontiguousarray(image[:, :, ::-1]), index, captured, f"frame-{index}")

    def _open(self) -> Any:
        cv2, source = self._cv2, self.source.removeprefix("file://").removeprefix("v4l2://")
        if source.startswith("csi://"):
            capture = cv2.VideoCapture(_pipeline(source, self.size), cv2.CAP_GSTREAMER)
        elif source.startswith("rtsp://"):
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, READ, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ]
            capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
        else:
            capture = cv2.VideoCapture(source)
            if self.size is not None:
                capture.set(cv2.CAP_PROP_FRAME_WIDTH, self.size[0])
                capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self.size[1])
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


def _picture(file: Path) -> np.ndarray:
    with Image.open(file) as opened:
        if opened.width * opened.height > LARGEST:
            raise ValueError(f"{opened.width} x {opened.height} pixels are too many")
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))


def _size(source: str, width: int | None, height: int | None) -> tuple[int, int] | None:
    if width is None and height is None:
        return None
    if width is None or height is None or width < 1 or height < 1:
        raise SplitrtError(
            f"width {width}, height {height}\nhelp: give both, in pixels, or neither"
        )
    if source.startswith("rtsp://") or not source.startswith(LIVE):
        raise SplitrtError(
            f"{source} comes in the size that it has, not {width} x {height}\n"
            "help: only local cameras can be asked for a size; fit(image, height, width) resizes"
        )
    return width, height


def _pipeline(source: str, size: tuple[int, int] | None) -> str:
    """GStreamer's words for a camera on a Jetson's CSI connector."""
    sensor = source.removeprefix("csi://")
    if not (sensor.isascii() and sensor.isdigit()):
        raise SplitrtError(f"no camera {source!r}\nhelp: csi:// and a number, such as csi://0")
    wanted = "" if size is None else f"video/x-raw(memory:NVMM),width={size[0]},height={size[1]} ! "
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! {wanted}nvvidconv ! video/x-raw,format=BGRx ! "
        "videoconvert ! video/x-raw,format=BGR ! appsink drop=1 max-buffers=1"
    )


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise SplitrtError(
            "cameras and videos need OpenCV\nhelp: pip install 'splitrt[apps]'"
        ) from error
    return cv2
