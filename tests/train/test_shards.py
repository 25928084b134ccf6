"""A checkpoint sliced for several devices: their parts, added, are what transformers computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from splitrt.check import check
from splitrt.core import shards
from splitrt.core.language import Language, Shape
from splitrt.core.shards import Portion, Shards, apportioned, portions
from splitrt.edge.decoder import Decoder
from splitrt.errors import ModelError
from splitrt.star.ends import Ends
from splitrt.star.shard import Stack
from splitrt.train import divide, shard
from splitrt.train.hf import Checkpoint
from tests.conftest import ROOT
from tests.language import FAMILIES, TEMPLATE, VOCAB, checkpoint, reference

BIASED = {"attention_bias": True, "mlp_bias": True}
FOUR = {"num_key_value_heads": 4}
MANY = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 160}
PARTED = {
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_size": 96,
    "intermediate_size": 192,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "biased-tied-head-20": ("llama", FOUR | BIASED | {"head_dim": 20, "tie_word_embeddings": True}),
    "groups-of-two": ("llama", MANY),
    "last-columns-short": ("qwen2", MANY | {"intermediate_size": 150}),
    "window-7": ("mistral", MANY | {"sliding_window": 7}),
    "biased-normed-head-12": ("qwen3", FOUR | {"attention_bias": True, "head_dim": 12}),
}
TEXT = np.random.default_rng(3).integers(2, VOCAB, 60).tolist()
SHARES = ((1,), (1, 1), (1, 1, 1), (2, 1), (1, 1, 1, 1), (3, 1, 2))


class Star:
    """All devices of a star in one process; `say` gives the logits of the last token."""

    def __init__(self, folder: Path, manifest: Shards, **how: Any) -> None:
        self.manifest, self.n = manifest, 0
        self.ends = Ends(folder, manifest, **how)
        self.devices = [Stack(folder, manifest, [i], **how) for i in range(len(manifest.devices))]

    def rows(self, ids: list[int], layers: int | None = None) -> np.ndarray:
        """Every device sees the rows alone, and adds what all devices give, in their order."""
        rows = self.ends.embed(ids)
        for i in range(layers or self.manifest.shape.layers):
            rows = rows + added([device.attend(i, rows, self.n)[0] for device in self.devices])
            rows = rows + added([device.feed(i, rows)[0] for device in self.devices])
        self.n += len(ids)
        return rows

    def say(self, ids: list[int]) -> np.ndarray:
        return self.ends.say(self.rows(ids)[-1:])[0]


def added(parts: list[np.ndarray]) -> np.ndarray:
    """In the devices' order."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def far(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@torch.no_grad()
def proved(source: Path, to: Path, shares: tuple[float, ...]) -> None:
    """A prompt, single tokens and a few at once: transformers' logits, position by position."""
    wanted = reference(source)(torch.tensor([TEXT])).logits[0].numpy()
    star = Star(to, shard(source, to, shares=shares, weights="fp32"))
    for start, stop in ((0, 40), (40, 41), (41, 42), (42, 50), (50, 51), (51, 60)):
        found = star.say(TEXT[start:stop])
        assert np.abs(found - wanted[stop - 1]).max() < 1e-4
        assert found.argmax() == wanted[stop - 1].argmax()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family: 4 heads of keys and values, 5 times 32 feed-forward columns."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: checkpoint(folder / family, family, **MANY) for family in FAMILIES}


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_sum_of_all_parts_is_what_transformers_computes(sources, tmp_path, family, shares):
    proved(sources[family], tmp_path / "made", shares)


