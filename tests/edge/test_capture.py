"""Frames from pictures, videos and cameras; a camera here is a stand-in for OpenCV's."""

from __future__ import annotations

import struct
import sys
import time
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitrt.edge import capture
from splitrt.edge.capture import Camera, Pictures, fit, open_source
from splitrt.errors import PacketError, SplitrtError

VIDEOS = Path(__file__).parents[2].parent / "shared" / "data" / "video"


@pytest.fixture
def video() -> str:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    found = sorted(VIDEOS.glob("*.mp4"))
    if not found:
        pytest.skip(f"no video in {VIDEOS}")
    return str(found[0])


def save(file: Path, colour: tuple[int, ...] = (200, 10, 30), mode: str = "RGB") -> None:
    Image.new(mode, (40, 20), colour).save(file)


def huge(file: Path, side: int) -> None:
    """A few bytes that claim side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


class FakeCapture:
    """What OpenCV's VideoCapture does, from a list; None is a read that fails."""

    def __init__(self, images: list[np.ndarray | None], pace: float = 0.0) -> None:
        self.images, self.pace, self.released = list(images), pace, False

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(self.pace)
        image = self.images.pop(0) if self.images else None
        return image is not None, image

    def isOpened(self) -> bool:
        return True

    def release(self) -> None:
        self.released = True


class FakeOpenCV:
    """Gives one capture after the other, and is down when there are no more."""

    CAP_FFMPEG = CAP_PROP_OPEN_TIMEOUT_MSEC = CAP_PROP_READ_TIMEOUT_MSEC = 0

    def __init__(self, *captures: FakeCapture) -> None:
        self.captures = list(captures)

    def VideoCapture(self, *_: object) -> FakeCapture:
        if self.captures:
            return self.captures.pop(0)
        down = FakeCapture([])
        down.isOpened = lambda: False
        return down


def numbered(count: int) -> list[np.ndarray | None]:
    return [np.full((2, 3, 3), index, np.uint8) for index in range(count)]


@pytest.fixture
def fake(monkeypatch):
    def install(*captures: FakeCapture) -> None:
        cv2 = FakeOpenCV(*captures)
        monkeypatch.setattr(capture, "_opencv", lambda: cv2)
        monkeypatch.setattr(capture, "PAUSE", 0.001)

    return install


def test_a_folder_gives_its_pictures_by_name_as_rgb(tmp_path):
    save(tmp_path / "b.png", (0, 0, 255, 255), "RGBA")
    save(tmp_path / "a.BMP")
    save(tmp_path / "c.png", (7,), "L")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "folder.jpg").mkdir()
    pictures = Pictures(tmp_path)
    frames = list(pictures)
    assert len(pictures) == 3
    assert [(frame.index, frame.name) for frame in frames] == [
        (0, "a.BMP"),
        (1, "b.png"),
        (2, "c.png"),
    ]
    assert all(f.image.shape == (20, 40, 3) and f.image.dtype == np.uint8 for f in frames)
    assert [tuple(f.image[0, 0]) for f in frames] == [(200, 10, 30), (0, 0, 255), (7, 7, 7)]


def test_a_turned_photograph_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert next(iter(Pictures(tmp_path / "a.jpg"))).image.shape == (40, 20, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 60_000])  # Pillow would warn; Pillow would raise
def test_broken_and_enormous_pictures_are_skipped_once_and_named(tmp_path, caplog, side):
    save(tmp_path / "c.png")
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    huge(tmp_path / "b.png", side)
    pictures = Pictures(tmp_path)
    for _ in range(2):
        assert [frame.name for frame in pictures] == ["c.png"]
    assert pictures.skipped == ["a.jpg", "b.png"]
    assert "a.jpg" in caplog.text and "b.png" in caplog.text


def test_a_truncated_picture_is_skipped(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    for name in ("a.jpg", "b.png", "c.webp", "d.bmp"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    pictures = Pictures(tmp_path)
    assert not list(pictures)
    assert pictures.skipped == ["a.jpg", "b.png", "c.webp", "d.bmp"]


def test_a_limit_takes_the_first_pictures(tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}.png")
    assert [frame.name for frame in Pictures(tmp_path, limit=2)] == ["a.png", "b.png"]
    with pytest.raises(SplitrtError, match=r"limit is -1\nhelp: "):
        Pictures(tmp_path, limit=-1)


def test_an_empty_folder_and_a_missing_path_say_what_to_do(tmp_path):
    with pytest.raises(SplitrtError, match=r"(?s)no pictures in .*help: "):
        Pictures(tmp_path)
    with pytest.raises(SplitrtError, match=r"(?s)there is no .*help: "):
        Pictures(tmp_path / "nowhere")


def test_a_source_is_what_its_name_says(tmp_path, fake):
    fake(FakeCapture([]))
    save(tmp_path / "a.png")
    assert isinstance(open_source(str(tmp_path)), Pictures)
    assert isinstance(open_source(str(tmp_path / "a.png")), Pictures)
    assert isinstance(open_source("/dev/video0"), Camera)
    with pytest.raises(SplitrtError, match=r"(?s)no source 'gopher://x'.*help: "):
        open_source("gopher://x")


def test_without_opencv_a_camera_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SplitrtError, match=r"help: pip install 'splitrt\[apps\]'"):
        Camera("/dev/video0")


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


def test_a_live_camera_that_falls_silent_is_opened_anew(fake, caplog):
    first = FakeCapture(numbered(1))
    fake(first, FakeCapture(numbered(1)))
    with Camera("rtsp://door") as camera:
        assert [frame.index for frame in islice(camera, 2)] == [0, 1]
    assert first.released and "opening it anew" in caplog.text


def test_a_camera_that_never_comes_back_is_given_up_with_an_error(fake, monkeypatch):
    monkeypatch.setattr(capture, "PATIENCE", 0.2)
    fake(FakeCapture(numbered(1)))
    with Camera("/dev/video0") as camera, pytest.raises(SplitrtError, match=r"(?s)no frame.*help"):
        list(camera)


def test_a_size_is_for_local_cameras_and_a_csi_camera_is_a_number(fake):
    fake()
    with pytest.raises(SplitrtError, match="comes in the size that it has"):
        Camera("film.mp4", width=640, height=480)
    with pytest.raises(SplitrtError, match="give both"):
        Camera("/dev/video0", width=640)
    with pytest.raises(SplitrtError, match="csi:// and a number"):
        capture._pipeline("csi://0 ! filesink location=x", None)
    assert "width=640,height=480" in capture._pipeline("csi://1", (640, 480))


def test_a_real_video_is_read_to_its_end(video):
    with open_source(video) as camera:
        frames = list(camera)
    assert len(frames) > 10 and camera.dropped == 0
    assert frames[0].image.ndim == 3 and frames[0].image.dtype == np.uint8
    assert [frame.index for frame in frames] == list(range(len(frames)))


def test_fit_resizes_and_leaves_alone_what_fits():
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    assert fit(image, 64, 48) is image
    assert fit(image, 32, 20).shape == (32, 20, 3)
    flat = np.indices((64, 64)).sum(0) % 2 * 255
    smooth = fit(np.repeat(flat[..., None], 3, 2).astype(np.uint8), 16, 16)
    assert smooth.min() > 100 and smooth.max() < 155  # averaged, not picked


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_fit_refuses_what_is_no_picture(shape):
    with pytest.raises(PacketError, match=r"(?s)shape .*help: "):
        fit(np.zeros(shape, np.uint8), 2, 2)
    with pytest.raises(PacketError, match="float32"):
        fit(np.zeros((4, 4, 3), np.float32), 2, 2)
