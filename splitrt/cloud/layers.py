"""A language model's layers on the server, in torch: new rows of all sessions in one packed step.

Norms and linears see the rows of all sessions as one [sum of rows, hidden] (selective batching: Yu
et al. 2022, Orca); each session attends over its own keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from splitrt.cloud.tail import placed
from splitrt.cloud.turn import STEP
from splitrt.core.language import LAYERS, Language, Shape
from splitrt.core.manifest import verified
from splitrt.errors import ModelError

LARGEST = 1 << 40  # bytes of the weights' file
VOICED = 64  # rows whose logits are made at once

Linear: TypeAlias = "tuple[Tensor, Tensor | None]"  # weight [in, out], bias [out]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One decoder layer; projections of the same rows are one matrix."""

    first: Tensor  # gain before attention
    second: Tensor  # gain before the feed-forward network
    qkv: Linear
    out: Linear
    into: Linear  # gate, then up
    down: Linear
    norms: tuple[Tensor, Tensor] | None  # gains of queries and of keys
    window: int


class Cache:
    """Keys and values of one session, and what came out of the last layer, for `room` positions.

    first: the layer with which its rows begin; 0 where these are tokens.
    """

    def __init__(self, shape: Shape, first: int, device: torch.device, dtype: torch.dtype) -> None:
        self.first, self.room = first, 0
        layers = shape.layers - first
        self.pairs = torch.empty(
            layers, 2, shape.kv_heads, 0, shape.head, device=device, dtype=dtype
        )
        self.ends = torch.empty(0, shape.hidden, device=device, dtype=dtype)

    def grow(self, positions: int) -> None:
        """Room for that many, in steps; what is held stays."""
        if (room := stepped(positions)) <= self.room:
            return
        layers, two, heads, _, head = self.pairs.shape
        pairs = self.pairs.new_empty(layers, two, heads, room, head)
        pairs[..., : self.room, :] = self.pairs
        ends = self.ends.new_empty(room, self.ends.shape[1])
        ends[: self.room] = self.ends
        self.pairs, self.ends, self.room = pairs, ends, room

    def move(self, device: torch.device) -> None:
        """To the memory of that device."""
        self.pairs, self.ends = self.pairs.to(device), self.ends.to(device)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A session's new rows in a step: float32 [T, hidden] after the cut, or token ids int64 [T]."""

    cache: Cache
    start: int
    rows: np.ndarray

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.start + len(self.rows)


