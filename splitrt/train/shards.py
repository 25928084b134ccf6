"""A checkpoint sliced for a star: what `splitrt split DIR --star N` does, one slice at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from onnx import TensorProto

from splitrt.core import shards
from splitrt.core.shards import KIND, TURNS, Device, Portion, Shards
from splitrt.errors import ModelError
from splitrt.train.divide import HOLDS, anew, digest, layer, room, sign, table, words
from splitrt.train.export import About
from splitrt.train.gqa import (
    Graph,
    Layer,
    Matrix,
    attention,
    cosines,
    exit_graph,
    feed,
    voice,
    windows,
)
from splitrt.train.hf import EMBEDDING, HEAD, NORM, Checkpoint
from splitrt.train.tensors import Lazy, write


def shard(
    checkpoint: str | Path,
    to: str | Path,
    *,
    shares: Sequence[float],
    weights: str = "int4",
    longest: int | None = None,
    about: About | None = None,
) -> Shards:
    """Slice a Hugging Face checkpoint for as many devices as `shares`; write `to`, all or nothing.

    shares: each device's speed, in any unit, the hub first.  longest: positions that the devices
    have room for.  ModelError if a device would get nothing.

        shard("checkpoint", "models/in-3", shares=(2, 1, 1))
    """
    source, to = Checkpoint(checkpoint), Path(to)
    if weights not in HOLDS:
        raise ModelError(f"no weights {weights!r}\nhelp: one of {', '.join(HOLDS)}")
    longest = room(source, longest)
    parts = shards.portions(source.shape, shares)
    with anew(to) as made:
        names = shards.folders(len(parts))
        for name, part in zip(names, parts, strict=True):
            (made / name).mkdir()
            _slices(source, made / name, part, weights)
            _turns(source, made / name / TURNS, longest)
        _hub(source, made / names[0], weights)
        told = about or About(recipe=f"splitrt split {source.folder.name} --star {len(parts)}")
        given = {"provenance": asdict(told), "weights": weights, "longest": longest}
        devices = [
            _said(made / name, part, share)
            for name, part, share in zip(names, parts, shares, strict=True)
        ]
        sign(source, made, KIND, given, {"devices": devices})
        return Shards.load(made)


def _said(folder: Path, part: Portion, share: float) -> dict[str, object]:
    files = {path.name: digest(path) for path in sorted(folder.iterdir())}
    return Device(
        folder=folder.name, share=share, groups=part.groups, columns=part.columns, files=files
    ).model_dump(mode="json")


def _slices(source: Checkpoint, folder: Path, part: Portion, weights: str) -> None:
    """The two graphs of every layer."""
    for i in range(source.shape.layers):
        one = layer(source, i, part)
        attending(folder / shards.attention(i), one, weights=weights)
        feeding(folder / shards.feed(i), one, weights=weights)


def _turns(source: Checkpoint, path: Path, longest: int) -> None:
    """What no device need compute for itself: their libraries might round it differently."""
    arrays = dict(zip(("cosines", "sines"), cosines(source.shape.rope, longest), strict=True))
    write(path, {name: Lazy("F32", one.shape, _given(one)) for name, one in arrays.items()})


def _given(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: array


def _hub(source: Checkpoint, folder: Path, weights: str) -> None:
    """From tokens to rows, and from a last row to logits."""
    embedding(folder / shards.EMBEDDING, table(source, EMBEDDING), weights=weights)
    gain = source.tensor(NORM)
    exit_graph(folder / shards.NORM, gain, source.shape.eps, None, weights=weights)
    voice(folder / shards.VOICE, table(source, HEAD), weights=weights)
    words(source, folder)


def embedding(path: Path, matrix: Matrix, *, weights: str) -> None:
    """Write the embedding: token ids [T] in, rows [T, hidden] out."""
    graph = Graph(weights)
    graph.embedding(graph.takes("ids", TensorProto.INT64, ["T"]), "rows", matrix)
    graph.gives("rows", ["T", matrix.columns])
    graph.save(path)


def attending(path: Path, one: Layer, *, weights: str) -> None:
    """Write a part of a layer's attention: rows [T, hidden] in, what it adds to them out.

    K/V buffers keys.0 and values.0 are those of `segment`; `cosines` and `sines` [positions,
    head / 2] are of the device, not in each graph.
    """
    graph, part = Graph(weights), one.attention
    x = _rows(graph, one)
    for name in ("last", "total"):
        graph.takes(name, TensorProto.INT32, [1])
    for name in ("cosines", "sines"):
        graph.takes(name, TensorProto.FLOAT, ["positions", part.head // 2])
    shape = [1, part.kv_heads, "longest", part.head]
    for name in ("keys.0", "values.0"):
        graph.takes(name, TensorProto.FLOAT, shape)
    y = graph.norm(x, "before", one.before, one.eps)
    seen: Mapping[int, str] = windows(graph, x, {part.window})
    _part(graph, attention(graph, y, "attention", part, 0, seen), one)
    for name in ("keys.0", "values.0"):
        graph.gives(f"{name}.after", shape)
    graph.save(path)


def feeding(path: Path, one: Layer, *, weights: str) -> None:
    """Write a part of a layer's feed-forward network: rows [T, hidden] in, what it adds out."""
    graph = Graph(weights)
    y = graph.norm(_rows(graph, one), "between", one.between, one.eps)
    _part(graph, feed(graph, y, "feed", one.feed), one)
    graph.save(path)


def _rows(graph: Graph, one: Layer) -> str:
    rows = graph.takes("rows", TensorProto.FLOAT, ["T", len(one.before)])
    return graph.node("Unsqueeze", [rows, graph.array("first", np.array([0]))], "x")


def _part(graph: Graph, added: str, one: Layer) -> None:
    graph.node("Squeeze", [added, "first"], "part")
    graph.gives("part", ["T", len(one.before)])
