"""A checkpoint sliced for a star: what `splitrt split DIR --star N` does, one slice at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from onnx import TensorProto

from splitrt.core import shards
from splitrt.core.shards import KIND, PLAINLY, TURNS, Device, Portion, Shards
from splitrt.errors import ModelError
from splitrt.train.divide import HOLDS, anew, digest, layer, room, sign, table, words
from splitrt.train.export import About
from splitrt.train.gqa import (
    BITS,
    Graph,
    Layer,
    Matrix,
    attention,
    cosines,
    exit_graph,
    feed,
    halved,
    row_codes,
    row_scales,
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
    return Device(folder=folder.name, share=share, files=files, **part.model_dump()).model_dump(
        mode="json"
    )


def _slices(source: Checkpoint, folder: Path, part: Portion, weights: str) -> None:
    """The two graphs of every layer; and those that serve any layer, their weights bound to it."""
    windows = source.shape.windows
    for i in range(source.shape.layers):
        one = layer(source, i, part)
        attending(folder / shards.attention(i), one, Graph(weights))
        feeding(folder / shards.feed(i), one, Graph(weights))
        if weights in PLAINLY and windows.index(windows[i]) == i:
            path = folder / shards.bare_attention(windows[i])
            attending(path, one, Graph(weights, bare=True))
    if weights in PLAINLY:
        feeding(folder / shards.BARE_FEED, one, Graph(weights, bare=True))


def _turns(source: Checkpoint, path: Path, longest: int) -> None:
    """What no device need compute for itself: their libraries might round it differently."""
    arrays = dict(zip(("cosines", "sines"), cosines(source.shape.rope, longest), strict=True))
    write(path, {name: Lazy("F32", one.shape, _given(one)) for name, one in arrays.items()})


def _given(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: array


def _hub(source: Checkpoint, folder: Path, weights: str) -> None:
    """From tokens to rows, and from last rows to logits, some of the vocabulary at a time."""
    embedding(folder / shards.EMBEDDING, table(source, EMBEDDING), weights=weights)
    gain, head = source.tensor(NORM), table(source, HEAD)
    exit_graph(folder / shards.NORM, gain, source.shape.eps, None, weights=weights, rows="T")
    for i, rows in enumerate(shards.tiles(source.shape, weights)):
        tile, path = head.some(slice(*rows)), folder / shards.voice(i)
        voice(path, tile, weights=weights, rows="T", small=0)
    if weights in PLAINLY:
        bare_voice(folder / shards.BARE_VOICE, head.columns)
    words(source, folder)


def embedding(path: Path, matrix: Matrix, *, weights: str) -> None:
    """Write the embedding's rows: codes and scales row by row, or weights."""
    size = (matrix.rows, matrix.columns)
    if weights in BITS:
        rows = Lazy("I8", size, lambda: (row_codes(some) for some in matrix.down()))
        steps = Lazy("F32", (matrix.rows, 1), lambda: (row_scales(some) for some in matrix.down()))
        write(path, {"codes": rows, "scales": steps})
        return
    half = weights == "fp16"
    kind = np.float16 if half else np.float32
    name = "F16" if half else "F32"
    made = Lazy(name, size, lambda: (halved(some, kind) for some in matrix.down()))
    write(path, {"weight": made})


def bare_voice(path: Path, hidden: int) -> None:
    """Write the LM head's graph for any rows of the vocabulary: they are an input."""
    graph = Graph("fp32")
    graph.takes("ready", TensorProto.FLOAT, ["T", hidden])
    graph.takes("logits.weight", TensorProto.FLOAT, [hidden, "rows"])
    graph.node("MatMul", ["ready", "logits.weight"], "logits")
    graph.gives("logits", ["T", "rows"])
    graph.save(path)


def attending(path: Path, one: Layer, graph: Graph) -> None:
    """Write a part of a layer's attention: rows [T, hidden] in, what it adds to them out.

    K/V buffers keys.0 and values.0 are those of `segment`; `cosines` and `sines` [positions,
    head / 2] are of the device, not in each graph.
    """
    part = one.attention
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
    graph.save(path, small=0)


def feeding(path: Path, one: Layer, graph: Graph) -> None:
    """Write a part of a layer's feed-forward network: rows [T, hidden] in, what it adds out."""
    y = graph.norm(_rows(graph, one), "between", one.between, one.eps)
    _part(graph, feed(graph, y, "feed", one.feed), one)
    graph.save(path, small=0)


def _rows(graph: Graph, one: Layer) -> str:
    rows = graph.takes("rows", TensorProto.FLOAT, ["T", len(one.before)])
    return graph.node("Unsqueeze", [rows, graph.array("first", np.array([0]))], "x")


def _part(graph: Graph, added: str, one: Layer) -> None:
    graph.node("Squeeze", [added, "first"], "part")
    graph.gives("part", ["T", len(one.before)])
