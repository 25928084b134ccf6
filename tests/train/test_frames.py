"""Pictures from disk: the forms they come in."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from splitrt.errors import SplitrtError
from splitrt.train import read
from tests.conftest import SHARED, pictures


def test_class_folders_give_labels(tmp_path):
    for label, name in enumerate(["ant", "bee"]):
        (tmp_path / name).mkdir()
        for i in range(2):
            colour = np.full((8, 8, 3), 50 * label + i, np.uint8)
            Image.fromarray(colour).save(tmp_path / name / f"{i}.png")
    frames = read(tmp_path, height=8, width=8)
    assert frames.labels.tolist() == [0, 0, 1, 1]
    assert frames.images[:, 0, 0, 0].tolist() == [0, 1, 50, 51]


def test_a_flat_folder_has_no_labels_and_is_resized(tmp_path):
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / "a.png")
    frames = read(tmp_path, height=32, width=16)
    assert frames.labels is None and frames.images.shape == (1, 32, 16, 3)


def test_both_kinds_of_npz(tmp_path):
    frames = pictures(5)
    np.savez(tmp_path / "plain.npz", images=frames.images, labels=frames.labels)
    assert (read(tmp_path / "plain.npz", height=32, width=32).images == frames.images).all()
    files = []
    for image in frames.images:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=95)
        files.append(out.getvalue())
    np.savez(
        tmp_path / "jpeg.npz",
        prefix=np.frombuffer(files[0][:2], np.uint8),
        body=np.frombuffer(b"".join(file[2:] for file in files), np.uint8),
        offset=np.cumsum([0, *(len(file) - 2 for file in files)]),
        labels=frames.labels,
    )
    again = read(tmp_path / "jpeg.npz", height=32, width=32, limit=3)
    assert again.labels.tolist() == frames.labels[[0, 2, 4]].tolist()
    assert np.abs(again.images.astype(int) - frames.images[[0, 2, 4]]).mean() < 20


@pytest.mark.parametrize("wrong", ["nothing", "empty", "strange.npz"])
def test_what_cannot_be_read_is_said(tmp_path, wrong):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "strange.npz", x=np.zeros(3))
    with pytest.raises(SplitrtError, match="help:"):
        read(tmp_path / wrong, height=8, width=8)


def test_a_folder_of_npz_files_names_them():
    if not SHARED.exists():
        pytest.skip("../shared/data is absent")
    with pytest.raises(SplitrtError, match=r"jpeg_test\.npz"):
        read(SHARED / "cifar10", height=32, width=32)
