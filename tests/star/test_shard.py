"""What a device computes: the same sum however shards lie, resident or through a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitrt.core.shards import Shards
from splitrt.errors import ModelError, PacketError
from splitrt.star.block import Shelf
from splitrt.star.ends import Ends
from splitrt.star.shard import Stack
from splitrt.train import shard
from tests.language import VOCAB, checkpoint

SHAPE = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 160}
SHAPE |= {"num_hidden_layers": 3}
TEXT = np.random.default_rng(7).integers(2, VOCAB, 40)
WEIGHTS = ("fp32", "fp16", "int8", "int4")
CUTS = ((0, 24), (24, 25), (25, 29), (29, 30), (27, 40))  # steps; the last one goes back


@pytest.fixture(scope="module")
def stars(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Shards]]:
    """A star of three devices in each kind of weights; queries and keys of fp16 are normed."""
    folder, found = tmp_path_factory.mktemp("stars"), {}
    for weights in WEIGHTS:
        family = "qwen3" if weights == "fp16" else "llama"
        source = checkpoint(folder / f"of-{weights}", family, **SHAPE)
        found[weights] = (
            folder / weights,
            shard(source, folder / weights, shares=(2, 1, 1), weights=weights),
        )
    return found


def spoken(stacks: list[Stack], ends: Ends) -> list[np.ndarray]:
    """Logits of all rows of each step, one stack's parts added to the other's."""
    found = []
    for start, stop in CUTS:
        rows = ends.embed(TEXT[start:stop])
        for layer in range(stacks[0].layers):
            rows = rows + sum(stack.attend(layer, rows, start).sum(0) for stack in stacks)
            rows = rows + sum(stack.feed(layer, rows).sum(0) for stack in stacks)
        found.append(ends.say(rows))
    return found


def alone(folder: Path, made: Shards, held: list[int], **how: Any) -> list[np.ndarray]:
    """One device holds those shards, and the hub's ends."""
    ends = {name: how[name] for name in ("window", "packed", "threads") if name in how}
    with Stack(folder, made, held, **how) as stack, Ends(folder, made, **ends) as both:
        return spoken([stack], both)


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_one_device_with_all_shards_adds_what_separate_ones_do(stars, weights):
    folder, made = stars[weights]
    rows = np.random.default_rng(0).standard_normal((5, made.shape.hidden), dtype=np.float32)
    with Stack(folder, made, [0, 1, 2]) as whole:
        parts = [Stack(folder, made, [i]) for i in range(3)]
        for layer in range(whole.layers):
            for n in (0, 3):
                found = [one.attend(layer, rows, n) for one in parts]
                assert np.array_equal(whole.attend(layer, rows, n), np.concatenate(found))
            found = [one.feed(layer, rows) for one in parts]
            assert np.array_equal(whole.feed(layer, rows), np.concatenate(found))


@pytest.mark.parametrize("window", [1, 2, 4, 6])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_window_changes_no_bit(stars, weights, window):
    """But that fp32 and fp16 weights are not packed for it."""
    folder, made = stars[weights]
    wanted = alone(folder, made, [0, 1, 2], packed=False)
    assert same(alone(folder, made, [0, 1, 2], window=window), wanted)
    if weights in ("int8", "int4"):
        assert same(alone(folder, made, [0, 1, 2]), wanted)


@pytest.mark.parametrize("weights", ["fp32", "fp16"])
def test_packed_weights_differ_in_the_last_digits_alone(stars, weights):
    folder, made = stars[weights]
    for a, b in zip(
        alone(folder, made, [0, 1, 2]),
        alone(folder, made, [0, 1, 2], packed=False),
        strict=True,
    ):
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()


