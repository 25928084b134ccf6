"""Cameras and videos: the latest frame, and what falls silent; here with stand-ins for drivers."""

from __future__ import annotations

import sys
import time
from importlib.machinery import ModuleSpec
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from splitrt.edge import camera as cameras
from splitrt.edge import lens
from splitrt.edge.camera import Camera
from splitrt.edge.capture import Pictures
from splitrt.edge.pan import Pan
from splitrt.edge.source import source
from splitrt.errors import SplitrtError

VIDEOS = Path(__file__).parents[2].parent / "shared" / "data" / "video"


@pytest.fixture
def video() -> str:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    found = sorted(VIDEOS.glob("*.mp4"))
    if not found:
        pytest.skip(f"no video in {VIDEOS}")
    return str(found[0])


class FakeCapture:
    """What OpenCV's VideoCapture does, from a list; None is a read that fails."""

    def __init__(self, images: list[np.ndarray | None], pace: float = 0.0) -> None:
        self.images, self.pace, self.released = list(images), pace, False

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(self.pace)
        image = self.images.pop(0) if self.images else None
        if isinstance(image, Exception):
            raise image
        return image is not None, image

    def isOpened(self) -> bool:
        return True

    def release(self) -> None:
        self.released = True


class FakeOpenCV:
    """Gives one capture after the other, None for one that is away, and then all are away."""

    CAP_FFMPEG = CAP_PROP_OPEN_TIMEOUT_MSEC = CAP_PROP_READ_TIMEOUT_MSEC = 0

    def __init__(self, *captures: FakeCapture | None) -> None:
        self.captures, self.tries = list(captures), 0

    def VideoCapture(self, *_: object) -> FakeCapture:
        self.tries += 1
        found = self.captures.pop(0) if self.captures else None
        if found is None:
            found = FakeCapture([])
            found.isOpened = lambda: False
        return found


def numbered(count: int) -> list[np.ndarray | None]:
    return [np.full((2, 3, 3), index, np.uint8) for index in range(count)]


def lasting() -> FakeCapture:
    """One that goes on for as long as a test may take."""
    return FakeCapture(numbered(250) * 100, pace=0.002)


@pytest.fixture
def fake(monkeypatch):
    def install(*captures: FakeCapture | None) -> FakeOpenCV:
        cv2 = FakeOpenCV(*captures)
        monkeypatch.setattr(lens, "_opencv", lambda: cv2)
        monkeypatch.setattr(cameras, "PAUSE", 0.001)
        return cv2

    return install


def test_a_source_is_what_its_name_says(tmp_path, fake):
    fake(FakeCapture([]))
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    assert isinstance(source(str(tmp_path)), Pictures)
    assert isinstance(source(str(tmp_path / "a.png")), Pictures)
    assert isinstance(source(f"pan:{tmp_path / 'a.png'}"), Pan)
    assert isinstance(source("/dev/video0"), Camera)
    for wrong in ("gopher://x", "", "pan", "film"):
        with pytest.raises(SplitrtError, match=rf"(?s)no source '{wrong}'.*help: "):
            source(wrong)


def test_without_opencv_a_camera_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for patience in (1.0, None):  # no waiting helps
        with pytest.raises(SplitrtError, match=r"help: pip install 'splitrt\[apps\]'"):
            Camera("/dev/video0", patience=patience)


def test_a_video_gives_every_frame_in_rgb(fake):
    blue = np.zeros((2, 3, 3), np.uint8)
    blue[..., 0] = 255  # OpenCV's order is BGR
    film = FakeCapture([blue, *numbered(4)])
    fake(film)
    with Camera("film.mp4") as camera:
        frames = list(camera)
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert tuple(frames[0].image[0, 0]) == (0, 0, 255)
    assert camera.dropped == 0 and film.released


def test_a_video_that_is_not_there_is_an_error_however_patient(fake):
    fake()
    with pytest.raises(SplitrtError, match=r"film.mp4 cannot be opened\nhelp: "):
        source("film.mp4", patience=None)


