"""What a camera is read with: OpenCV, picamera2 on a Raspberry Pi, GStreamer on a Jetson."""

from __future__ import annotations

import importlib.util
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any, Protocol

import numpy as np

from splitrt.errors import SplitrtError

LIVE = ("/dev/video", "v4l2://", "rtsp://", "rtsps://", "csi://")
READ = 2.0  # seconds that a camera has for a frame; OpenCV would wait 30 for one on the network
OPENING = 8.0  # seconds for a network camera's first: it may send a whole one rarely
FULL = (1280, 720)  # pixels of a camera on a connector, when none are asked for
GSTREAMER = "gst-launch-1.0"
ENDING = 2.0  # seconds for GStreamer to end when it is told to

Size = tuple[int, int]  # width, height


class Lens(Protocol):
    """An open camera."""

    def read(self) -> np.ndarray | None:
        """The next picture, uint8 [H, W, 3] RGB; None if none came in time, or at the end."""

    def release(self) -> None:
        """Let others have the camera."""


def opener(source: str, size: Size | None) -> Callable[[], Lens]:
    """What opens it, again and again; SplitrtError at once for what cannot be helped by waiting."""
    if source.startswith("csi://"):
        number = _number(source)
        if importlib.util.find_spec("picamera2") is not None:
            return partial(Connector, number, size or FULL)
        return partial(Pipe, jetson(number, size or FULL), size or FULL)
    return partial(OpenCV, source, size, _opencv())


class OpenCV:
    """USB cameras, network cameras and video files."""

    def __init__(self, source: str, size: Size | None, cv2: Any) -> None:
        place = source.removeprefix("file://").removeprefix("v4l2://")
        if source.startswith(("rtsp://", "rtsps://")):
            limits = {
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: int(1000 * OPENING),
                cv2.CAP_PROP_READ_TIMEOUT_MSEC: int(1000 * READ),
            }
            words = [word for pair in limits.items() for word in pair]
            self._capture = cv2.VideoCapture(place, cv2.CAP_FFMPEG, words)
        else:
            self._capture = cv2.VideoCapture(place)
            if size is not None:
                self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
                self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        if not self._capture.isOpened():
            self._capture.release()
            raise SplitrtError(
                f"{bare(source)} cannot be opened\nhelp: is it there, and not in use?"
            )

    def read(self) -> np.ndarray | None:
        there, image = self._capture.read()
        return np.ascontiguousarray(image[:, :, ::-1]) if there else None  # BGR

    def release(self) -> None:
        self._capture.release()


class Connector:
    """A camera on a Raspberry Pi's ribbon cable, through picamera2 of its system."""

    def __init__(self, number: int, size: Size) -> None:
        from picamera2 import Picamera2

        try:
            self._camera = Picamera2(number)
        except (IndexError, RuntimeError) as error:  # there is none of that number; in use
            raise SplitrtError(
                f"csi://{number} cannot be opened: {error}\n"
                "help: `rpicam-hello --list-cameras` shows those that are there"
            ) from error
        # libcamera names a format by its bytes from the last: BGR888 lies in memory as RGB
        main = {"size": size, "format": "BGR888"}
        self._camera.configure(self._camera.create_video_configuration(main=main))
        self._camera.start()

    def read(self) -> np.ndarray | None:
        try:
            image = self._camera.capture_array("main", wait=READ)
        except (RuntimeError, FutureTimeout, TimeoutError):  # stopped; silent, in Python 3.10 too
            return None
        return np.ascontiguousarray(image)

    def release(self) -> None:
        self._camera.stop()
        self._camera.close()


class Pipe:
    """Pictures that GStreamer writes to its standard output, one after the other, bare RGB.

    Its rows are filled up to a multiple of 4 bytes.
    """

    def __init__(self, command: Sequence[str], size: Size) -> None:
        if shutil.which(command[0]) is None:
            raise SplitrtError(
                f"a camera on a connector needs {command[0]}\n"
                "help: JetPack has it (gstreamer1.0-tools); on a Pi: apt install python3-picamera2"
            )
        self._width, self._height = size
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._process.stdout is not None  # it is a pipe
        self._out = self._process.stdout.fileno()

    def read(self) -> np.ndarray | None:
        rows = np.empty((self._height, -(-3 * self._width // 4) * 4), np.uint8)
        room, until = memoryview(rows.data).cast("B"), time.monotonic() + READ
        while room:
            there, _, _ = select.select([self._out], [], [], max(0.0, until - time.monotonic()))
            came = os.readv(self._out, [room]) if there else 0
            if not came:  # silent, or ended: half a picture is of no use, nor is what follows
                self._process.terminate()
                return None
            room = room[came:]
        image = rows[:, : 3 * self._width].reshape(self._height, self._width, 3)
        return np.ascontiguousarray(image)

    def release(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def jetson(number: int, size: Size) -> list[str]:
    """GStreamer's words for a camera on a Jetson's CSI connector, bare RGB to standard output."""
    return [GSTREAMER, "-q", "nvarguscamerasrc", f"sensor-id={number}", *written(size, "NVMM")]


def written(size: Size, memory: str | None = None) -> list[str]:
    """GStreamer's words from a source on; memory: NVMM where the picture lies in a Jetson's."""
    width, height = size
    words = f"! video/x-raw,width={width},height={height} ! videoconvert "
    if memory is not None:
        words = (
            f"! video/x-raw(memory:{memory}),width={width},height={height} "
            "! nvvidconv ! video/x-raw,format=BGRx ! videoconvert "
        )
    words += "! video/x-raw,format=RGB ! queue leaky=downstream max-size-buffers=1 ! fdsink fd=1"
    return words.split()


def bare(source: str) -> str:
    """A source as it may be shown: without a password."""
    return re.sub(r"//[^/]*@", "//…@", source)


def _number(source: str) -> int:
    number = source.removeprefix("csi://")
    if not (number.isascii() and number.isdigit() and len(number) < 3):
        raise SplitrtError(f"no camera {source!r}\nhelp: csi:// and a number, such as csi://0")
    return int(number)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise SplitrtError(
            "cameras and videos need OpenCV\nhelp: pip install 'splitrt[apps]'"
        ) from error
    return cv2
