"""Small tokenizers of the kinds that checkpoints have, and directories that hold one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomli_w
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from splitrt.core import shards
from splitrt.core.language import CHAT, TOKENIZER, Shape

BEGIN, END, TURN = "<s>", "</s>", "<|im_start|>"
SPECIAL = ["<unk>", BEGIN, END, TURN, "<|im_end|>"]
TEXT = [
    "Once upon a time there was a little girl who lived in a house by the sea.",
    "The dog said: hello! Äpfel und Öl, naïve café; 東京 🙂 and so on.",
    "user assistant system Tell me a story, please. Why is the sky blue?",
]

CHATML = """{% for message in messages %}
{% if loop.first and message.role != 'system' %}<|im_start|>system
You are kind.<|im_end|>
{% endif %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}
{% set content = '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '</s>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
{{ content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"""
MISTRAL = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}{%- continue %}{%- endif %}
{%- endfor %}"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL}


def byte_level() -> Tokenizer:
    """As of Llama 3 and Qwen: any text is bytes, a character may be several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _trained(made, pre_tokenizers.ByteLevel.alphabet())


def metaspace() -> Tokenizer:
    """As of Mistral: a space is ▁, a text begins with one, unknown characters are bytes."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _trained(made, [], [f"<0x{byte:02X}>" for byte in range(256)])


def prepended() -> Tokenizer:
    """As of Llama 2: the normaliser puts a ▁ before every piece between special tokens."""
    made = metaspace()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.normalizer = normalizers.Prepend("▁")
    return made


KINDS = {"bytes": byte_level, "metaspace": metaspace, "prepended": prepended}


def directory(folder: Path, tokenizer: Tokenizer, template: str | None = None) -> Path:
    """A language model's directory with words, and files of no use instead of weights."""
    tables = _said(folder, tokenizer) | {
        "kind": "language", "cut": 1, "voice": "voice.onnx", "resume": ["hidden"], "codec": "f32",
        "exits": [{"layer": 1, "segment": "layers-0-1.onnx", "file": "exit-1.onnx"}],
    }  # fmt: skip
    names = ("layers-0-1.onnx", "exit-1.onnx", "voice.onnx", "layers.safetensors")
    tables["files"] = _filled(folder, tokenizer, template, names)
    (folder / "model.toml").write_text(tomli_w.dumps(tables))
    return folder


def star(folder: Path, tokenizer: Tokenizer, template: str | None = None) -> Path:
    """The directory of a star of one device, likewise."""
    names = [shards.EMBEDDING, shards.NORM, shards.TURNS, shards.voice(0)]
    names += [name(layer) for name in (shards.attention, shards.feed) for layer in range(2)]
    tables = _said(folder, tokenizer) | {"kind": shards.KIND, "weights": "int4"}
    hub = shards.Portion.whole(Shape.model_validate(tables["shape"])).model_dump()
    hub |= {"folder": shards.HUB, "share": 1.0}
    hub["files"] = _filled(folder / shards.HUB, tokenizer, template, names)
    tables["devices"] = [hub]
    (folder / "model.toml").write_text(tomli_w.dumps(tables))
    return folder


def _said(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """What model.toml of either says."""
    begins, stops = (tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END))
    shape = {
        "vocab": tokenizer.get_vocab_size(), "hidden": 8, "layers": 2, "heads": 2, "kv_heads": 1,
        "head": 4, "inner": 8, "eps": 1e-5, "windows": [0, 0], "rope": {"frequencies": [1.0, 0.1]},
    }  # fmt: skip
    return {
        "format": 1, "name": folder.name, "family": "llama", "shape": shape, "weights": "fp32",
        "longest": 256, "begins": begins,
        "stops": [stops, tokenizer.token_to_id("<|im_end|>")],
    }  # fmt: skip


def _filled(
    folder: Path, tokenizer: Tokenizer, template: str | None, names: Iterable[str]
) -> dict[str, str]:
    """Words and empty files in a new folder; their sha256."""
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / TOKENIZER))
    if template is not None:
        (folder / CHAT).write_text(template)
    for name in names:
        (folder / name).write_bytes(b"")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _trained(made: Tokenizer, alphabet: list[str], more: list[str] | None = None) -> Tokenizer:
    """With <s> before each text; the bytes of a fallback are tokens like others."""
    trainer = trainers.BpeTrainer(
        vocab_size=400 + len(more or []), initial_alphabet=alphabet, show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
    )  # fmt: skip
    made.train_from_iterator(TEXT, trainer)
    if more:
        made = _with(made, more)
    begin = made.token_to_id(BEGIN)
    made.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)]
    )
    return made


def _with(made: Tokenizer, more: list[str]) -> Tokenizer:
    """With tokens in the vocabulary itself, where BPE's byte fallback looks for them."""
    tables = json.loads(made.to_str())
    vocab = tables["model"]["vocab"]
    for token in more:
        vocab[token] = len(vocab)
    return Tokenizer.from_str(json.dumps(tables))
