"""The tokens: byte-level BPE of the stories' own, and the stream of them to train on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 2048
BEGIN, END = "<s>", "</s>"
REPEATS = 4  # of every real story among those that were told
CHAT = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def tokenizer(stories: Sequence[str], file: Path) -> Tokenizer:
    """The tokenizer in `file`, trained on the stories unless it is there."""
    if not file.exists():
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[BEGIN, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator(stories, trainer)
        made.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A",
            special_tokens=[(BEGIN, made.token_to_id(BEGIN))],
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        made.save(str(file))
    return Tokenizer.from_file(str(file))


def save(words: Tokenizer, folder: Path) -> None:
    """The tokenizer as transformers want it. A chat is one story: who writes goes on with it."""
    words.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def stream(words: Tokenizer, real: Sequence[str], told: Sequence[str], seed: int) -> torch.Tensor:
    """All stories' tokens one after the other, shuffled, each between BEGIN and END."""
    end = words.token_to_id(END)
    stories = [*real] * REPEATS + [*told]
    order = np.random.default_rng(seed).permutation(len(stories))
    encoded = words.encode_batch([stories[n] for n in order])
    ids = np.concatenate([np.array([*row.ids, end], np.uint16) for row in encoded])
    return torch.from_numpy(ids.astype(np.int16))