class Layers:
    """The layers from the cut on, or all where tokens may come. Used by one thread.

    device: cpu or cuda.  dtype: of weights, keys and values; float32 on a CPU, else bfloat16.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Language,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.manifest, self.shape = manifest, manifest.shape
        self.device = placed(device)
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        self.first = 0 if "tokens" in manifest.resume else manifest.cut
        path = verified(folder, manifest, LAYERS, largest=LARGEST)
        try:
            with safe_open(path, "pt", device=str(self.device)) as file:
                self._load(_Weights(file, self.shape, self.dtype))
        except SafetensorError as error:
            raise ModelError(
                f"{path} does not hold what {manifest.name} needs: {error}\nhelp: split it again"
            ) from error
        frequencies = torch.tensor(self.shape.rope.frequencies, dtype=torch.float32)
        self._frequencies = frequencies.to(self.device)

    def cache(self, resume: str) -> Cache:
        """An empty one for a session of that kind."""
        first = 0 if resume == "tokens" else self.manifest.cut
        return Cache(self.shape, first, self.device, self.dtype)

    def bytes_of(self, resume: str) -> int:
        """Bytes that a position of such a session takes."""
        shape, first = self.shape, 0 if resume == "tokens" else self.manifest.cut
        numbers = 2 * (shape.layers - first) * shape.kv_heads * shape.head + shape.hidden
        return numbers * self.dtype.itemsize

    @torch.inference_mode()
    def step(self, parts: Sequence[Part]) -> None:
        """Run new rows through the layers; the caches have room for them."""
        parts = sorted(parts, key=lambda part: part.cache.first)  # tokens begin before hidden rows
        cos, sin = self._turns(parts)
        x = torch.empty(0, self.shape.hidden, device=self.device, dtype=self.dtype)
        masks: dict[tuple[int, int], Tensor | None] = {}
        for number in range(parts[0].cache.first, self.shape.layers):
            entering = [part for part in parts if part.cache.first == number]
            x = torch.cat([x, *(self._entered(part) for part in entering)]) if entering else x
            running = [part for part in parts if part.cache.first <= number]
            x = self._through(number, x, running, (cos[: len(x)], sin[: len(x)]), masks)
        for part, rows in _apart(x, parts):
            part.cache.ends[part.start : part.end] = rows

    @torch.inference_mode()
    def logits(self, wanted: Sequence[tuple[Cache, int, int]]) -> Iterator[np.ndarray]:
        """float32 [vocab] of each session's positions from start to end - 1, which are held."""
        ends = torch.cat([cache.ends[start:end] for cache, start, end in wanted])
        for rows in ends.split(VOICED):
            normed = _normed(rows, self._norm, self.shape.eps)
            yield from _linear(normed, self._voice).float().cpu().numpy()

    def _load(self, weights: _Weights) -> None:
        shape, vocab = self.shape, (self.shape.vocab, self.shape.hidden)
        self._layers = {number: weights.layer(number) for number in range(self.first, shape.layers)}
        self._norm = weights.tensor("model.norm.weight", (shape.hidden,))
        self._voice: Linear = _turned_over([weights.tensor("lm_head.weight", vocab)]), None
        self._embedding = None
        if self.first == 0:
            self._embedding = weights.tensor("model.embed_tokens.weight", vocab)

    def _entered(self, part: Part) -> Tensor:
        rows = torch.from_numpy(part.rows).to(self.device)
        if self._embedding is not None and part.cache.first == 0:
            return functional.embedding(rows, self._embedding)
        return rows.to(self.dtype)

    def _turns(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all rows' positions: [rows, 1, head / 2]."""
        positions = torch.cat([torch.arange(part.start, part.end) for part in parts])
        angles = positions.to(self.device, torch.float32)[:, None] * self._frequencies
        scale = self.shape.rope.scale
        cos, sin = angles.cos() * scale, angles.sin() * scale
        return cos[:, None].to(self.dtype), sin[:, None].to(self.dtype)

    def _through(
        self,
        number: int,
        x: Tensor,
        parts: Sequence[Part],
        turns: tuple[Tensor, Tensor],
        masks: dict[tuple[int, int], Tensor | None],
    ) -> Tensor:
        layer, shape = self._layers[number], self.shape
        normed = _normed(x, layer.first, shape.eps)
        heads = _linear(normed, layer.qkv).view(len(x), -1, shape.head)
        q, k, v = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], 1)
        if layer.norms is not None:
            q = _normed(q, layer.norms[0], shape.eps)
            k = _normed(k, layer.norms[1], shape.eps)
        q, k = _turned(q, *turns), _turned(k, *turns)
        lengths = [len(part.rows) for part in parts]
        seen = []
        for place, heads in enumerate(zip(*(one.split(lengths) for one in (q, k, v)), strict=True)):
            if (key := (place, layer.window)) not in masks:
                masks[key] = self._mask(parts[place], layer.window)
            seen.append(self._attended(number, parts[place], heads, masks[key]))
        x = x + _linear(torch.cat(seen), layer.out)
        normed = _normed(x, layer.second, shape.eps)
        gate, up = _linear(normed, layer.into).chunk(2, -1)
        return x + _linear(functional.silu(gate) * up, layer.down)

    def _attended(
        self, number: int, part: Part, heads: tuple[Tensor, ...], mask: Tensor | None
    ) -> Tensor:
        """One session's rows, q, k and v of them [T, heads, head] -> [T, heads * head]."""
        (q, k, v), shape = heads, self.shape
        keys, values = part.cache.pairs[number - part.cache.first]
        keys[:, part.start : part.end] = k.transpose(0, 1)
        values[:, part.start : part.end] = v.transpose(0, 1)
        low = _low(part, self._layers[number].window)
        found = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[None, :, low : part.end],
            values[None, :, low : part.end],
            attn_mask=mask,
            enable_gqa=shape.heads != shape.kv_heads,
        )
        return found[0].transpose(0, 1).reshape(len(q), -1)

    def _mask(self, part: Part, window: int) -> Tensor | None:
        """Which positions each row sees: bool [T, positions from the first that any sees]."""
        if len(part.rows) == 1:
            return None  # the keys are cut to what it sees
        rows = torch.arange(part.start, part.end, device=self.device)[:, None]
        keys = torch.arange(_low(part, window), part.end, device=self.device)[None]
        mask = keys <= rows
        return mask & (keys > rows - window) if window else mask


