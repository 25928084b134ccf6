"""A language model's directory: what its model.toml says, and the files that belong to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from splitrt.core.manifest import NAME, PLAIN, Part, Provenance, Share, Signed, parsed, raw
from splitrt.errors import ModelError

KIND = "language"
TOKENIZER, CHAT = "tokenizer.json", "chat.jinja"
LAYERS = "layers.safetensors"  # the server's weights
LONGEST = 1 << 20  # positions of a session

Resume = Literal["hidden", "tokens"]
Weights = Literal["fp32", "fp16", "int8", "int4"]
Count = Annotated[int, Field(ge=1, le=1 << 20)]
Token = Annotated[int, Field(ge=0, lt=1 << 24)]


class Rope(Part):
    """Rotary positions: half of the head's frequencies, and what cosines and sines are scaled by.

    The frequencies are those that the checkpoint's own kind of scaling leaves, in radians a
    position: Su et al. 2021 (RoFormer).
    """

    frequencies: Annotated[list[float], Field(min_length=1, max_length=1024)]
    scale: Annotated[float, Field(gt=0)] = 1.0


class Shape(Part):
    """A decoder of the Llama kind.

    head: numbers of one attention head.  inner: of the feed-forward network.  window: positions
    that a layer sees, by layer; 0: all.  normed: queries and keys are normed (Qwen3).  biased:
    which projections have a bias.
    """

    vocab: Annotated[int, Field(ge=2, le=1 << 24)]
    hidden: Count
    layers: Annotated[int, Field(ge=1, le=1024)]
    heads: Annotated[int, Field(ge=1, le=1024)]
    kv_heads: Annotated[int, Field(ge=1, le=1024)]
    head: Annotated[int, Field(ge=2, le=1024)]
    inner: Count
    eps: Annotated[float, Field(gt=0, lt=1)]
    rope: Rope
    windows: list[Annotated[int, Field(ge=0)]]
    normed: bool = False
    biased: tuple[Literal["qkv", "o", "mlp"], ...] = ()

    @model_validator(mode="after")
    def _agrees(self) -> Shape:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} of keys and values")
        if len(self.windows) != self.layers:
            raise ValueError(f"{len(self.windows)} windows for {self.layers} layers")
        if 2 * len(self.rope.frequencies) != self.head:
            raise ValueError(f"{len(self.rope.frequencies)} frequencies for a head of {self.head}")
        return self


class Bin(Part):
    """Drafts of one range of confidence, on held-out text: how many, and how many were right."""

    low: Share
    share: Share
    accepted: Share


class Exit(Part):
    """An exit after a layer: x normed, plus an adapter's correction, then the LM head.

    segment: the ONNX file of the layers that end there.  file: the ONNX file of norm and adapter,
    one row in, one out, for the LM head.  temperature: by which its logits are divided for the
    confidence.  accepted: share of held-out positions where its best token is the whole model's.
    """

    layer: Annotated[int, Field(ge=1)]
    segment: str
    file: str
    temperature: Annotated[float, Field(gt=0)] = 1.0
    accepted: Share | None = None
    ece: Share | None = None
    bins: Annotated[tuple[Bin, ...], Field(max_length=32)] = ()


class Language(Signed):
    """model.toml of a language model. Device and server agree when `digest` is the same.

    cut: layers on the device.  voice: the ONNX file of the LM head that all exits share.  weights:
    of the device's part.  resume: what a device may send: its hidden rows, or tokens, for a server
    that holds all layers.  stops: tokens that end an answer.
    """

    format: Literal[1]
    kind: Literal["language"]
    name: str
    provenance: Provenance = Provenance()
    family: Literal["llama", "mistral", "qwen2", "qwen3"]
    shape: Shape
    cut: Annotated[int, Field(ge=1)]
    exits: Annotated[list[Exit], Field(min_length=1, max_length=16)]
    voice: str
    weights: Weights
    resume: Annotated[list[Resume], Field(min_length=1, max_length=2)]
    codec: str
    longest: Annotated[int, Field(ge=2, le=LONGEST)]  # positions that the device has room for
    begins: Token | None = None
    stops: Annotated[tuple[Token, ...], Field(max_length=64)] = ()
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]

    @classmethod
    def load(cls, folder: str | Path) -> Language:
        """The manifest of a language model's directory; ModelError if it is missing or wrong."""
        path, text = Path(folder) / NAME, raw(folder)
        tables = parsed(text, path)
        if tables.get("kind") != KIND:
            way = "use it with Edge and Server"
            if tables.get("kind") == "star":
                way = "it is a star's, which `splitrt star` runs; `splitrt split --cut` writes one "
                way += "for a device and a server"
            raise ModelError(f"{folder} holds no language model\nhelp: {way}")
        return cls.signed(path, text, tables)

    def exit(self, layer: int) -> Exit:
        """The exit after that layer."""
        return next(one for one in self.exits if one.layer == layer)

    @model_validator(mode="after")
    def _agrees(self) -> Language:
        layers = [one.layer for one in self.exits]
        needed = {TOKENIZER, LAYERS, self.voice}
        needed |= {name for one in self.exits for name in (one.segment, one.file)}
        for wrong, message in (
            (self.cut >= self.shape.layers, f"cut after {self.cut} of {self.shape.layers} layers"),
            (layers != sorted(set(layers)), "exits are not in the order of their layers"),
            (layers[-1] != self.cut, "the last exit is not at the cut"),
            (any(not PLAIN.fullmatch(name) for name in self.files), "a file's name is not plain"),
            (NAME in self.files, f"{NAME} cannot name itself"),
            (len(set(self.resume)) < len(self.resume), "resume names one way twice"),
        ):
            if wrong:
                raise ValueError(message)
        for missing in sorted(needed - set(self.files)):
            raise ValueError(f"files has no {missing}")
        return self


def is_language(folder: str | Path) -> bool:
    """Whether a model directory holds a language model; ModelError if it holds none at all."""
    return parsed(raw(folder), Path(folder) / NAME).get("kind") == KIND
