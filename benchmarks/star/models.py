"""Llama-shaped models of random weights, as Hugging Face lays them on disk, a layer at a time.

python benchmarks/star/models.py FOLDER [--sizes 58M,1.1B]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

BEGIN, END, VOCAB = 0, 1, 32000
POSITIONS = 2048
SLAB = 1 << 22  # numbers that are drawn at a time


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama's shape; heads of 64 numbers, embedding and LM head of 32,000 tokens each."""

    layers: int
    hidden: int
    inner: int
    kv_heads: int

    @property
    def heads(self) -> int:
        """Heads of queries."""
        return self.hidden // 64

    @property
    def weights(self) -> int:
        """Numbers."""
        tables = [shape for _, one in self.files() for shape in one.values()]
        return sum(int(np.prod(shape)) for shape in tables)

    @property
    def layer(self) -> int:
        """Bytes of one layer, fp32."""
        return 4 * sum(int(np.prod(shape)) for _, shape in self._layer())

    def files(self) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
        """Name by name what lies together: the tensors' shapes."""
        yield "embedding", {"model.embed_tokens.weight": (VOCAB, self.hidden)}
        for i in range(self.layers):
            yield f"layer-{i}", {f"model.layers.{i}.{n}": shape for n, shape in self._layer()}
        ends = {"model.norm.weight": (self.hidden,), "lm_head.weight": (VOCAB, self.hidden)}
        yield "head", ends

    def _layer(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        shared = 64 * self.kv_heads
        for name, rows, columns in (
            ("self_attn.q_proj", self.hidden, self.hidden),
            ("self_attn.k_proj", shared, self.hidden),
            ("self_attn.v_proj", shared, self.hidden),
            ("self_attn.o_proj", self.hidden, self.hidden),
            ("mlp.gate_proj", self.inner, self.hidden),
            ("mlp.up_proj", self.inner, self.hidden),
            ("mlp.down_proj", self.hidden, self.inner),
        ):
            yield f"{name}.weight", (rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.weight", (self.hidden,)


SIZES = {
    "18M": Size(layers=2, hidden=64 * 4, inner=512, kv_heads=4),  # tables, mostly: for a quick run
    "58M": Size(layers=8, hidden=512, inner=1536, kv_heads=4),
    "1.1B": Size(layers=22, hidden=2048, inner=5632, kv_heads=4),  # TinyLlama's
}


def make(folder: Path, size: Size, *, seed: int = 0) -> Path:
    """Write the checkpoint in fp32, unless it is there already; returns the folder."""
    config = folder / "config.json"
    if config.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    places, files = {}, list(size.files())
    for number, (_, shapes) in enumerate(files):
        name = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        random = np.random.default_rng([seed, number])
        tensors = {key: drawn(random, shape) for key, shape in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 4 * size.weights}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _tokenizer(folder)
    config.write_text(json.dumps(_config(size), indent=1))  # last: what is whole has one
    return folder


def drawn(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A norm's gains around 1, or a matrix that keeps the size of what goes through it."""
    if len(shape) == 1:
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    found = np.empty(shape, np.float32)
    flat, scale = found.reshape(-1), np.float32(shape[1] ** -0.5)
    for start in range(0, len(flat), SLAB):
        slab = flat[start : start + SLAB]
        random.standard_normal(dtype=np.float32, out=slab)
        slab *= scale
    return found


def _config(size: Size) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "vocab_size": VOCAB,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _tokenizer(folder: Path) -> None:
    """A byte is a token; all further tokens are words that no text becomes, but that show."""
    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"Ġw{number}" for number in range(len(words), VOCAB)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(words[:2])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": words[BEGIN],
        "eos_token": words[END],
        "add_bos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(said, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", default="58M,1.1B", type=lambda text: text.split(","))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.sizes:
        size = SIZES[name]
        folder = make(options.folder / name, size, seed=options.seed)
        print(f"{folder}: {size}, {size.weights / 1e6:.1f} M weights")


if __name__ == "__main__":
    main()
