"""Tiny language models of each family, as Hugging Face lays a checkpoint on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
BEGIN, END, VOCAB = 0, 1, 300
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]"
    "{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
SENTENCES = (
    "The old lighthouse keeper counted the boats that came home before the storm.",
    "She asked why the sky is blue, and he told her about light and small things in the air.",
    "Once there was a little dog who wanted to see the other side of the hill.",
    "They walked to the market and bought bread, apples and a kettle that sang when it boiled.",
)


def checkpoint(folder: Path, family: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Write a random model of 4 layers and a byte-level tokenizer; returns the folder.

    changes: of the family's configuration, such as `head_dim=12` or `tie_word_embeddings=True`.
    Norms and biases are random too, and weights large enough for tokens to differ by more than
    the last digits.
    """
    random = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = _model(family, changes)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                tensor.normal_(std=0.2)
    torch.random.set_rng_state(random)
    model.save_pretrained(folder)
    _tokenizer(folder)
    return folder


def reference(folder: Path) -> Any:
    """The same checkpoint as transformers runs it, in fp32."""
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return found.eval()


def _model(family: str, changes: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    said = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "tie_word_embeddings": False,
    }
    said |= {"head_dim": 16} if family == "qwen3" else {}
    said |= {"sliding_window": None} if family == "mistral" else {}
    config = AutoConfig.for_model(family, **said | changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(said, indent=1))
