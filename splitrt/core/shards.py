"""A star's directory: who of the devices holds which part of every layer, and their files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from splitrt.core.language import LONGEST, TOKENIZER, Count, Shape, Token, Weights
from splitrt.core.manifest import (
    LARGEST_MANIFEST,
    NAME,
    PLAIN,
    Part,
    Provenance,
    Signed,
    parsed,
    raw,
)
from splitrt.errors import ModelError

KIND = "star"
HUB = "hub"
EMBEDDING, NORM = "embedding.safetensors", "norm.onnx"  # the hub's alone
BARE_FEED, BARE_VOICE = "bare-feed.onnx", "bare-voice.onnx"  # their weights are inputs
TURNS = "turns.safetensors"  # cosines and sines of each position
GRAIN = 32  # feed-forward columns that stay together: a quantised block
MOST = 64  # devices
TILE = 16 << 20  # bytes of the LM head in one file
BYTES = {"fp32": 4.0, "fp16": 4.0, "int8": 1.125, "int4": 0.625}  # of a weight in memory
PLAINLY = ("fp32", "fp16")  # weights that need no packing: they may be mapped and bound

Place = Annotated[int, Field(ge=0, le=1 << 20)]


class Portion(Part):
    """What a device holds of every layer.

    queries: a range of the queries' heads, its end not included.  keys: which of the model's heads
    of keys and values each head of the device's buffers is; one stands there more than once, here
    or on several devices, where queries that share it cannot stay together.  columns: a range of
    the feed-forward network.
    """

    queries: tuple[Place, Place]
    keys: Annotated[tuple[Place, ...], Field(min_length=1, max_length=1024)]
    columns: tuple[Place, Place]

    @property
    def asking(self) -> int:
        """Heads of queries."""
        return self.queries[1] - self.queries[0]

    @property
    def heads(self) -> int:
        """Heads of keys and values in its buffers."""
        return len(self.keys)

    @property
    def inner(self) -> int:
        """Columns of the feed-forward network."""
        return self.columns[1] - self.columns[0]

    @property
    def leads(self) -> bool:
        """Whether this is the hub's: it alone adds what is not divided, the biases of sums."""
        return self.queries[0] == 0

    @classmethod
    def whole(cls, shape: Shape) -> Portion:
        """All of every layer."""
        return cls.of(shape, (0, shape.heads), (0, shape.inner))

    @classmethod
    def of(cls, shape: Shape, queries: tuple[int, int], columns: tuple[int, int]) -> Portion:
        """Those heads of queries with the keys and values that they need."""
        return cls(queries=queries, keys=_keys(shape, queries), columns=columns)


class Device(Portion):
    """One device: its folder, its share as it was asked for, the sha256 of its files."""

    folder: str
    share: Annotated[float, Field(gt=0)]
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


class Shards(Signed):
    """model.toml of a model that several devices hold together, the hub first.

    weights: of all graphs.  longest: positions that the devices have room for.  stops: tokens that
    end an answer.  For each layer i a device has `attention(i)` and `feed(i)`: ONNX graphs that
    take the rows [T, hidden] which all devices hold, norm them, and give the device's `part` of
    what the layer adds to them. Rows plus all parts, in the order of the devices, are the next
    rows. Attention takes last, total, its K/V buffers and the tables of TURNS as well. Of weights
    that need no packing there are the same graphs with the weights as inputs, one for all layers:
    a layer is then changed by binding its file's tensors, without a new session.
    """

    format: Literal[1]
    kind: Literal["star"]
    name: str
    provenance: Provenance = Provenance()
    family: Literal["llama", "mistral", "qwen2", "qwen3"]
    shape: Shape
    weights: Weights
    longest: Annotated[Count, Field(ge=2, le=LONGEST)]
    begins: Token | None = None
    stops: Annotated[tuple[Token, ...], Field(max_length=64)] = ()
    devices: Annotated[list[Device], Field(min_length=1, max_length=MOST)]

    @classmethod
    def load(cls, folder: str | Path) -> Shards:
        """The manifest of a star's directory; ModelError if it is missing or wrong."""
        return cls.read(raw(folder), Path(folder) / NAME)

    @classmethod
    def read(cls, text: bytes, path: Path) -> Shards:
        """What a manifest's text says; ModelError, which names `path`, if it is wrong."""
        if len(text) > LARGEST_MANIFEST:
            raise ModelError(f"{path} is larger than {LARGEST_MANIFEST >> 20} MiB")
        tables = parsed(text, path)
        if tables.get("kind") != KIND:
            told = f"{path.parent} holds no star"
            raise ModelError(f"{told}\nhelp: `splitrt split --star N` writes one")
        return cls.signed(path, text, tables)

    @model_validator(mode="after")
    def _agrees(self) -> Shards:
        whole = Portion.whole(self.shape)
        for wrong, message in (
            (
                [one.folder for one in self.devices] != folders(len(self.devices)),
                f"devices are not {', '.join(folders(len(self.devices)))}",
            ),
            (
                not _follow([one.queries for one in self.devices], whole.queries),
                "queries of the devices are not all heads, one after the other",
            ),
            (
                [one.keys for one in self.devices]
                != [_keys(self.shape, one.queries) for one in self.devices],
                "keys of a device are not those that its queries need",
            ),
            (
                not _follow([one.columns for one in self.devices], whole.columns),
                "columns of the devices are not the feed-forward network, one after the other",
            ),
        ):
            if wrong:
                raise ValueError(message)
        for one in self.devices:
            self._holds(one)
        return self

    def _holds(self, one: Device) -> None:
        if any(not PLAIN.fullmatch(name) for name in one.files):
            raise ValueError("a file's name is not plain")
        needed = {TURNS}
        needed |= {graph(i) for graph in (attention, feed) for i in range(self.shape.layers)}
        if one.leads:
            needed |= {EMBEDDING, NORM, TOKENIZER}
            needed |= {voice(i) for i in range(len(tiles(self.shape, self.weights)))}
        if self.weights in PLAINLY:
            needed |= {bare_attention(window) for window in self.shape.windows} | {BARE_FEED}
            needed |= {BARE_VOICE} if one.leads else set()
        for missing in sorted(needed - set(one.files)):
            raise ValueError(f"files of {one.folder} has no {missing}")


