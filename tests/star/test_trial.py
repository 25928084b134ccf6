"""A star's directory is tried graph by graph: right logits, or which file is wrong."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from splitrt.check import check
from splitrt.errors import ModelError
from splitrt.star.trial import TRIED, trial
from splitrt.train import shard
from tests.language import FAMILIES, checkpoint, reference

SIZES = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 160}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A checkpoint sliced for three."""
    top = tmp_path_factory.mktemp("made")
    shard(checkpoint(top / "whole", **SIZES), top / "in-3", shares=(2, 1, 1), weights="fp32")
    return top / "in-3"


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "in-3"))


def signed(folder: Path, name: str, data: bytes) -> None:
    """Another file, and its hash in model.toml, as whoever makes directories could.

    Devices whose files were the same bytes have the same ones again.
    """
    old, manifest = (folder / name).read_bytes(), folder / "model.toml"
    for path in folder.glob("*/*"):
        if path.read_bytes() == old:
            path.write_bytes(data)
    hashes = [hashlib.sha256(one).hexdigest() for one in (old, data)]
    assert hashes[0] in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(*hashes))


class Counting:
    """Hashes as hashlib does, and counts the bytes."""

    total, real = 0, staticmethod(hashlib.sha256)

    def __init__(self, data: bytes = b"") -> None:
        self._hash = self.real()
        self.update(data)

    def update(self, data: bytes) -> None:
        Counting.total += len(data)
        self._hash.update(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._hash, name)


def test_a_check_hashes_every_file_once(made, monkeypatch):
    sizes = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    monkeypatch.setattr(Counting, "total", 0)
    monkeypatch.setattr(hashlib, "sha256", Counting)
    assert len(list(check(made))) > 3
    assert Counting.total == sizes


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trials_logits_are_those_of_transformers(tmp_path, family):
    source = checkpoint(tmp_path / "whole", family, **SIZES)
    star = shard(source, tmp_path / "made", shares=(1, 2), weights="fp32")
    wanted = reference(source)(torch.tensor([TRIED])).logits[0, -1].numpy()
    found = trial(tmp_path / "made", star, (0, 1))
    assert np.abs(found - wanted).max() < 1e-4


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8", "int4"])
def test_all_kinds_of_weights_are_tried_also_where_queries_are_parted(tmp_path, weights):
    source = checkpoint(tmp_path / "whole", **SIZES)
    shard(source, tmp_path / "made", shares=(1,) * 5, weights=weights)
    last = list(check(tmp_path / "made"))[-1]
    parts = "5 of 5 devices' parts of 4 layers"
    assert last == f"{parts} run on CPU in {weights}: tokens become logits of 300 words"


def test_what_is_here_is_tried_without_the_rest(copy):
    shutil.rmtree(copy / "spoke-2")
    last = list(check(copy))[-1]
    assert last.startswith("2 of 3 devices' parts") and last.endswith("logits of 300 words")
    shutil.rmtree(copy / "hub")
    assert list(check(copy))[-1].endswith("the hub would say what tokens become")


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_a_graph_of_another_part_does_not_fit(tmp_path, weights):
    made = tmp_path / "made"
    shard(checkpoint(tmp_path / "whole", **SIZES), made, shares=(3, 1), weights=weights)
    for name in ("attention-2.onnx", "attention-2.bin"):
        signed(made, f"spoke-1/{name}", (made / "hub" / name).read_bytes())
    with pytest.raises(ModelError, match=r"^spoke-1: "):
        list(check(made))


def test_a_graph_of_another_kind_does_not_fit(copy):
    for name in ("feed-0.onnx", "feed-0.bin"):
        other = copy / "hub" / name.replace("feed", "attention")
        signed(copy, f"hub/{name}", other.read_bytes())
    with pytest.raises(ModelError, match=r"feed-0\.onnx"):
        list(check(copy))


def test_weights_that_give_no_numbers_are_found(copy):
    data = (copy / "spoke-2" / "feed-3.bin").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")  # of a safetensors file: then numbers follow
    nan = np.full((len(data) - start) // 4, np.nan, np.float32).tobytes()
    signed(copy, "spoke-2/feed-3.bin", data[:start] + nan)
    with pytest.raises(ModelError, match=r"feed-3\.onnx gives numbers that are not finite\nhelp"):
        list(check(copy))


def test_turns_that_end_before_the_last_position_are_found(copy):
    tables = load_file(copy / "hub" / "turns.safetensors")
    for name, cut, told in (
        (
            "short",
            {key: one[:7].copy() for key, one in tables.items()},
            r"\[7, 8\], \[512, 8\] are",
        ),
        ("half", {"cosines": tables["cosines"]}, "has no 'sines'"),
    ):
        save_file(cut, copy.parent / name)
        signed(copy, "hub/turns.safetensors", (copy.parent / name).read_bytes())
        with pytest.raises(ModelError, match=f"^hub: .*{told}"):
            list(check(copy))


def test_what_is_no_graph_does_not_load(copy):
    signed(copy, "spoke-1/feed-1.onnx", b"no graph")
    with pytest.raises(ModelError, match=r"feed-1\.onnx does not load"):
        list(check(copy))


@pytest.mark.parametrize("name", ["embedding.safetensors", "norm.onnx", "voice-0.onnx"])
def test_the_hubs_own_files_are_tried(copy, name):
    other = {"e": "turns.safetensors", "n": "feed-0.onnx", "v": "attention-0.onnx"}[name[0]]
    signed(copy, f"hub/{name}", (copy / "hub" / other).read_bytes())
    with pytest.raises(ModelError, match=r"^hub: "):
        list(check(copy))
