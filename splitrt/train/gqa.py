"""Decoder layers as ONNX graphs built by hand: attention over shared K/V buffers, fused norms.

What a layer is made of (`Attention`, `Feed`) is given; which tensors those are is decided
elsewhere, so that a layer may as well be a part of one: some of its heads, some of its network.
ONNX Runtime's GroupQueryAttention writes new keys and values where the old ones lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from splitrt.core.language import Rope
from splitrt.train.tensors import Lazy, pieces, write

OPSET, IR_VERSION = 17, 8
OURS = "com.microsoft"
BLOCK = 32  # numbers that share a scale
INT8_SUMS = 4  # MatMulNBits' accuracy_level: activations in int8, block by block
EVEN = 16  # the kernel's heads are multiples of it
SMALL = 4096  # bytes; smaller weights lie in the graph itself
SLAB = 1 << 20  # numbers that are quantised at a time
READ = 1 << 22  # numbers of a table that are read at a time
LOW = -1e9  # a score that is none
BITS = {"int8": 8, "int4": 4}
ONNX_TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "I8": TensorProto.INT8}
ONNX_TYPES["U8"] = TensorProto.UINT8
NUMPY_TYPES = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8}


@dataclass(frozen=True, slots=True)
class Matrix:
    """Weights [rows, columns] of a linear map, made when they are written, and its bias [rows].

    part: what `make` gives, of some rows and columns; a large matrix is read so, bit by bit.
    """

    rows: int
    columns: int
    make: Callable[[], np.ndarray]
    bias: np.ndarray | None = None
    part: Callable[[slice, slice], np.ndarray] | None = None

    def some(self, rows: slice) -> Matrix:
        """Those rows of a matrix that has neither bias nor need to be made at once."""
        part = self.part
        assert part is not None and self.bias is None

        def within(inner: slice, columns: slice) -> np.ndarray:
            start = rows.start + (inner.start or 0)
            stop = rows.stop if inner.stop is None else rows.start + inner.stop
            return part(slice(start, stop), columns)

        def whole() -> np.ndarray:
            return within(slice(None), slice(None))

        return Matrix(rows.stop - rows.start, self.columns, whole, part=within)

    def down(self) -> Iterator[np.ndarray]:
        """All of it, some rows after the other."""
        if self.part is None:
            yield self.make()
            return
        for rows in _places(self.rows, self.columns, READ):
            yield self.part(rows, slice(None))

    def across(self) -> Iterator[np.ndarray]:
        """All of it, some columns after the other; of each only a few rows are read at once."""
        if self.part is None:
            yield self.make()
            return
        high = _places(self.rows, self.columns, READ)
        for columns in _places(self.columns, self.rows, READ):
            # Copies: what is read may keep its file mapped.
            yield np.concatenate([self.part(rows, columns).copy() for rows in high])


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention, or some heads of it. head: as the kernel takes it (see `even`).

    qkv: queries, keys and values below one another.  scale: of the products of queries and keys.
    norms: of queries and of keys, [head].  eps: of those norms.  window: positions seen; 0: all.
    """

    heads: int
    kv_heads: int
    head: int
    scale: float
    window: int
    qkv: Matrix
    out: Matrix
    norms: tuple[np.ndarray, np.ndarray] | None = None
    eps: float = 0.0


@dataclass(frozen=True, slots=True)
class Feed:
    """One layer's feed-forward network, or a part of it. up: gate and up below one another."""

    up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class Layer:
    """A decoder layer: the norms [hidden] before attention and before the feed-forward network."""

    before: np.ndarray
    attention: Attention
    between: np.ndarray
    feed: Feed
    eps: float