class _Weights:
    """The tensors of a file under a checkpoint's names, checked against the shape."""

    def __init__(self, file: safe_open, shape: Shape, dtype: torch.dtype) -> None:
        self.file, self.shape, self.dtype = file, shape, dtype

    def layer(self, number: int) -> Layer:
        shape, name = self.shape, f"model.layers.{number}."
        hidden, inner = shape.hidden, shape.inner
        queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
        attention, mlp = name + "self_attn.", name + "mlp."
        into = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        feeding = {"gate_proj": inner, "up_proj": inner}
        norms = None
        if shape.normed:
            norms = tuple(self.tensor(f"{attention}{k}_norm.weight", (shape.head,)) for k in "qk")
        return Layer(
            first=self.tensor(name + "input_layernorm.weight", (hidden,)),
            second=self.tensor(name + "post_attention_layernorm.weight", (hidden,)),
            qkv=self._linear(attention, into, hidden, "qkv" in shape.biased),
            out=self._linear(attention, {"o_proj": hidden}, queries, "o" in shape.biased),
            into=self._linear(mlp, feeding, hidden, "mlp" in shape.biased),
            down=self._linear(mlp, {"down_proj": hidden}, inner, "mlp" in shape.biased),
            norms=norms,
            window=shape.windows[number],
        )

    def tensor(self, name: str, wanted: tuple[int, ...]) -> Tensor:
        found = tuple(self.file.get_slice(name).get_shape())
        if found != wanted:
            raise ModelError(f"{name} has shape {found}, {wanted} wanted\nhelp: split it again")
        return self.file.get_tensor(name).to(self.dtype)

    def _linear(self, prefix: str, outs: dict[str, int], into: int, biased: bool) -> Linear:
        """Projections of the same rows as one matrix."""
        weights = [self.tensor(f"{prefix}{name}.weight", (out, into)) for name, out in outs.items()]
        biases = [
            self.tensor(f"{prefix}{name}.bias", (out,)) for name, out in outs.items() if biased
        ]
        return _turned_over(weights), torch.cat(biases) if biases else None


def stepped(positions: int) -> int:
    """The room that so many positions take: steps of STEP, at least one."""
    return max(1, -(-positions // STEP)) * STEP


def _turned_over(weights: Sequence[Tensor]) -> Tensor:
    """Matrices of a checkpoint, [out, in] each, side by side: [in, outs].

    In memory in that order, too: a product with one to three rows takes half the time on a CPU.
    """
    return torch.cat([weight.t() for weight in weights], 1).contiguous()


def _linear(x: Tensor, how: Linear) -> Tensor:
    weight, bias = how
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def _low(part: Part, window: int) -> int:
    """The first position that a row of the part sees."""
    return max(0, part.start - window + 1) if window else 0


def _apart(x: Tensor, parts: Sequence[Part]) -> Iterator[tuple[Part, Tensor]]:
    """Each part with its rows of x."""
    return zip(parts, x.split([len(part.rows) for part in parts]), strict=True)


def _normed(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMSNorm (Zhang and Sennrich 2019), its mean in float32."""
    wide = x.float()
    return gain * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on [rows, heads, head]: its halves are the pairs (Su et al. 2021)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
