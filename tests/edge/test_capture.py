"""Frames from pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitrt.edge.capture import Pictures, fit
from splitrt.errors import PacketError, SplitrtError


def save(file: Path, colour: tuple[int, ...] = (200, 10, 30), mode: str = "RGB") -> None:
    Image.new(mode, (40, 20), colour).save(file)


def huge(file: Path, side: int) -> None:
    """A few bytes that claim side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


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
