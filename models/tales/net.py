"""The network: a small Llama, and exits that guess early what its last layer will say."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

EXITS = (2, 4)  # after so many layers


def network(vocabulary: int, begin: int, end: int) -> LlamaForCausalLM:
    """The untrained network: 8 layers, grouped queries, tied embeddings."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=begin,
        eos_token_id=end,
    )
    return LlamaForCausalLM(config)


class Exit(nn.Module):
    """A gain after RMSNorm, then x + A x: what the model's own LM head reads early.

    At `temperature` its confidence is how often its arg-max is the last layer's.
    """

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(size))
        self.adapter = nn.Parameter(torch.zeros(size, size))
        self.epsilon = epsilon
        self.temperature = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.rms_norm(x, self.norm.shape, self.norm, self.epsilon)
        return x + functional.linear(x, self.adapter)


class Teller(nn.Module):
    """The model with its exits."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model
        size, epsilon = model.config.hidden_size, model.config.rms_norm_eps
        self.exits = nn.ModuleDict({str(after): Exit(size, epsilon) for after in EXITS})

    def forward(self, ids: torch.Tensor) -> dict[int, torch.Tensor]:
        """Logits [N, T, vocabulary] by the number of layers behind them."""
        out = self.model.model(ids, output_hidden_states=True, use_cache=False)
        states = {after: self.exits[str(after)](out.hidden_states[after]) for after in EXITS}
        states[self.layers] = out.last_hidden_state
        return {after: self.model.lm_head(x) for after, x in states.items()}

    def draft(self, ids: torch.Tensor, after: int) -> torch.Tensor:
        """What an exit says next, logits [N, vocabulary], by the layers up to it alone."""
        llama = self.model.model
        x = llama.embed_tokens(ids)
        angles = llama.rotary_emb(x, torch.arange(ids.shape[1])[None])
        for layer in llama.layers[:after]:
            x = layer(x, position_embeddings=angles)
        return self.model.lm_head(self.exits[str(after)](x[:, -1]))

    @property
    def layers(self) -> int:
        return self.model.config.num_hidden_layers

    def save(self, folder: Path) -> None:
        """A Hugging Face directory in float16, and the exits beside it in float32."""
        half = {name: x.half() for name, x in self.model.state_dict().items()}
        del half["lm_head.weight"]  # tied
        config = self.model.config.to_dict() | {"dtype": "float16"}
        folder.mkdir(parents=True, exist_ok=True)
        LlamaConfig(**config).save_pretrained(folder)
        save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
        exits = {
            f"exit.{after}.{name}": x.detach().clone()
            for after, exit in self.exits.items()
            for name, x in exit.named_parameters()
        }
        about = {
            f"exit.{n}.temperature": f"{exit.temperature:.4f}" for n, exit in self.exits.items()
        }
        save_file(exits, folder / "exits.safetensors", metadata=about)

    @classmethod
    def load(cls, folder: Path) -> Teller:
        """What `save` wrote, in float32."""
        teller = cls(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32))
        with safe_open(folder / "exits.safetensors", "pt") as file:
            names, about = file.offset_keys(), file.metadata()
            tensors = {name.removeprefix("exit."): file.get_tensor(name) for name in names}
        teller.exits.load_state_dict(tensors)
        for after, exit in teller.exits.items():
            exit.temperature = float(about[f"exit.{after}.temperature"])
        return teller.eval()