def attention(layer: int) -> str:
    """The file of a layer's attention."""
    return f"attention-{layer}.onnx"


def feed(layer: int) -> str:
    """The file of a layer's feed-forward network."""
    return f"feed-{layer}.onnx"


def voice(tile: int) -> str:
    """The file of some rows of the LM head, of `tiles`."""
    return f"voice-{tile}.onnx"


def bare_attention(window: int) -> str:
    """The file of an attention of that window whose weights are inputs; see `Shards`."""
    return f"bare-attention-{window}.onnx"


def tiles(shape: Shape, weights: Weights) -> list[tuple[int, int]]:
    """The rows of the vocabulary that each file of the LM head has; ends are not included."""
    rows = max(GRAIN, int(TILE / (shape.hidden * BYTES[weights])) // GRAIN * GRAIN)
    starts = range(0, shape.vocab, rows)
    return [(start, min(start + rows, shape.vocab)) for start in starts]


def folders(count: int) -> list[str]:
    """The devices' names, the hub first."""
    return [HUB, *(f"spoke-{i}" for i in range(1, count))]


def portions(shape: Shape, shares: Sequence[float]) -> list[Portion]:
    """A model's layers in proportion to `shares`, each device's speed in any unit.

    ModelError if a device would get nothing; it names how many devices would do.
    """
    if not 1 <= len(shares) <= MOST or not all(0 < one < math.inf for one in shares):
        told = ", ".join(f"{one:g}" for one in shares[:MOST])
        raise ModelError(f"shares {told}\nhelp: 1 to {MOST} numbers above 0, the hub's first")
    grains = -(-shape.inner // GRAIN)
    heads, columns = _heads(shape, shares), apportioned(grains, shares)
    if not all(heads) or not all(columns):
        raise ModelError(_too_thin(shape, shares))
    found, head, grain = [], 0, 0
    for more, wider in zip(heads, columns, strict=True):
        ends = [min(GRAIN * end, shape.inner) for end in (grain, grain + wider)]
        found.append(Portion.of(shape, (head, head + more), (ends[0], ends[1])))
        head, grain = head + more, grain + wider
    return found


def apportioned(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, in proportion: by largest remainder (Hamilton 1792)."""
    top = max(shares)
    parts = [one / top for one in shares]  # sums of large numbers stay finite
    exact = [total * one / sum(parts) for one in parts]
    found = [int(one) for one in exact]
    order = sorted(range(len(shares)), key=lambda i: (found[i] - exact[i], i))
    for i in order[: total - sum(found)]:
        found[i] += 1
    return found


def _heads(shape: Shape, shares: Sequence[float]) -> list[int]:
    """Heads of queries of each device: with all that share keys and values, if every one gets some.

    Else they are parted, and several devices hold the same keys and values.
    """
    each = shape.heads // shape.kv_heads
    together = apportioned(shape.kv_heads, shares)
    return [each * one for one in together] if all(together) else apportioned(shape.heads, shares)


def _keys(shape: Shape, queries: tuple[int, int]) -> tuple[int, ...]:
    """The heads of keys and values that those queries need, as many queries for each."""
    asked = [query // (shape.heads // shape.kv_heads) for query in range(*queries)]
    needed = sorted(set(asked))
    even = len({asked.count(one) for one in needed}) == 1
    return tuple(needed) if even else tuple(asked)


def _too_thin(shape: Shape, shares: Sequence[float]) -> str:
    """What is said where a device would get nothing: the most of the fastest that would do."""
    grains = -(-shape.inner // GRAIN)
    works = len(shares)
    fastest = sorted(shares, reverse=True)
    while not all(all(apportioned(total, fastest[:works])) for total in (shape.heads, grains)):
        works -= 1
    told = ", ".join(f"{one:g}" for one in shares)
    how = f"--star {works}"
    if len(set(fastest[:works])) > 1:
        how += f" --shares {','.join(f'{one:g}' for one in fastest[:works])}"
    return (
        f"{len(shares)} devices of shares {told}: one would get none of {shape.heads} heads, or of "
        f"{grains} times {GRAIN} feed-forward columns\n"
        f"help: {how} works"
    )


def _follow(ranges: Sequence[tuple[int, int]], whole: tuple[int, int]) -> bool:
    """Whether ranges, none of them empty, follow one another and are the whole."""
    starts, ends = [one[0] for one in ranges], [one[1] for one in ranges]
    return all(a < b for a, b in ranges) and [*starts, whole[1]] == [whole[0], *ends]


def is_star(folder: str | Path) -> bool:
    """Whether a directory holds a star; ModelError if it is no model directory at all."""
    return parsed(raw(folder), Path(folder) / NAME).get("kind") == KIND
