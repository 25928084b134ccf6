"""The model directory: what is refused before anything of it is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from splitrt.core.manifest import Manifest, prove, verified
from splitrt.errors import ModelError


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "copy"))


def edited(folder: Path, old: str, new: str) -> None:
    text = (folder / "model.toml").read_text()
    assert old in text
    (folder / "model.toml").write_text(text.replace(old, new, 1))


def test_a_directory_that_was_just_written_is_proved(model_dir: Path):
    assert set(prove(model_dir).codecs) == {"f32", "f16", "q8", "q4", "jpeg"}


def test_a_changed_byte_is_found(copy: Path):
    raw = bytearray((copy / "head.onnx").read_bytes())
    raw[100] ^= 1
    (copy / "head.onnx").write_bytes(raw)
    with pytest.raises(ModelError, match=r"head\.onnx has sha256"):
        prove(copy)


def test_a_missing_file_an_extra_file_and_a_symlink_are_found(copy: Path):
    (copy / "extra.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"extra\.bin"):
        prove(copy)
    (copy / "extra.bin").unlink()
    (copy / "tables.safetensors").rename(copy.parent / "t")
    with pytest.raises(ModelError, match="missing"):
        prove(copy)
    (copy / "tables.safetensors").symlink_to(copy.parent / "t")
    with pytest.raises(ModelError, match="plain file"):
        verified(copy, Manifest.load(copy), "tables.safetensors")


@pytest.mark.parametrize("name", ["../head.onnx", "/etc/passwd", "a/b", ".hidden", "x\\n"])
def test_file_names_that_lead_elsewhere_are_refused(copy: Path, name: str):
    edited(copy, '"head.onnx" =', f'"{name}" =')
    with pytest.raises(ModelError):
        Manifest.load(copy)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("format = 1", "format = 2"),
        ("format = 1", "format = 1\nsurprise = 1"),
        ('default_plan = "q4"', 'default_plan = "q5"'),
        ("bits = 4", "bits = 5"),
        ("shape = [", "shape = [0, "),
        ("shape = [", "shape = [1000000000, "),
        ("format = 1", "format = ["),
        ('head = "head.onnx"', 'head = "neck.onnx"'),
        ('width = "full"', 'width = "half"'),
        ('name = "full"', 'name = "half"'),
        ('coder = "ans"', 'coder = "tar"'),
        ('"tables.safetensors" =', '"other.safetensors" ='),
        ('output = "logits"', 'output = "boxes"'),
        ('"tail.onnx" =', '"other.onnx" ='),
    ],
)
def test_a_wrong_manifest_is_a_model_error(copy: Path, old: str, new: str):
    edited(copy, old, new)
    with pytest.raises(ModelError):
        Manifest.load(copy)


def test_a_manifest_that_is_a_link_is_no_proof(copy: Path):
    (copy / "model.toml").rename(copy.parent / "model.toml")
    (copy / "model.toml").symlink_to(copy.parent / "model.toml")
    with pytest.raises(ModelError, match="is a link"):
        prove(copy)


def test_no_manifest_is_said_with_a_way_out(tmp_path: Path):
    with pytest.raises(ModelError, match="help:"):
        Manifest.load(tmp_path)


def test_comments_are_welcome_but_change_the_digest(copy: Path):
    before = Manifest.load(copy).digest
    with (copy / "model.toml").open("a") as file:
        file.write("# seen by both\n")
    assert Manifest.load(copy).digest != before


BINS = """
edges = [0.5, 0.8]
shares = [0.25, 0.25, 0.5]
bins = [0.4, 0.6, 0.9]
"""


def binned(folder: Path, bins: str = BINS, plan: str = "bins = [0.5, 0.6, 0.9]") -> Manifest:
    """The model with those bins of its exit, and of the plan q4."""
    edited(folder, 'output = "logits"\n', f'output = "logits"\n{bins.strip()}\n')
    edited(folder, 'name = "q4"\n', f'name = "q4"\n{plan}\n')
    return Manifest.load(folder)


def test_accuracy_by_the_exits_confidence_may_be_there_or_not(copy: Path):
    assert not any(plan.bins for plan in Manifest.load(copy).plans)  # of too few frames
    found = binned(copy)
    assert found.exit.bins == [0.4, 0.6, 0.9] and found.plan("q4").bins == [0.5, 0.6, 0.9]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("0.5, 0.8]", "0.8, 0.5]", "ascend"),
        ("0.5, 0.8]", "0.5, 0.5]", "ascend"),
        ("0.5, 0.8]", "0.5, 1.5]", "less than or equal"),
        ("[0.5, 0.8]", "[0.5]", "as many bins as shares"),
        ("[0.25, 0.25, 0.5]", "[0.25, 0.75]", "as many bins as shares"),
        ("0.25, 0.25, 0.5]", "0.25, 0.25, 0.4]", "sum to"),
        ("0.4, 0.6, 0.9]", "0.4, 0.6, nan]", "less than or equal"),
        ("bins = [0.4, 0.6, 0.9]", "", "as many bins as shares"),
    ],
)
def test_bins_that_do_not_agree_are_a_model_error(copy: Path, old: str, new: str, words: str):
    assert old in BINS
    with pytest.raises(ModelError, match=words):
        binned(copy, BINS.replace(old, new))


def test_a_plan_has_as_many_bins_as_the_exit_that_stands_in_for_it(copy: Path):
    with pytest.raises(ModelError, match="has 2 bins, its exit 3"):
        binned(copy, plan="bins = [0.5, 0.6]")


def test_a_plan_of_the_edge_has_no_bins(copy: Path):
    edited(copy, 'name = "local"\n', 'name = "local"\nbins = [0.5]\n')
    with pytest.raises(ModelError, match="no exit stands in"):
        Manifest.load(copy)