@pytest.mark.parametrize("case", CASES)
def test_and_so_it_is_with_biases_windows_and_odd_heads(tmp_path, case):
    family, changes = CASES[case]
    source = checkpoint(tmp_path / "checkpoint", family, **changes)
    proved(source, tmp_path / "made", (2, 1, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_that_share_keys_may_be_on_several_devices(tmp_path, family):
    """Six heads, of which three each share keys: two devices hold both, one holds one twice."""
    source = checkpoint(tmp_path / "checkpoint", family, **PARTED)
    proved(source, tmp_path / "four", (1, 1, 1, 1))
    held = [one.keys for one in Shards.load(tmp_path / "four").devices]
    assert held == [(0,), (0, 1), (1,), (1,)]
    proved(source, tmp_path / "two", (5, 1))
    assert [one.keys for one in Shards.load(tmp_path / "two").devices] == [(0, 0, 0, 1, 1), (1,)]


def test_many_devices_sum_to_what_one_computes(sources, tmp_path):
    """Up to the order in which floats are added."""
    rows = {}
    for shares in SHARES:
        to = tmp_path / str(len(rows))
        rows[shares] = Star(to, shard(sources["llama"], to, shares=shares, weights="fp32"))
    alone = rows[1,].rows(TEXT)
    for shares in SHARES[1:]:
        assert far(rows[shares].rows(TEXT), alone) < 1e-5


@pytest.mark.parametrize("weights", ["fp16", "int8", "int4"])
def test_slices_hold_the_same_rounded_weights_as_the_whole(tmp_path, weights):
    """Blocks of 32 do not straddle slices, so that codes and scales are those of one device.

    Sums differ in float order alone, but the kernel's rounding of activations to int8 turns that
    into whole steps here and there: 1 % of the largest row was seen after three layers.
    """
    source = checkpoint(tmp_path / "checkpoint", **MANY, head_dim=32, hidden_size=256)
    made = divide(source, tmp_path / "one", cut=3, weights=weights)
    wanted = Decoder(tmp_path / "one", made).step(TEXT).rows
    star = shard(source, tmp_path / "star", shares=(2, 1, 1), weights=weights)
    whole = load_file(tmp_path / "one" / "layers-0-3.bin")
    for name, part in (("attention", "attention.out"), ("feed", "feed.down")):
        files = [tmp_path / "star" / one.folder / f"{name}-0.bin" for one in star.devices]
        kind, axis = ("weight", 0) if weights == "fp16" else ("codes", 1)
        slices = [load_file(path)[f"{part}.{kind}"] for path in files]
        assert np.array_equal(np.concatenate(slices, axis), whole[f"0.{part}.{kind}"])
    found = Star(tmp_path / "star", star).rows(TEXT, layers=3)
    assert far(found, wanted) < (1e-5 if weights == "fp16" else 0.02)


def test_only_the_hub_adds_the_biases_of_sums_and_holds_the_words(tmp_path):
    source = checkpoint(tmp_path / "checkpoint", **FOUR, **BIASED)
    made = shard(source, tmp_path / "made", shares=(1, 1))
    hub, spoke = (set(one.files) for one in made.devices)
    assert hub - spoke >= {"embedding.safetensors", "norm.onnx", "voice-0.onnx", "tokenizer.json"}
    assert spoke <= hub and not any("voice" in name or "token" in name for name in spoke)
    for name in ("attention-0", "feed-0"):
        known = [
            "out.bias" in text or "down.bias" in text
            for text in (
                (tmp_path / "made" / one.folder / f"{name}.onnx").read_bytes().decode("latin-1")
                for one in made.devices
            )
        ]
        assert known == [True, False]
    assert (tmp_path / "made" / "hub" / "chat.jinja").read_text() == TEMPLATE


def test_the_directory_says_what_it_is(sources, tmp_path):
    made = shard(sources["llama"], tmp_path / "made", shares=(2, 1, 1), longest=99)
    assert made == Shards.load(tmp_path / "made") and shards.is_star(tmp_path / "made")
    assert (made.weights, made.longest, made.begins, made.stops) == ("int4", 99, 0, (1,))
    assert [one.folder for one in made.devices] == ["hub", "spoke-1", "spoke-2"]
    assert [one.queries for one in made.devices] == [(0, 4), (4, 6), (6, 8)]
    assert [one.keys for one in made.devices] == [(0, 1), (2,), (3,)]
    assert [one.columns for one in made.devices] == [(0, 96), (96, 128), (128, 160)]
    assert [one.share for one in made.devices] == [2, 1, 1]
    for one in made.devices:
        assert {path.name for path in (tmp_path / "made" / one.folder).iterdir()} == set(one.files)
    with pytest.raises(ModelError, match="it is a star's"):
        Language.load(tmp_path / "made")
    divide(sources["llama"], tmp_path / "other", cut=1)
    with pytest.raises(ModelError, match="holds no star"):
        Shards.load(tmp_path / "other")


def test_the_same_checkpoint_gives_the_same_bytes(sources, tmp_path):
    made = [shard(sources["qwen3"], tmp_path / one / "made", shares=(1, 1)) for one in "ab"]
    assert made[0].digest == made[1].digest


def test_every_file_is_proved_and_a_device_needs_but_its_own(sources, tmp_path):
    to = tmp_path / "made"
    shard(sources["mistral"], to, shares=(1, 1))
    told = list(check(to))
    assert [line.split(":")[0] for line in told][1:3] == ["hub", "spoke-1"]
    assert told[3:] == [
        "2 of 2 devices' parts of 4 layers run on CPU in int4: tokens become logits of 300 words"
    ]
    for path in (to / "hub").iterdir():
        path.unlink()
    (to / "hub").rmdir()
    told = list(check(to))
    assert "hub is not here" in told[1]
    assert "1 of 2 devices' parts of 4 layers run on CPU in int4: the hub" in told[3]
    (to / "spoke-1" / "feed-2.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="was changed after export"):
        list(check(to))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ('folder = "spoke-1"|folder = "../hub"', "devices are not hub, spoke-1"),
        ("    4,\n    8,\n|    5,\n    8,\n", "queries of the devices are not all heads"),
        ("    2,\n    3,\n|    1,\n    3,\n", "keys of a device are not those"),
        ("    96,\n    160,\n|    64,\n    160,\n", "columns of the devices are not"),
        ('"feed-3.onnx"|"feed-9.onnx"', "hub has no feed-3.onnx"),
        ('"feed-3.onnx"|"../feed-3.onnx"', "a file's name is not plain"),
        ('kind = "star"|kind = "star"\nsecret = 1', "secret: Extra inputs"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(sources, tmp_path, change, told):
    shard(sources["llama"], tmp_path / "made", shares=(1, 1))
    path, (old, new) = tmp_path / "made" / "model.toml", change.split("|")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ModelError) as caught:
        Shards.load(tmp_path / "made")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shares": (1,) * 6}, "help: --star 5 works"),
        ({"shares": (9, 1)}, "one would get none of 8 heads, or of 5 times 32"),
        ({"shares": (1, 9, 9)}, "help: --star 2 works"),
        ({"shares": (4, 9, 1)}, "help: --star 2 --shares 9,4 works"),
        ({"shares": ()}, "1 to 64 numbers above 0"),
        ({"shares": (1, 0)}, "shares 1, 0"),
        ({"shares": (1, float("nan"))}, "shares 1, nan"),
        ({"shares": (1,), "weights": "int3"}, "no weights 'int3'"),
        ({"shares": (1,), "longest": 513}, "help: 2 to 512 were trained"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(sources, tmp_path, options, told):
    with pytest.raises(ModelError) as caught:
        shard(sources["llama"], tmp_path / "made", **options)
    assert told in str(caught.value) and list(tmp_path.iterdir()) == []


@given(
    total=st.integers(1, 500),
    shares=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9),
)
@settings(deadline=None)
def test_shares_are_kept_to_less_than_one(total, shares):
    found = apportioned(total, shares)
    assert sum(found) == total and min(found) >= 0
    for part, share in zip(found, shares, strict=True):
        assert abs(part - total * share / sum(shares)) < 1 + 1e-6


@given(
    kv_heads=st.integers(1, 32),
    inner=st.integers(1, 5000),
    shares=st.lists(st.floats(0.1, 10), min_size=1, max_size=9),
)
@settings(deadline=None)
def test_a_division_is_whole_or_says_what_would_be(sources, kv_heads, inner, shares):
    shape = Checkpoint(sources["llama"]).shape
    shape = Shape.model_validate(
        shape.model_dump() | {"heads": 2 * kv_heads, "kv_heads": kv_heads, "inner": inner}
    )
    try:
        found = portions(shape, shares)
    except ModelError as error:
        works = int(str(error).split("--star ")[1].split()[0])
        assert works < len(shares)
        found = portions(shape, sorted(shares, reverse=True)[:works])
    ends = [(0, 0), *((one.queries[1], one.columns[1]) for one in found)]
    assert ends[-1] == (2 * kv_heads, inner)
    for one, end in zip(found, ends, strict=False):
        assert (one.queries[0], one.columns[0]) == end and one.asking > 0 and one.inner > 0
        assert one.asking % one.heads == 0
        assert {query // 2 for query in range(*one.queries)} == set(one.keys)
        assert one.columns[0] % 32 == 0
    assert [one.leads for one in found] == [True, *[False] * (len(found) - 1)]
    assert found != [Portion.whole(shape)] or len(found) == 1


PEAK = (
    "import sys; from splitrt.train import shard\n"
    "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    "small, big, to, weights = sys.argv[1:]\n"
    "shard(small, to + '-small', shares=(1,), weights=weights); before = peak()\n"
    "shard(big, to + '-big', shares=(2, 1), weights=weights)\n"
    "print(peak() - before)"
)


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_slicing_takes_memory_of_two_layers_not_of_the_model(tmp_path, weights):
    """Ten layers of 13 MB and two tables of 176 MB; a process of its own reads the peak.

    Tables go through memory in slabs of 16 MB, a few of them while they are turned. The
    program's own memory is what a small model takes; mapped pages of the checkpoint count.
    """
    size = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 10, "head_dim": 64}
    big = checkpoint(tmp_path / "big", **size, vocab_size=90000)
    small = checkpoint(tmp_path / "small")
    words = [sys.executable, "-c", PEAK, small, big, tmp_path / "made", weights]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    saved = load_file(big / "model.safetensors")
    layer = sum(array.nbytes for name, array in saved.items() if "layers.0." in name) / 2**20
    table = saved["lm_head.weight"].nbytes / 2**20
    more = int(done.stdout) / 1024
    assert 13 < layer < 14 and 175 < table < 177
    assert more < 2 * layer + 96 < table