class Graph:
    """An ONNX graph under construction.

    weights: how its matrices are held.  bare: all of them are inputs, in float32.
    """

    def __init__(self, weights: str, *, bare: bool = False) -> None:
        self.weights, self.bare = "fp32" if bare else weights, bare
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._lazy: dict[str, Lazy] = {}

    def takes(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """Name an input."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def gives(self, name: str, shape: Sequence[int | str]) -> None:
        """Name a float32 output."""
        kind = TensorProto.FLOAT
        self._outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add an operator with one output; its name."""
        self.nodes(kind, inputs, [output], **attributes)
        return output

    def nodes(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> None:
        """Add an operator; `domain` is one of the attributes."""
        name = next(output for output in outputs if output)
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=f"{name}:", **attributes))

    def array(self, name: str, array: np.ndarray) -> str:
        """A weight that exists already: float32, or int64 for shapes and indices."""
        if array.dtype == np.int64:
            value = onnx.numpy_helper.from_array(array)
            return self.node("Constant", [], name, value=value)
        exact = np.ascontiguousarray(array, np.float32)
        return self.weight(name, Lazy("F32", exact.shape, lambda: exact))

    def weight(self, name: str, lazy: Lazy) -> str:
        """A weight that is made when the graph is saved."""
        if self.bare:
            return self.takes(name, TensorProto.FLOAT, lazy.shape)
        self._lazy[name] = lazy
        return name

    def linear(self, x: str, name: str, matrix: Matrix) -> str:
        """x times the matrix, in the graph's kind of weights, and its bias."""
        y = name if matrix.bias is None else f"{name}.product"
        if self.weights in BITS:
            self._quantised(x, y, name, matrix)
        else:
            self.node("MatMul", [x, self._plain(name, matrix)], y)
        if matrix.bias is None:
            return y
        return self.node("Add", [y, self.array(f"{name}.bias", matrix.bias)], name)

    def _plain(self, name: str, matrix: Matrix) -> str:
        """fp16 is what the file holds; ONNX Runtime casts it once, when it loads it."""
        half = self.weights == "fp16"
        kind = np.float16 if half else np.float32
        shape = (matrix.columns, matrix.rows)
        made = Lazy(
            "F16" if half else "F32",
            shape,
            lambda: (halved(some, kind).T for some in matrix.across()),
        )
        weight = self.weight(f"{name}.weight", made)
        if not half:
            return weight
        return self.node("Cast", [weight], f"{name}.wide", to=TensorProto.FLOAT)

    def _quantised(self, x: str, y: str, name: str, matrix: Matrix) -> None:
        bits, blocks = BITS[self.weights], -(-matrix.columns // BLOCK)
        packed = (matrix.rows, blocks, BLOCK * bits // 8)
        made = Lazy("U8", packed, lambda: (codes(some, bits) for some in matrix.down()))
        steps = Lazy(
            "F32", (matrix.rows * blocks,), lambda: (scales(some, bits) for some in matrix.down())
        )
        weights = [self.weight(f"{name}.codes", made), self.weight(f"{name}.scales", steps)]
        self.node(
            "MatMulNBits",
            [x, *weights],
            y,
            domain=OURS,
            K=matrix.columns,
            N=matrix.rows,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=INT8_SUMS,
        )

    def norm(self, x: str, name: str, gain: np.ndarray, eps: float) -> str:
        """x over its root mean square, times the gain: Zhang and Sennrich 2019."""
        inputs = [x, self.array(f"{name}.gain", gain)]
        return self.node("SimplifiedLayerNormalization", inputs, name, axis=-1, epsilon=eps)

    def added_norm(
        self, x: str, more: str, name: str, gain: np.ndarray, eps: float
    ) -> tuple[str, str]:
        """The norm of x + more, and that sum."""
        inputs = [x, more, self.array(f"{name}.gain", gain)]
        outputs = [name, "", "", f"{name}.sum"]
        kind = "SkipSimplifiedLayerNormalization"
        self.nodes(kind, inputs, outputs, domain=OURS, epsilon=eps)
        return outputs[0], outputs[3]

    def embedding(self, ids: str, name: str, table: Matrix) -> str:
        """Rows of the table by `ids`: float32, whatever it is held in."""
        if self.weights in BITS:
            shape = table.rows, table.columns
            rows = Lazy("I8", shape, lambda: (row_codes(some) for some in table.down()))
            steps = Lazy(
                "F32", (table.rows, 1), lambda: (row_scales(some) for some in table.down())
            )
            row = self.node("Gather", [self.weight(f"{name}.codes", rows), ids], f"{name}.row")
            step = self.node("Gather", [self.weight(f"{name}.scales", steps), ids], f"{name}.step")
            wide = self.node("Cast", [row], f"{name}.wide", to=TensorProto.FLOAT)
            return self.node("Mul", [wide, step], name)
        half = self.weights == "fp16"
        kind = np.float16 if half else np.float32
        shape = (table.rows, table.columns)
        made = Lazy(
            "F16" if half else "F32", shape, lambda: (halved(some, kind) for some in table.down())
        )
        row = self.node("Gather", [self.weight(f"{name}.weight", made), ids], f"{name}.row")
        return self.node("Cast", [row], name, to=TensorProto.FLOAT)

    def save(self, path: Path, *, small: int = SMALL) -> None:
        """Write the graph, and beside it, under the same name with .bin, its larger weights.

        small: bytes from which a weight is one of those.
        """
        inside = {name: lazy for name, lazy in self._lazy.items() if lazy.size < small}
        large = {name: lazy for name, lazy in self._lazy.items() if name not in inside}
        weights = [_inside(name, lazy) for name, lazy in inside.items()]
        if large:
            places = write(path.with_suffix(".bin"), large)
            file = path.with_suffix(".bin").name
            weights += [_outside(name, large[name], file, places[name]) for name in large]
        graph = helper.make_graph(self._nodes, path.stem, self._inputs, self._outputs, weights)
        sets = [helper.make_opsetid("", OPSET), helper.make_opsetid(OURS, 1)]
        model = helper.make_model(graph, opset_imports=sets, ir_version=IR_VERSION)
        path.write_bytes(model.SerializeToString())


def segment(
    path: Path, layers: Sequence[Layer], turns: tuple[np.ndarray, np.ndarray], *, weights: str,
    hidden: int, table: Matrix | None = None,
) -> None:  # fmt: skip
    """Write layers that follow one another: rows [T, hidden], or with a `table` token ids [T], in.

    turns: cosines and sines of each position, of `cosines`.  Beside the rows each layer takes its
    K/V buffers [1, kv_heads, longest, head] and gives the same ones.
    """
    graph = Graph(weights)
    if table is None:
        x = graph.takes("rows", TensorProto.FLOAT, ["T", hidden])
    else:
        x = graph.embedding(graph.takes("ids", TensorProto.INT64, ["T"]), "embedding", table)
    x = graph.node("Unsqueeze", [x, graph.array("first", np.array([0]))], "x")
    graph.takes("last", TensorProto.INT32, [1])
    graph.takes("total", TensorProto.INT32, [1])
    graph.array("cosines", turns[0])
    graph.array("sines", turns[1])
    seen = windows(graph, x, {one.attention.window for one in layers})
    more = ""
    for i, one in enumerate(layers):
        if more:
            y, x = graph.added_norm(x, more, f"{i}.before", one.before, one.eps)
        else:
            y = graph.norm(x, f"{i}.before", one.before, one.eps)
        more = attention(graph, y, f"{i}.attention", one.attention, i, seen)
        y, x = graph.added_norm(x, more, f"{i}.between", one.between, one.eps)
        more = feed(graph, y, f"{i}.feed", one.feed)
    x = graph.node("Add", [x, more], "sum")
    graph.node("Squeeze", [x, "first"], "after")
    graph.gives("after", ["T", hidden])
    for i, one in enumerate(layers):
        shape = [1, one.attention.kv_heads, "longest", one.attention.head]
        for name in ("keys", "values"):
            graph.takes(f"{name}.{i}", TensorProto.FLOAT, shape)
            graph.gives(f"{name}.{i}.after", shape)
    graph.save(path)


def windows(graph: Graph, x: str, sizes: Set[int]) -> dict[int, str]:
    """For each window but 0, what is added to scores [1, 1, T, total]: far positions vanish.

    Not the kernel's own local_window_size: with it ONNX Runtime 1.23 sees one position more than
    1.31 does.
    """
    sizes = sizes - {0}
    if not sizes:
        return {}
    one, none = graph.array("one", np.array(1)), graph.array("none", np.array(0))
    count = graph.node("Shape", [x], "window.count", start=1, end=2)
    wide = graph.node("Cast", ["total"], "window.wide", to=TensorProto.INT64)
    begin = graph.node("Squeeze", [graph.node("Sub", [wide, count], "window.new")], "window.begin")
    end = graph.node("Squeeze", [wide], "window.end")
    rows = graph.node("Range", [begin, end, one], "window.rows")
    column = graph.node("Unsqueeze", [rows, graph.array("second", np.array([1]))], "window.column")
    keys = graph.node("Range", [none, end, one], "window.keys")
    behind = graph.node("Sub", [column, keys], "window.behind")
    low, zero = graph.array("low", np.array(LOW)), graph.array("zero", np.array(0.0))
    lead = graph.array("leading", np.array([0, 1]))
    found = {}
    for size in sorted(sizes):
        name = f"window.{size}"
        limit = graph.array(f"{name}.limit", np.array(size))
        far = graph.node("GreaterOrEqual", [behind, limit], f"{name}.far")
        flat = graph.node("Where", [far, low, zero], f"{name}.flat")
        found[size] = graph.node("Unsqueeze", [flat, lead], name)
    return found


def attention(
    graph: Graph, x: str, name: str, part: Attention, layer: int, seen: Mapping[int, str]
) -> str:
    """What attention adds to the rows; normed rows [1, T, hidden] in.

    `layer` numbers the K/V buffers; the graph's `last` is the last position's index, `total` the
    number of positions. seen: of `windows`.
    """
    both = graph.linear(x, f"{name}.qkv", part.qkv)
    inputs = [both, "", ""] if part.norms is None else _normed(graph, both, name, part)
    inputs += [f"keys.{layer}", f"values.{layer}", "last", "total", "cosines", "sines"]
    inputs += ["", seen[part.window]] if part.window else []
    outputs = [f"{name}.mixed", f"keys.{layer}.after", f"values.{layer}.after"]
    graph.nodes(
        "GroupQueryAttention",
        inputs,
        outputs,
        domain=OURS,
        num_heads=part.heads,
        kv_num_heads=part.kv_heads,
        do_rotary=1,
        scale=part.scale,
    )
    return graph.linear(outputs[0], f"{name}.out", part.out)


def _normed(graph: Graph, both: str, name: str, part: Attention) -> list[str]:
    """Queries and keys normed head by head, and the values."""
    widths = [part.heads * part.head, part.kv_heads * part.head, part.kv_heads * part.head]
    parts = [f"{name}.{one}" for one in ("q", "k", "v")]
    graph.nodes("Split", [both, graph.array(f"{name}.widths", np.array(widths))], parts, axis=2)
    found = []
    for one, gain, heads in zip(parts, part.norms or (), (part.heads, part.kv_heads), strict=False):
        apart = graph.array(f"{one}.apart", np.array([0, 0, heads, part.head]))
        joined = graph.array(f"{one}.joined", np.array([0, 0, heads * part.head]))
        y = graph.node("Reshape", [one, apart], f"{one}.heads")
        y = graph.norm(y, f"{one}.norm", gain, part.eps)
        found.append(graph.node("Reshape", [y, joined], f"{one}.ready"))
    return [*found, parts[2]]


def feed(graph: Graph, x: str, name: str, part: Feed) -> str:
    """What the feed-forward network adds to the rows: SwiGLU (Shazeer 2020)."""
    half = part.up.rows // 2
    both = graph.linear(x, f"{name}.up", part.up)
    parts = [f"{name}.gate", f"{name}.value"]
    sizes = graph.array(f"{name}.sizes", np.array([half, half]))
    graph.nodes("Split", [both, sizes], parts, axis=2)
    open_ = graph.node("Sigmoid", [parts[0]], f"{name}.open")
    y = graph.node("Mul", [parts[0], open_], f"{name}.silu")
    y = graph.node("Mul", [y, parts[1]], f"{name}.inner")
    return graph.linear(y, f"{name}.down", part.down)


def exit_graph(
    path: Path,
    gain: np.ndarray,
    eps: float,
    adapter: np.ndarray | None,
    *,
    weights: str,
    rows: int | str = 1,
) -> None:
    """Write an exit: rows [rows, hidden], normed, plus the adapter's correction if it has one."""
    graph, hidden = Graph(weights), len(gain)
    x = graph.takes("row", TensorProto.FLOAT, [rows, hidden])
    if adapter is None:
        graph.norm(x, "ready", gain, eps)
    else:
        y = graph.norm(x, "normed", gain, eps)
        correction = graph.linear(y, "adapter", Matrix(hidden, hidden, lambda: adapter))
        graph.node("Add", [y, correction], "ready")
    graph.gives("ready", [rows, hidden])
    graph.save(path)


def voice(
    path: Path, head: Matrix, *, weights: str, rows: int | str = 1, small: int = SMALL
) -> None:
    """Write the LM head: normed rows [rows, hidden] in, logits [rows, vocab] out."""
    graph = Graph(weights)
    graph.takes("ready", TensorProto.FLOAT, [rows, head.columns])
    graph.linear("ready", "logits", head)
    graph.gives("logits", [rows, head.rows])
    graph.save(path, small=small)


def even(head: int) -> int:
    """The kernel's head size for one of `head` numbers."""
    return -(-head // EVEN) * EVEN


def cosines(rope: Rope, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [longest, even(head) / 2] of each position; angles in fp32, as trained."""
    turned = np.array(rope.frequencies, np.float32)
    angles = np.arange(longest, dtype=np.float32)[:, None] * turned
    wide = np.pad(angles, ((0, 0), (0, even(2 * len(turned)) // 2 - len(turned))))
    return np.float32(rope.scale) * np.cos(wide), np.float32(rope.scale) * np.sin(wide)


def halves(rows: np.ndarray, head: int) -> np.ndarray:
    """Rows of queries or keys [heads * head, ...] -> the same with each half of a head padded.

    Rotation pairs number i with i + head / 2: padded in halves, pairs stay pairs, and zeros add
    nothing to a product.
    """
    size, half = even(head), head // 2
    heads = rows.reshape(-1, head, *rows.shape[1:])
    wide = np.zeros((len(heads), size, *rows.shape[1:]), np.float32)
    wide[:, :half], wide[:, size // 2 : size // 2 + half] = heads[:, :half], heads[:, half:]
    return wide.reshape(-1, *rows.shape[1:])


def ends(rows: np.ndarray, head: int) -> np.ndarray:
    """Rows of values [heads * head, ...] -> the same with each head padded at its end."""
    heads = rows.reshape(-1, head, *rows.shape[1:])
    wide = np.zeros((len(heads), even(head), *rows.shape[1:]), np.float32)
    wide[:, :head] = heads
    return wide.reshape(-1, *rows.shape[1:])


def halved(matrix: np.ndarray, kind: type) -> np.ndarray:
    """The matrix as `kind`; what a float16 cannot hold becomes its largest."""
    if kind is np.float16:
        matrix = np.clip(matrix, -65504, 65504)
    return matrix.astype(kind, copy=False)


def scales(matrix: np.ndarray, bits: int) -> np.ndarray:
    """float32 [rows * blocks]: of each block, so that its number of largest size is a code's end.

    For int4 the end is the negative one, -8: it has one code more.
    """
    found = [_steps(slab, bits) for slab in _slabs(matrix)]
    return np.concatenate(found).reshape(-1)


def codes(matrix: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [rows, blocks, BLOCK * bits / 8]: around the middle, two of four bits low first."""
    return np.concatenate([_codes(slab, bits) for slab in _slabs(matrix)])


def _codes(slab: np.ndarray, bits: int) -> np.ndarray:
    middle = 1 << bits - 1
    steps = _steps(slab, bits)[:, :, None]
    inverse = np.divide(1, steps, out=np.zeros_like(steps), where=steps != 0)
    found = np.rint(_blocks(slab) * inverse) + middle
    found = np.clip(found, 0, 2 * middle - 1).astype(np.uint8)
    return found if bits == 8 else found[:, :, ::2] | found[:, :, 1::2] << 4


def _steps(slab: np.ndarray, bits: int) -> np.ndarray:
    blocks = _blocks(slab)
    if bits == 8:
        return np.abs(blocks).max(2) / 127
    places = np.abs(blocks).argmax(2)[:, :, None]
    return np.take_along_axis(blocks, places, 2)[:, :, 0] / -8


def _blocks(slab: np.ndarray) -> np.ndarray:
    """[rows, columns] -> [rows, blocks, BLOCK], the last one padded with zeros."""
    wide = np.pad(slab, ((0, 0), (0, -slab.shape[1] % BLOCK)))
    return wide.reshape(len(slab), -1, BLOCK)


def _slabs(matrix: np.ndarray) -> list[np.ndarray]:
    return [matrix[rows] for rows in _places(*matrix.shape, SLAB)]


def _places(count: int, size: int, most: int) -> list[slice]:
    """`count` rows of `size` numbers, at most so many numbers at a time, or one row."""
    step = max(1, most // size)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def row_scales(table: np.ndarray) -> np.ndarray:
    """float32 [rows, 1]: a table row's largest size is 127."""
    return np.abs(table).max(1, keepdims=True) / 127


def row_codes(table: np.ndarray) -> np.ndarray:
    """int8 [rows, columns]."""
    found = []
    for slab in _slabs(table):
        steps = row_scales(slab)
        inverse = np.divide(1, steps, out=np.zeros_like(steps), where=steps != 0)
        found.append(np.rint(slab * inverse).astype(np.int8))
    return np.concatenate(found)


def _inside(name: str, lazy: Lazy) -> onnx.TensorProto:
    bytes_ = b"".join(piece.tobytes() for piece in pieces(lazy))
    array = np.frombuffer(bytes_, NUMPY_TYPES[lazy.dtype])
    return onnx.numpy_helper.from_array(array.reshape(lazy.shape), name)


def _outside(name: str, lazy: Lazy, file: str, place: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=ONNX_TYPES[lazy.dtype], dims=lazy.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": file, "offset": place, "length": lazy.size}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