def test_a_live_camera_gives_the_latest_and_counts_the_rest(fake):
    live = FakeCapture(numbered(200), pace=0.002)
    fake(live)
    seen = []
    with Camera("/dev/video0") as camera:
        for frame in islice(camera, 5):
            time.sleep(0.02)
            seen.append(frame.index)
    assert seen == sorted(set(seen)) and seen[-1] > 4
    assert camera.dropped >= seen[-1] - 4
    assert live.released


def test_a_live_camera_that_falls_silent_is_opened_anew(fake, caplog):
    first = FakeCapture(numbered(1))
    fake(first, lasting())
    with Camera("rtsp://me:secret@door") as camera:
        assert next(frame.index for frame in camera if camera.opened == 2) > 0
    assert first.released and "opening it anew" in caplog.text and "secret" not in caplog.text


def test_a_camera_that_never_comes_back_is_given_up_with_an_error(fake):
    fake(FakeCapture(numbered(1)))
    with (
        Camera("/dev/video0", patience=0.2) as camera,
        pytest.raises(SplitrtError, match=r"(?s)no frame.*help"),
    ):
        list(camera)


def test_a_camera_is_waited_for_as_long_as_it_takes(fake, monkeypatch):
    monkeypatch.setattr(cameras, "LONGEST_PAUSE", 0.004)
    away = [None] * 40
    cv2 = fake(*away, FakeCapture(numbered(1)), *away, lasting())
    with Camera("/dev/video0", patience=None) as camera:
        assert next(frame.index for frame in camera if camera.opened == 2) > 0
        assert cv2.tries == 82


def test_pauses_before_opening_a_camera_grow(fake, monkeypatch):
    fake()
    monkeypatch.setattr(cameras, "PAUSE", 1.0)
    waits = []
    with Camera("/dev/video0", patience=None) as camera:

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 16:
                camera._closed.set()

        monkeypatch.setattr(camera._closed, "wait", wait)
        camera._read_all()
    opening = waits[1::2]
    longest = [1, 2, 4, 8, 10, 10, 10, 10]
    assert all(most / 2 <= wait <= most for wait, most in zip(opening, longest, strict=True))


def test_what_a_driver_raises_reaches_who_reads(fake):
    fake(FakeCapture([*numbered(1), ArithmeticError("a driver's own")]))
    with Camera("/dev/video0", patience=None) as camera:
        with pytest.raises(ArithmeticError, match="a driver's own"):
            list(camera)


def test_a_closed_camera_ends_whoever_reads_it(fake):
    fake(FakeCapture(numbered(1)))
    with Camera("/dev/video0", patience=None) as camera:
        frames = iter(camera)
        next(frames)
        camera.close()
        assert not list(frames)


def test_a_size_is_for_local_cameras_and_patience_is_positive(fake):
    fake()
    with pytest.raises(SplitrtError, match="comes in the size that it has"):
        Camera("film.mp4", width=640, height=480)
    with pytest.raises(SplitrtError, match="give both"):
        Camera("/dev/video0", width=640)
    with pytest.raises(SplitrtError, match=r"patience = 0\nhelp: "):
        Camera("/dev/video0", patience=0)


def test_a_real_video_is_read_to_its_end(video):
    with source(video) as camera:
        frames = list(camera)
    assert len(frames) > 10 and camera.dropped == 0
    assert frames[0].image.ndim == 3 and frames[0].image.dtype == np.uint8
    assert [frame.index for frame in frames] == list(range(len(frames)))


class FakePicamera2:
    """As much of a Raspberry Pi's picamera2 as is used. BGR888 there means RGB in memory."""

    there = 1
    made: list[FakePicamera2] = []  # noqa: RUF012

    def __init__(self, number: int) -> None:
        if number >= self.there:
            raise IndexError("list index out of range")
        self.words: list[object] = []
        self.left = 3
        self.made.append(self)

    def create_video_configuration(self, *, main: dict) -> dict:
        return main

    def configure(self, configuration: dict) -> None:
        self.words.append(configuration)

    def start(self) -> None:
        self.words.append("start")

    def capture_array(self, name: str, wait: float) -> np.ndarray:
        if not self.left:
            raise TimeoutError
        self.left -= 1
        width, height = self.words[0]["size"]
        return np.full((height, width, 3), (200, 10, 30), np.uint8)

    def stop(self) -> None:
        self.words.append("stop")

    def close(self) -> None:
        self.words.append("close")


