"""What is said of memory beforehand is what a process then takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from splitrt.core.shards import Shards
from splitrt.errors import ModelError
from splitrt.star.room import MB, Forecast, forecast, peak, widest
from splitrt.train import shard
from tests.conftest import ROOT

HIDDEN, INNER, LAYERS, HEADS, VOCAB, LONGEST = 1024, 2816, 8, 16, 8192, 256

RUN = """
import sys
import numpy as np
from splitrt.core.shards import Shards
from splitrt.star.ends import Ends
from splitrt.star.room import PAIR, forecast, peak
from splitrt.star.shard import Stack

folder, held, window = sys.argv[1], [0, 1], int(sys.argv[2]) or None
made = Shards.load(folder)
said = forecast(folder, made, held, hub=True, longest=256, window=window)
with Stack(folder, made, held, longest=256, window=window) as stack:
    with Ends(folder, made, window=window and PAIR) as ends:
        for start, stop in ((0, 64), (64, 128), (128, 192), (192, 254), (254, 255), (255, 256)):
            rows = ends.embed(range(start, stop))
            for layer in range(stack.layers):
                rows = rows + stack.attend(layer, rows, start).sum(0)
                rows = rows + stack.feed(layer, rows).sum(0)
            ends.say(rows[-1:])
print(said.total, peak())
"""


def large(folder: Path) -> Path:
    """A random Llama of 8 layers, 45 MB each; transformers would take longer to make it."""
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns**0.5)

    ones = np.ones(HIDDEN, np.float32)
    found = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN), "model.norm.weight": ones}
    found["lm_head.weight"] = matrix(VOCAB, HIDDEN)
    for i in range(LAYERS):
        name = f"model.layers.{i}"
        for one, rows in (("q", HIDDEN), ("k", HIDDEN // 4), ("v", HIDDEN // 4), ("o", HIDDEN)):
            found[f"{name}.self_attn.{one}_proj.weight"] = matrix(rows, HIDDEN)
        for one in ("gate", "up"):
            found[f"{name}.mlp.{one}_proj.weight"] = matrix(INNER, HIDDEN)
        found[f"{name}.mlp.down_proj.weight"] = matrix(HIDDEN, INNER)
        found |= {f"{name}.{one}_layernorm.weight": ones for one in ("input", "post_attention")}
    folder.mkdir()
    save_file(found, folder / "model.safetensors")
    said = {"architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": HIDDEN}
    said |= {"intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    said |= {"num_key_value_heads": 4, "bos_token_id": 0, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def stars(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("large")
    source = large(folder / "checkpoint")
    for weights in ("fp32", "int4"):
        shard(source, folder / weights, shares=(1, 1), weights=weights, longest=LONGEST)
    (source / "model.safetensors").unlink()
    return {weights: folder / weights for weights in ("fp32", "int4")}


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_a_process_takes_what_was_said_within_15_percent(stars, weights, window):
    words = [sys.executable, "-c", RUN, stars[weights], str(window or 0)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    said, took = map(int, done.stdout.split())
    assert abs(took - said) < 0.15 * said, f"{said / MB:.0f} MB were said, {took / MB:.0f} taken"


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_the_widest_window_is_the_largest_that_fits(stars, monkeypatch, weights):
    folder, made = stars[weights], Shards.load(stars[weights])
    monkeypatch.setattr("splitrt.star.room.resident", lambda: 80 * MB)

    def total(window: int | None) -> int:
        return forecast(folder, made, [0, 1], hub=True, window=window).total

    def found(memory: int) -> int | None:
        return widest(memory, folder, made, [0, 1], hub=True)

    assert found(total(None)) is None
    for size in (1, 5, 9):
        assert found(total(size)) == size
        assert found(total(size + 1) - 1) == size
    with pytest.raises(ModelError) as caught:
        found(total(1) - 1)
    least = int(re.search(r"window takes (\d+)", str(caught.value))[1])
    assert abs(least - total(1) / MB) <= 1


def test_a_forecast_reads_well():
    resident = Forecast(80 * MB, 20 * MB, 900 * MB, 0, 0, 0.05, 0.0, 0.0)
    assert resident.total == 1000 * MB
    assert str(resident) == (
        "1000 MB: process 80, keys and values 20, weights 900; 50.0 ms a token, "
        "all weights resident"
    )
    streamed = Forecast(80 * MB, 20 * MB, 90 * MB, 10 * MB, 450 * MB, 0.05, 0.04, 2.5)
    assert str(streamed) == (
        "200 MB: process 80, keys and values 20, weights 90, ends 10; 50.0 ms a token were all "
        "weights resident; 450 MB of them stream, the loader gives 11250 MB/s: 1.0 times slower "
        "and the disk gives 180 MB/s: 50.0 times slower"
    )


def test_the_peak_of_this_process_is_more_than_what_it_holds():
    block = np.ones(8 * MB)
    assert peak() > block.nbytes
