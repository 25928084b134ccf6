"""Checkpoints as Hugging Face lays them down, and what is wrong with those that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from splitrt.errors import ModelError
from splitrt.train.hf import Checkpoint
from tests.language import BEGIN, END, FAMILIES, TEMPLATE, VOCAB, checkpoint, reference

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    LLAMA3,
    YARN,
    YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 0.9},
    YARN | {"mscale": 0.7, "mscale_all_dim": 1.2},
]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "plain")


def changed(folder: Path, file: str = "config.json", **values: object) -> Path:
    """The checkpoint after some values of one of its JSON files were set; None takes one away."""
    path = folder / file
    said = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    return folder


@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_are_those_of_transformers(tmp_path, scaling):
    folder = checkpoint(tmp_path, rope_parameters=scaling | {"rope_theta": 20000.0})
    wanted = reference(folder).model.rotary_emb
    rope = Checkpoint(folder).shape.rope
    assert rope.frequencies == wanted.inv_freq.tolist()
    assert rope.scale == pytest.approx(wanted.attention_scaling, rel=1e-7)


def test_a_family_is_known_by_its_type_alone(plain):
    assert Checkpoint(changed(plain, architectures=None)).family == "llama"


def test_frequencies_as_older_files_write_them_are_the_same(tmp_path):
    new = Checkpoint(checkpoint(tmp_path, rope_parameters=YARN | {"rope_theta": 20000.0}))
    old = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    changed(tmp_path, rope_parameters=None, rope_theta=20000.0, rope_scaling=old)
    assert Checkpoint(tmp_path).shape == new.shape


@pytest.mark.parametrize(
    ("family", "values", "windows"),
    [
        ("llama", {"sliding_window": 5}, [0, 0, 0, 0]),
        ("mistral", {"sliding_window": 5}, [5, 5, 5, 5]),
        ("mistral", {"sliding_window": None}, [4096] * 4),  # what transformers assumes
        ("qwen2", {"sliding_window": 5, "use_sliding_window": False}, [0, 0, 0, 0]),
        (
            "qwen2",
            {
                "sliding_window": 5, "use_sliding_window": True, "max_window_layers": 3,
                "layer_types": None,
            },
            [0, 0, 0, 5],
        ),
        (
            "qwen3",
            {
                "sliding_window": 5, "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            [5, 0, 5, 0],
        ),
    ],
)  # fmt: skip
def test_a_layer_sees_as_far_as_its_family_says(tmp_path, family, values, windows):
    folder = changed(checkpoint(tmp_path, family), **values)
    assert Checkpoint(folder).shape.windows == windows


def test_no_window_is_no_window(tmp_path):
    folder = checkpoint(tmp_path, "mistral", sliding_window=None)
    assert json.loads((folder / "config.json").read_text())["sliding_window"] is None
    assert Checkpoint(folder).shape.windows == [0] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_read_as_they_were_saved(tmp_path, family):
    folder = checkpoint(tmp_path, family)
    source, saved = Checkpoint(folder), load_file(folder / "model.safetensors")
    assert source.family == family
    for name, tensor in saved.items():
        np.testing.assert_array_equal(source.tensor(name), tensor.numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_fp32_and_is_copied_as_it_is(tmp_path, dtype):
    file = checkpoint(tmp_path) / "model.safetensors"
    saved = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(saved, file)
    source, name = Checkpoint(tmp_path), "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(source.tensor(name), saved[name].float().numpy())
    assert source.lazy(name).make().tobytes() == saved[name].view(torch.int16).numpy().tobytes()


def test_a_checkpoint_in_several_files_is_one(plain):
    whole = Checkpoint(plain)
    saved = load_file(plain / "model.safetensors")
    names = sorted(saved)
    (plain / "model.safetensors").unlink()
    for i in (0, 1):
        save_file({name: saved[name] for name in names[i::2]}, plain / f"part-{i}.safetensors")
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    index = plain / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    parts = Checkpoint(plain)
    assert parts.shape == whole.shape
    for name in names:
        np.testing.assert_array_equal(parts.tensor(name), saved[name].numpy())
    index.write_text(json.dumps({"weight_map": places | {"lm_head.weight": "../x.safetensors"}}))
    with pytest.raises(ModelError, match="names in its own folder"):
        Checkpoint(plain)
    index.write_text(json.dumps({"weight_map": places | {"more": "part-0.safetensors"}}))
    with pytest.raises(ModelError, match="has no more"):
        Checkpoint(plain)


def test_a_tied_models_head_is_its_embedding(tmp_path):
    source = Checkpoint(checkpoint(tmp_path, "qwen3", tie_word_embeddings=True))
    embedding = source.tensor("model.embed_tokens.weight")
    np.testing.assert_array_equal(source.tensor("lm_head.weight"), embedding)


def test_tokens_that_end_an_answer_come_from_both_files(plain):
    assert (Checkpoint(plain).begins, Checkpoint(plain).stops) == (BEGIN, (END,))
    changed(plain, "generation_config.json", eos_token_id=[END, 7])
    assert Checkpoint(plain).stops == (END, 7)
    changed(plain, eos_token_id=5)
    assert Checkpoint(plain).stops == (END, 5, 7)
    changed(plain, eos_token_id=VOCAB)
    with pytest.raises(ModelError, match="none of 300"):
        _ = Checkpoint(plain).stops


def test_no_token_begins_a_text_where_the_tokenizer_puts_none(plain):
    changed(plain, "tokenizer_config.json", add_bos_token=False)
    assert Checkpoint(plain).begins is None


def test_the_chat_template_is_a_text_one_of_a_list_or_a_file(plain):
    assert Checkpoint(plain).chat == TEMPLATE
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    changed(plain, "tokenizer_config.json", chat_template=several)
    assert Checkpoint(plain).chat == "d"
    (plain / "chat_template.jinja").write_text("j")
    assert Checkpoint(plain).chat == "j"
    (plain / "chat_template.jinja").unlink()
    (plain / "tokenizer_config.json").unlink()
    assert Checkpoint(plain).chat is None


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture 'GPT2LMHeadModel' is not known"),
        ({"architectures": None, "model_type": "gpt2"}, "architecture 'gpt2'"),
        ({"architectures": None, "model_type": None}, "architecture None"),
        ({"quantization_config": {"bits": 4}}, "is quantised"),
        ({"hidden_act": "gelu"}, "only silu"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_hidden_layers": 5}, "no tensor model.layers.4."),
        ({"intermediate_size": 100}, "should be \\[100, 64\\]"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "lacks or misstates 'factor'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "only a part of each head"),
        ({"attention_bias": True}, "no tensor model.layers.0.self_attn.q_proj.bias"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said(plain, values, told):
    with pytest.raises(ModelError, match=told):
        Checkpoint(changed(plain, **values))


def test_what_is_wrong_with_the_files_is_said(plain):
    file = plain / "model.safetensors"
    saved = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(saved | {name: saved[name].to(torch.int8)}, file)
    with pytest.raises(ModelError, match="is I8, wanted one of F32"):
        Checkpoint(plain)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match="is no safetensors file"):
        Checkpoint(plain)
    file.unlink()
    with pytest.raises(ModelError, match=r"has no model.safetensors\nhelp"):
        Checkpoint(plain)
    (plain / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        Checkpoint(plain)


def test_a_checkpoint_without_a_tokenizer_is_refused(plain):
    (plain / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer.json\nhelp"):
        Checkpoint(plain)
