"""Both halves of a language model together, the device's in ONNX Runtime, the server's in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from splitrt.cloud.layers import Layers, Part
from splitrt.core.language import Language
from splitrt.core.rows import Rows
from splitrt.edge.decoder import Decoder
from splitrt.train import divide
from tests.language import FAMILIES, VOCAB, checkpoint, reference

TOKENS = 64
CHANGES = {
    "llama": {"tie_word_embeddings": True, "head_dim": 24},
    "mistral": {"sliding_window": 20},
    "qwen2": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2},
    "qwen3": {},
}


@pytest.mark.parametrize("resume", ["hidden", "tokens"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_was_cut_says_what_the_whole_one_does(tmp_path, family, resume):
    """64 tokens, each the best one; logits within 1e-4 of transformers', in fp32."""
    source = checkpoint(tmp_path / "checkpoint", family, seed=2, **CHANGES[family])
    folder = tmp_path / "made"
    manifest = divide(source, folder, cut=2, weights="fp32", resume=[resume], codec="f32")
    decoder, layers = Decoder(folder, manifest), Layers(folder, Language.load(folder))
    cache, codec = layers.cache(resume), Rows("f32", manifest.shape.hidden)
    cache.grow(120)
    ids = np.random.default_rng(4).integers(2, VOCAB, 40).tolist()
    said, start = ids[:], 0
    while len(said) < len(ids) + TOKENS:
        fresh = said[start:]
        rows = decoder.step(fresh).rows
        crossed = codec.decode(codec.encode(rows), len(fresh))
        given = np.array(fresh) if resume == "tokens" else crossed
        layers.step([Part(cache, start, given)])
        (logits,) = layers.logits([(cache, len(said) - 1, len(said))])
        start = len(said)
        said.append(int(logits.argmax()))
    model = reference(source)
    with torch.no_grad():
        wanted = model(torch.tensor([said[:-1]])).logits[0].numpy()
    assert said[len(ids) :] == wanted[len(ids) - 1 :].argmax(1).tolist()
    assert np.abs(logits - wanted[-1]).max() <= 1e-4 * np.abs(wanted[-1]).max()
    every = np.stack(list(layers.logits([(cache, 0, start)])))
    assert np.abs(every - wanted).max() <= 1e-4 * np.abs(wanted).max()
