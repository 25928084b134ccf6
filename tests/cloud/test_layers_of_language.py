"""The server's layers beside the whole model: packed, in chunks, after rollbacks, the same."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from splitrt.cloud.layers import STEP, Layers, Part
from splitrt.core.language import LAYERS, Language
from splitrt.errors import ModelError
from tests.cloud import tongue

NEAR = 1e-4  # of the logits' spread


def texts(count: int, longest: int = 60) -> list[list[int]]:
    dice = random.Random(3)
    lengths = [dice.randint(5, longest) for _ in range(count)]
    return [[dice.randrange(tongue.VOCAB) for _ in range(length)] for length in lengths]


def logits(layers: Layers, cache, start: int, end: int) -> np.ndarray:
    return np.stack(list(layers.logits([(cache, start, end)])))


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() <= NEAR * np.abs(wanted).max()


@pytest.fixture(params=tongue.FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def pair(family, tmp_path):
    folder = tongue.made(tmp_path, family)
    return tongue.Head(tmp_path / "checkpoint"), Layers(folder, Language.load(folder))


def test_packed_steps_of_several_sessions_in_any_chunks_are_the_whole_model(pair):
    head, layers = pair
    dice = random.Random(5)
    sessions = []
    for number, ids in enumerate(texts(6)):
        rows, wanted = head.both(ids)
        resume = "tokens" if number % 3 == 0 else "hidden"
        given = np.array(ids) if resume == "tokens" else rows
        sessions.append([layers.cache(resume), 0, given, wanted])
    while waiting := [one for one in sessions if one[1] < len(one[2])]:
        parts = []
        for one in dice.sample(waiting, dice.randint(1, len(waiting))):
            cache, start, given, _ = one
            chunk = given[start : start + dice.choice([1, 1, 2, 7, 30])]
            cache.grow(start + len(chunk))
            parts.append(Part(cache, start, chunk))
            one[1] += len(chunk)
        layers.step(parts)
    for cache, _, given, wanted in sessions:
        close(logits(layers, cache, 0, len(given)), wanted)


def test_what_is_overwritten_leaves_no_trace(pair):
    head, layers = pair
    ids, other = texts(2, longest=30)
    rows, wanted = head.both(ids)
    wrong = head.rows(other)
    cache = layers.cache("hidden")
    cache.grow(100)
    layers.step([Part(cache, 0, rows[:4])])
    layers.step([Part(cache, 4, wrong)])
    layers.step([Part(cache, 4, rows[4:])])
    close(logits(layers, cache, 0, len(ids)), wanted)


def test_a_cache_that_grows_and_moves_keeps_what_it_holds(pair):
    head, layers = pair
    ids = [n * n % tongue.VOCAB for n in range(STEP + 20)]
    rows, wanted = head.both(ids)
    cache = layers.cache("hidden")
    for start in range(0, len(ids), 50):
        chunk = rows[start : start + 50]
        cache.grow(start + len(chunk))
        cache.move(torch.device("cpu"))
        layers.step([Part(cache, start, chunk)])
    assert cache.room == 2 * STEP
    close(logits(layers, cache, 0, len(ids)), wanted)


def test_bfloat16_is_near_and_half_as_large(llama_dir, head):
    ids = texts(1)[0]
    rows, wanted = head.both(ids)
    manifest = Language.load(llama_dir)
    whole, layers = (Layers(llama_dir, manifest, dtype=dtype) for dtype in (None, torch.bfloat16))
    cache = layers.cache("hidden")
    cache.grow(len(ids))
    layers.step([Part(cache, 0, rows)])
    found = logits(layers, cache, 0, len(ids))
    assert np.abs(found - wanted).mean() < 0.03 * np.abs(wanted).max()
    assert layers.bytes_of("hidden") * 2 == whole.bytes_of("hidden") < whole.bytes_of("tokens")


def test_a_server_without_tokens_holds_the_layers_from_the_cut_on_only(tmp_path):
    folder = tongue.made(tmp_path, resume=("hidden",))
    layers = Layers(folder, Language.load(folder))
    assert sorted(layers._layers) == [2, 3] and layers._embedding is None


@pytest.mark.parametrize("wrong", ["lm_head.weight", "model.layers.3.mlp.up_proj.weight"])
def test_weights_that_lack_one_or_have_another_shape_are_refused(tmp_path, wrong):
    folder = tongue.made(tmp_path)
    text, state = (folder / "model.toml").read_text(), load_file(folder / LAYERS)
    before = Language.load(folder).files[LAYERS]
    for change in ({}, {wrong: state[wrong][:-1].clone()}):
        rest = {name: tensor for name, tensor in state.items() if name != wrong}
        save_file(rest | change, folder / LAYERS)
        after = hashlib.sha256((folder / LAYERS).read_bytes()).hexdigest()
        (folder / "model.toml").write_text(text.replace(before, after))
        with pytest.raises(ModelError, match="help: split it again"):
            Layers(folder, Language.load(folder))


def test_weights_that_were_changed_after_the_split_are_refused(tmp_path):
    folder = tongue.made(tmp_path)
    raw = bytearray((folder / LAYERS).read_bytes())
    raw[-1] ^= 1
    (folder / LAYERS).write_bytes(raw)
    with pytest.raises(ModelError, match="changed after export"):
        Layers(folder, Language.load(folder))
