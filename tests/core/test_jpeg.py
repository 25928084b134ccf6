"""Whole pictures as JPEG: what the server opens is what the device sent, or refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from splitrt.core.jpeg import ROOM, Jpeg
from splitrt.errors import PacketError
from tests.conftest import pictures

SHAPE = (32, 32, 3)


def saved(kind: str, image: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


def test_a_picture_comes_back_nearly_as_it_was():
    slope = np.add.outer(np.arange(32) * 3, np.arange(32) * 2)
    image, codec = np.stack([slope, slope // 2, 160 - slope], 2).astype(np.uint8), Jpeg(95, SHAPE)
    packed = codec.open(codec.encode(image))
    assert len(packed) == codec.packed_size
    seen = np.frombuffer(packed, np.uint8).reshape(SHAPE).astype(int)
    assert np.abs(seen - image).mean() < 3
    assert len(Jpeg(30, SHAPE).encode(image)) < len(codec.encode(image))


def test_pictures_of_another_size_have_a_codec_of_their_own():
    codec = Jpeg(80, SHAPE).sized((64, 48, 3))
    image = pictures(1, size=64).images[0][:, :48]
    assert len(codec.open(codec.encode(np.ascontiguousarray(image)))) == 64 * 48 * 3
    with pytest.raises(PacketError, match=r"\[32, 32, 3\] wanted"):
        Jpeg(80, SHAPE).encode(np.ascontiguousarray(image))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xd8",
        bytes(3 * 32 * 32),
        saved("PNG", pictures(1).images[0]),
        saved("JPEG", pictures(1, size=64).images[0]),
        saved("JPEG", np.zeros((32, 32), np.uint8)),
        saved("JPEG", np.zeros((1, 60000, 3), np.uint8)),
        saved("JPEG", pictures(1).images[0])[:-200],
        bytes(3 * 32 * 32 + ROOM + 1),
    ],
    ids=["empty", "start", "zeros", "png", "larger", "grey", "wide", "truncated", "too long"],
)
def test_what_is_no_such_picture_is_refused(payload):
    with pytest.raises(PacketError):
        Jpeg(80, SHAPE).open(payload)


def test_every_truncation_of_a_picture_is_refused_or_of_the_right_size():
    codec = Jpeg(80, SHAPE)
    whole = codec.encode(pictures(1).images[0])
    for end in range(0, len(whole), 7):
        try:
            assert len(codec.open(whole[:end])) == codec.packed_size
        except PacketError:
            continue