@pytest.fixture
def pi(monkeypatch):
    module = ModuleType("picamera2")
    module.__spec__ = ModuleSpec("picamera2", None)
    module.Picamera2 = FakePicamera2
    monkeypatch.setitem(sys.modules, "picamera2", module)
    monkeypatch.setattr(FakePicamera2, "made", [])
    monkeypatch.setattr(cameras, "PAUSE", 0.001)


def test_a_pis_connector_is_read_with_picamera2_and_opened_anew(pi):
    with Camera("csi://0", width=64, height=48) as camera:
        frames = list(islice(camera, 1))
        frames += islice(camera, 4)  # more than one capture gives
    assert camera.opened >= 2
    first = FakePicamera2.made[0]
    assert first.words == [{"size": (64, 48), "format": "BGR888"}, "start", "stop", "close"]
    assert frames[0].image.shape == (48, 64, 3)
    assert tuple(frames[0].image[0, 0]) == (200, 10, 30)


def test_a_connector_without_a_camera_says_so(pi):
    with pytest.raises(SplitrtError, match=r"(?s)csi://3 cannot be opened.*--list-cameras"):
        Camera("csi://3")
    with pytest.raises(SplitrtError, match="csi:// and a number"):
        Camera("csi://0 ! filesink location=x")


def test_a_jetsons_connector_is_gstreamers(monkeypatch):
    words = lens.jetson(1, (640, 480))
    assert words[:4] == ["gst-launch-1.0", "-q", "nvarguscamerasrc", "sensor-id=1"]
    assert "video/x-raw(memory:NVMM),width=640,height=480" in words and "nvvidconv" in words
    assert words[-2:] == ["fdsink", "fd=1"]
    monkeypatch.setattr(lens.shutil, "which", lambda name: None)
    with pytest.raises(SplitrtError, match=r"(?s)needs gst-launch-1.0\nhelp: .*picamera2"):
        Camera("csi://0")


def test_pictures_come_through_a_pipe_until_it_ends_or_hangs(monkeypatch):
    monkeypatch.setattr(lens, "READ", 0.3)
    says = "import sys, time; sys.stdout.buffer.write(bytes(range(72)) + b'x'); sys.stdout.flush()"
    for end in ("", "; time.sleep(60)"):
        pipe = lens.Pipe([sys.executable, "-c", says + end], (3, 3))
        monkeypatch.setattr(lens, "READ", 10.0)  # for Python to start
        first, second = pipe.read(), pipe.read()
        assert first.shape == second.shape == (3, 3, 3)
        rows = np.arange(72, dtype=np.uint8).reshape(2, 3, 12)  # of which 9 are pixels
        assert (np.stack([first, second]).reshape(2, 3, 9) == rows[:, :, :9]).all()
        monkeypatch.setattr(lens, "READ", 0.3)
        assert pipe.read() is None
        pipe.release()
        assert pipe._process.returncode is not None


def test_gstreamer_writes_what_is_read(monkeypatch):
    if lens.shutil.which(lens.GSTREAMER) is None:
        pytest.skip("no gst-launch-1.0: gstreamer1.0-tools, gstreamer1.0-plugins-base")
    source = ["videotestsrc", "pattern=smpte", "num-buffers=3"]
    monkeypatch.setattr(lens, "READ", 20.0)
    pipe = lens.Pipe([lens.GSTREAMER, "-q", *source, *lens.written((70, 50))], (70, 50))
    image = pipe.read()
    assert image.shape == (50, 70, 3)
    red, green, blue = image[10, 15].astype(int)  # the second of seven bars
    assert red > blue + 100 and green > blue + 100  # is yellow
    pipe.release()