def test_two_threads_answer_as_one(stars):
    folder, made = stars["fp32"]
    found, wanted = (alone(folder, made, [0, 1, 2], threads=count) for count in (2, 1))
    assert all(
        np.abs(a - b).max() < 1e-5 * np.abs(b).max() for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("window", [None, 3])
def test_what_is_kept_is_not_loaded_again(stars, monkeypatch, window):
    folder, made = stars["int4"]
    loaded, load = [], Shelf.load

    def counted(shelf: Shelf, graph: str, *more: Any) -> Any:
        loaded.append(f"{shelf.folder.name}/{graph}")
        return load(shelf, graph, *more)

    monkeypatch.setattr(Shelf, "load", counted)
    rows = np.random.default_rng(0).standard_normal((2, made.shape.hidden), dtype=np.float32)
    with Stack(folder, made, [1], window=window) as stack:
        lone = stack.attend(0, rows, 0)
        stack.hold([1, 2])
        with Stack(folder, made, [2]) as other:
            both = np.concatenate([lone, other.attend(0, rows, 0)])
            assert np.array_equal(stack.attend(0, rows, 0), both)
        stack.hold([1])
        assert np.array_equal(stack.attend(0, rows, 0), lone)
    own = [name for name in loaded if name.startswith("spoke-1/")]
    assert window is not None or len(own) == len(set(own)) == 2 * made.shape.layers


@pytest.mark.parametrize("window", [None, 2])
def test_what_does_not_load_leaves_nothing_held_and_no_part_of_a_sum(copied, window):
    folder, made = copied
    rows = np.zeros((1, made.shape.hidden), np.float32)
    (folder / "spoke-2" / "feed-0.bin").unlink()
    with Stack(folder, made, [1], window=window) as stack:
        with pytest.raises(ModelError, match=r"feed-0\.bin is missing"):
            stack.hold([1, 2])
        with pytest.raises(ModelError, match="no shard of"):
            stack.feed(0, rows)
        stack.hold([1])
        assert stack.feed(0, rows).shape == (1, *rows.shape)
    with pytest.raises(ModelError, match="no shard of"):
        stack.attend(0, rows, 0)


def test_keys_and_values_from_a_position_on_are_replaced(stars):
    folder, made = stars["fp32"]
    rows = np.random.default_rng(0).standard_normal((9, made.shape.hidden), dtype=np.float32)
    with Stack(folder, made, [0]) as stack:
        wanted = stack.attend(1, rows, 0)[:, 5:]
        stack.attend(1, rows[::-1], 3)
        stack.attend(1, rows[:5], 0)
        assert np.abs(stack.attend(1, rows[5:], 5) - wanted).max() < 1e-5


def test_what_is_given_stays_as_it_is_when_the_next_is_asked_for(stars):
    folder, made = stars["fp32"]
    rows = np.random.default_rng(0).standard_normal((1, made.shape.hidden), dtype=np.float32)
    with Stack(folder, made, [0]) as stack:
        first = stack.feed(0, rows)
        kept = first.copy()
        stack.feed(1, 2 * rows)
        assert np.array_equal(first, kept) and first.dtype == np.float32


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"held": []}, "shards none of 3"),
        ({"held": [0, 0]}, "shards 0, 0 of 3"),
        ({"held": [3]}, "shards 3 of 3"),
        ({"window": 0}, "a window of 0 blocks"),
        ({"longest": 0}, "room for 0 positions"),
        ({"longest": 4097}, "room for 4097 positions"),
    ],
)
def test_what_cannot_be_held_is_said(stars, how, told):
    with pytest.raises(ModelError, match=told):
        Stack(*stars["int4"], **{"held": [1]} | how)


def test_a_text_longer_than_the_room_and_tokens_that_are_none_are_refused(stars):
    folder, made = stars["fp32"]
    with Stack(folder, made, [1], longest=8) as stack, Ends(folder, made) as ends:
        rows = ends.embed(range(2, 6))
        stack.attend(0, rows, 4)
        for n in (5, -1):
            with pytest.raises(PacketError, match="room is for 8"):
                stack.attend(0, rows, n)
        for ids in ([], [VOCAB], [-1], [0.5]):
            with pytest.raises(PacketError, match="help:"):
                ends.embed(ids)


@pytest.fixture
def copied(stars, tmp_path) -> tuple[Path, Shards]:
    """A star that a test may spoil."""
    folder, made = stars["fp32"]
    for path in folder.rglob("*"):
        if path.is_file():
            to = tmp_path / path.relative_to(folder)
            to.parent.mkdir(exist_ok=True)
            to.write_bytes(path.read_bytes())
    return tmp_path, made


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("name", ["feed-2.bin", "turns.safetensors", "attention-1.bin"])
def test_a_changed_file_is_refused_before_anything_runs(copied, name, window):
    folder, made = copied
    path = folder / "spoke-1" / name
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(ModelError, match="was changed after export"):
        Stack(folder, made, [1], window=window)


def test_a_file_that_vanishes_is_the_callers_error_and_the_loader_goes_on(copied):
    folder, made = copied
    rows = np.zeros((1, made.shape.hidden), np.float32)
    with Stack(folder, made, [1], window=1) as stack:
        path = folder / "spoke-1" / "feed-1.bin"
        whole = path.read_bytes()
        path.unlink()
        stack.feed(0, rows)
        with pytest.raises(ModelError, match=r"feed-1\.onnx does not fit"):
            stack.feed(1, rows)
        path.write_bytes(whole)
        again = stack.feed(2, rows)
        assert again.shape == (1, *rows.shape)
        assert stack.loading > 0


def test_tiles_of_the_head_are_the_head(tmp_path, monkeypatch):
    """Vocabulary 300 in tiles of 32 rows, the last one of 12."""
    monkeypatch.setattr("splitrt.core.shards.TILE", 32 * 64 * 4)
    source = checkpoint(tmp_path / "checkpoint", **SHAPE)
    made = shard(source, tmp_path / "made", shares=(1,), weights="fp32")
    assert "voice-9.onnx" in made.devices[0].files and "voice-10.onnx" not in made.devices[0].files
    rows = np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
    with Ends(tmp_path / "made", made, packed=False) as ends:
        wanted = ends.say(rows)
    with Ends(tmp_path / "made", made, window=2) as ends:
        assert np.array_equal(ends.say(rows), wanted) and wanted.shape == (3, VOCAB)
    monkeypatch.undo()
    whole = shard(source, tmp_path / "whole", shares=(1,), weights="fp32")
    assert "voice-1.onnx" not in whole.devices[0].files
    with Ends(tmp_path / "whole", whole) as ends:
        assert np.abs(ends.say(rows) - wanted).max() < 1e-4
