"""A Hugging Face checkpoint, read without transformers: its shape, and its tensors one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from splitrt.core.language import TOKENIZER, Rope, Shape
from splitrt.core.manifest import first
from splitrt.errors import ModelError
from splitrt.train.tensors import Lazy

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
FLOATS = {"F32": torch.int32, "F16": torch.int16, "BF16": torch.int16}  # and a view of their bytes
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
# What transformers assumes where config.json says nothing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "qwen2": {"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {
        "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28,
        "head_dim": 128,
    },
}  # fmt: skip


class Checkpoint:
    """A folder with config.json, safetensors and tokenizer.json of one of FAMILIES.

    shape: of the model.  positions: that it was trained for.  begins, stops: tokens that begin a
    text and end an answer.  ModelError if anything is missing, misshapen or of another kind.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        said = _json(self.folder / "config.json")
        self.family = _family(said)
        self.config = DEFAULTS[self.family] | said
        self.shape = _shape(self.config, self.family)
        self.positions = _number(self.config, "max_position_embeddings")
        self.tied = bool(self.config.get("tie_word_embeddings"))
        self._words = _json(self.folder / "tokenizer_config.json", needed=False)
        self._files = _files(self.folder)
        self._kinds = {name: _kind(path, name) for name, path in self._files.items()}
        self._proved()
        if not (self.folder / TOKENIZER).is_file():
            raise ModelError(
                f"{self.folder} has no {TOKENIZER}\n"
                "help: AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one"
            )

    def tensor(self, name: str, *places: slice) -> np.ndarray:
        """The float32 tensor of that name; the LM head of a tied model is its embedding.

        places: of its rows, or of its rows and columns; no others are read.
        """
        return self._read(name, places).float().numpy()

    def lazy(self, name: str) -> Lazy:
        """The same as it lies there, in its own dtype."""
        dtype, shape = self._kinds[self._own(name)]
        return Lazy(dtype, shape, lambda: self._read(name).view(FLOATS[dtype]).numpy())

    @property
    def begins(self) -> int | None:
        """The token that a text begins with, if its tokenizer puts one there."""
        token = self.config.get("bos_token_id")
        if self._words.get("add_bos_token") is False or not isinstance(token, int):
            return None
        return self._within([token])[0]

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer: those of config.json and of generation_config.json."""
        found: list[int] = []
        generation = _json(self.folder / "generation_config.json", needed=False)
        for said in (self.config.get("eos_token_id"), generation.get("eos_token_id")):
            found += [] if said is None else said if isinstance(said, list) else [said]
        return self._within(sorted(set(found)))

    @property
    def chat(self) -> str | None:
        """The chat template, Jinja: a file of its own, or the tokenizer's default."""
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        said = self._words.get("chat_template")
        if isinstance(said, list):
            named = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}
            said = named.get("default")
        return said if isinstance(said, str) else None

    def _own(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.tied else name

    def _read(self, name: str, places: tuple[slice, ...] = ()) -> torch.Tensor:
        """Opened anew each time: what a closed file had mapped is free again."""
        own = self._own(name)
        with safe_open(self._files[own], "pt") as file:
            return file.get_slice(own)[places] if places else file.get_tensor(own)

    def _within(self, tokens: list[int]) -> tuple[int, ...]:
        for token in tokens:
            if not isinstance(token, int) or not 0 <= token < self.shape.vocab:
                raise ModelError(
                    f"token {token!r} of {self.folder} is none of {self.shape.vocab}\n"
                    "help: correct eos_token_id or bos_token_id of its configuration"
                )
        return tuple(tokens)

    def _proved(self) -> None:
        """Every tensor that the shape needs is there, as large as it should be, and of floats."""
        for name, wanted in needed(self.shape, tied=self.tied).items():
            if name not in self._kinds:
                raise ModelError(
                    f"{self.folder} has no tensor {name}\n"
                    f"help: a {self.family} of this config.json needs it; copy all its safetensors"
                )
            dtype, shape = self._kinds[name]
            if shape != wanted:
                raise ModelError(
                    f"{name} is {list(shape)}, by config.json it should be {list(wanted)}\n"
                    "help: config.json and safetensors are of different models"
                )
            if dtype not in FLOATS:
                raise ModelError(
                    f"{name} is {dtype}, wanted one of {', '.join(FLOATS)}\n"
                    "help: take the checkpoint that is not quantised; `--weights int4` does that"
                )


def needed(shape: Shape, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of a model of that shape, by their names in a checkpoint."""
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab, shape.hidden)}
    for layer in range(shape.layers):
        found |= {f"model.layers.{layer}.{n}": size for n, size in _layer(shape).items()}
    found[NORM] = (shape.hidden,)
    return found if tied else found | {HEAD: (shape.vocab, shape.hidden)}


def _layer(shape: Shape) -> dict[str, tuple[int, ...]]:
    hidden, inner = shape.hidden, shape.inner
    heads, shared = shape.heads * shape.head, shape.kv_heads * shape.head
    linears = {
        "self_attn.q_proj": ("qkv", heads, hidden),
        "self_attn.k_proj": ("qkv", shared, hidden),
        "self_attn.v_proj": ("qkv", shared, hidden),
        "self_attn.o_proj": ("o", hidden, heads),
        "mlp.gate_proj": ("mlp", inner, hidden),
        "mlp.up_proj": ("mlp", inner, hidden),
        "mlp.down_proj": ("mlp", hidden, inner),
    }
    found: dict[str, tuple[int, ...]] = {}
    for name, (group, rows, columns) in linears.items():
        found[f"{name}.weight"] = (rows, columns)
        if group in shape.biased:
            found[f"{name}.bias"] = (rows,)
    if shape.normed:
        found |= {"self_attn.q_norm.weight": (shape.head,)}
        found |= {"self_attn.k_norm.weight": (shape.head,)}
    found |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    return found


def rope(config: Mapping[str, Any], head: int) -> Rope:
    """The frequencies that config.json's kind of scaling leaves, computed in fp32 as in training.

    default; linear (Chen et al. 2023); llama3; yarn (Peng et al. 2023).
    """
    said = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    kind = said.get("rope_type", said.get("type", "default"))
    if kind not in SCALINGS or said.get("partial_rotary_factor", 1.0) != 1.0:
        what = "only a part of each head" if kind in SCALINGS else f"rope_type {kind!r}"
        raise ModelError(
            f"positions are turned by {what}\nhelp: {', '.join(SCALINGS)} of whole heads are known"
        )
    said.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    if "original_max_position_embeddings" in config:
        said["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    base = float(said.get("rope_theta") or config.get("rope_theta") or 10000.0)
    plain = 1.0 / (base ** (torch.arange(0, head, 2, dtype=torch.float32) / head))
    try:
        found, scale = SCALINGS[kind](plain, base, said)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"rope_type {kind!r} of config.json lacks or misstates {error}") from error
    return Rope(frequencies=found.tolist(), scale=scale)


def _default(plain: torch.Tensor, base: float, said: dict[str, Any]) -> tuple[torch.Tensor, float]:
    return plain, 1.0


def _linear(plain: torch.Tensor, base: float, said: dict[str, Any]) -> tuple[torch.Tensor, float]:
    return plain / said["factor"], 1.0


def _llama3(plain: torch.Tensor, base: float, said: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """Long waves are stretched, short ones kept, those between blended."""
    low, high = said["low_freq_factor"], said["high_freq_factor"]
    before, factor = said["original_max_position_embeddings"], said["factor"]
    waves = 2 * math.pi / plain
    share = (before / waves - low) / (high - low)
    blended = (1 - share) * plain / factor + share * plain
    found = torch.where(waves > before / low, plain / factor, blended)
    return torch.where(waves < before / high, plain, found), 1.0


def _yarn(plain: torch.Tensor, base: float, said: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """Between two numbers of turns over the trained length the stretching sets in, linearly."""
    before, size = said["original_max_position_embeddings"], 2 * len(plain)
    factor = said["factor"]

    def place(turns: float) -> float:
        return size * math.log(before / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = place(said.get("beta_fast") or 32), place(said.get("beta_slow") or 1)
    if said.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (torch.arange(len(plain)) - low) / (high - low if high != low else 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return plain / factor * (1 - kept) + plain * kept, _louder(factor, said)


def _louder(factor: float, said: dict[str, Any]) -> float:
    """What yarn multiplies cosines and sines by."""

    def of(much: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * much * math.log(factor) + 1.0

    if said.get("attention_factor") is not None:
        return float(said["attention_factor"])
    if said.get("mscale") and said.get("mscale_all_dim"):
        return of(said["mscale"]) / of(said["mscale_all_dim"])
    return of(1.0)


SCALINGS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}


def _family(config: Mapping[str, Any]) -> str:
    named = (config.get("architectures") or [_named(config.get("model_type"))])[0]
    if named not in FAMILIES:
        raise ModelError(f"architecture {named!r} is not known\nhelp: one of {', '.join(FAMILIES)}")
    if config.get("quantization_config"):
        raise ModelError(
            "the checkpoint is quantised\nhelp: take the one that is not; "
            "`--weights int4` or int8 quantises the device's part"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"hidden_act {config['hidden_act']!r}\nhelp: only silu is known")
    return FAMILIES[named]


def _named(kind: object) -> object:
    """The architecture of a model_type, where config.json names none; itself if it is not known."""
    return next((name for name, family in FAMILIES.items() if family == kind), kind)


def _shape(config: Mapping[str, Any], family: str) -> Shape:
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    head = config.get("head_dim") or hidden // heads
    layers = _number(config, "num_hidden_layers")
    attention, mlp = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    biased = {
        "llama": [("qkv", attention), ("o", attention), ("mlp", mlp)],
        "mistral": [],
        "qwen2": [("qkv", True)],
        "qwen3": [("qkv", attention), ("o", attention)],
    }[family]
    try:
        return Shape(
            vocab=_number(config, "vocab_size"),
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head=head,
            inner=_number(config, "intermediate_size"),
            eps=config.get("rms_norm_eps", 1e-6),
            rope=rope(config, head),
            windows=_windows(config, family, layers),
            normed=family == "qwen3",
            biased=tuple(name for name, there in biased if there),
        )
    except ValidationError as error:
        raise ModelError(f"config.json: {first(error)}") from error


def _windows(config: Mapping[str, Any], family: str, layers: int) -> list[int]:
    """Positions that each layer sees; 0: all."""
    window = config.get("sliding_window") or 0
    if family == "mistral":
        return [window] * layers
    if family == "llama" or not config.get("use_sliding_window"):
        return [0] * layers
    kinds = config.get("layer_types")
    if kinds is None:
        return [window if i >= config["max_window_layers"] else 0 for i in range(layers)]
    known = {"full_attention": 0, "sliding_attention": window}
    if len(kinds) != layers or not set(kinds) <= set(known):
        raise ModelError(
            f"layer_types of config.json: {kinds}\n"
            f"help: {layers} of {' or '.join(known)} are wanted"
        )
    return [known[kind] for kind in kinds]


def _number(config: Mapping[str, Any], key: str) -> int:
    found = config.get(key)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ModelError(f"config.json: {key} is {found!r}\nhelp: it should be a whole number")
    return found


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor."""
    if (folder / INDEX).is_file():
        places = _json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or any(Path(n).name != n for n in places.values()):
            raise ModelError(f"{folder / INDEX} has no weight_map of names in its own folder")
        found = {name: folder / file for name, file in places.items()}
    elif (folder / SINGLE).is_file():
        found = dict.fromkeys(_names(folder / SINGLE), folder / SINGLE)
    else:
        raise ModelError(
            f"{folder} has no {SINGLE}\nhelp: save_pretrained writes it; .bin files are not read"
        )
    for path in sorted(set(found.values())):
        there = set(_names(path))
        for name in [name for name, file in found.items() if file == path]:
            if name not in there:
                raise ModelError(f"{path} has no {name}, which {INDEX} says it has")
    return found


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is no safetensors file: {error}\nhelp: copy it again") from error


def _kind(path: Path, name: str) -> tuple[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        found = file.get_slice(name)
        return found.get_dtype(), tuple(found.get_shape())


def _json(path: Path, *, needed: bool = True) -> dict[str, Any]:
    if not path.is_file():
        if needed:
            raise ModelError(f"{path.parent} has no {path.name}\nhelp: name a checkpoint's folder")
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object")
    return found
