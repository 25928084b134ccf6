"""A part of a flat graph: what lies between some of its tensors and some others."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from splitrt.errors import ModelError

SHAPE_READS = {
    torch.ops.aten.sym_size.int,
    torch.ops.aten.sym_numel.default,
    torch.ops.aten.sym_stride.int,
    torch.ops.aten.sym_storage_offset.default,
}


def extract(
    module: fx.GraphModule, starts: list[fx.Node], results: list[fx.Node], *, single: bool = False
) -> fx.GraphModule:
    """What computes the tensors `results` from the tensors `starts`; shares the weights.

    Returns a tuple, or with `single` the one tensor. ModelError if an input is still needed, or
    a size that the tensors at the start do not tell.
    """
    fresh = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for start in starts:
        name = str(start.target) if start.op == "placeholder" else "features"
        made[start] = fresh.placeholder(name)
        made[start].meta = dict(start.meta)
    for node in _needed(module.graph, starts, results):
        if node.target in SHAPE_READS and node.all_input_nodes[0] not in made:
            made[node] = _reread(fresh, node, starts[0], made[starts[0]])
            continue
        made[node] = fresh.node_copy(node, lambda used: made[used])
        if node.target is torch.ops.aten.view.default:  # what crossed has other strides
            made[node].target = torch.ops.aten.reshape.default
    outputs = [made[result] for result in results]
    fresh.output(outputs[0] if single else tuple(outputs))
    fresh.lint()
    part = fx.GraphModule(module, fresh)
    part.delete_all_unused_submodules()
    return part.eval()


def _needed(graph: fx.Graph, starts: list[fx.Node], results: list[fx.Node]) -> list[fx.Node]:
    """What has to be computed, in order; sizes of what lies before the start are read anew."""
    found: set[fx.Node] = set()
    behind = _behind(graph, starts)
    left = list(results)
    while left:
        node = left.pop()
        if node in found or node in starts:
            continue
        if node.op == "placeholder":
            raise ModelError(f"the input {node.name!r} is still needed behind the cut")
        found.add(node)
        reads = node.target in SHAPE_READS
        left += [one for one in node.all_input_nodes if not reads or one in behind]
    return [node for node in graph.nodes if node in found]


def _behind(graph: fx.Graph, starts: list[fx.Node]) -> set[fx.Node]:
    found = set(starts)
    for node in graph.nodes:
        if any(used in found for used in node.all_input_nodes):
            found.add(node)
    return found


def _reread(fresh: fx.Graph, node: fx.Node, start: fx.Node, made: fx.Node) -> fx.Node:
    """A size of an earlier tensor, made of the sizes of the tensor that crosses."""
    wanted = node.meta.get("val")
    known = _known(start)
    poly = None if isinstance(wanted, int) else wanted.node.expr.as_poly(*known)
    if poly is None or any(not factor.is_Integer for _, factor in poly.terms()):
        raise ModelError(f"{node.name} cannot be read from what crosses")
    reads = {symbol: _read(fresh, made, *place) for symbol, place in known.items()}
    total: Any = 0
    for powers, factor in poly.terms():
        term: Any = int(factor)
        for symbol, power in zip(known, powers, strict=True):
            for _ in range(power):
                term = _joined(fresh, operator.mul, reads[symbol], term, 1)
        total = _joined(fresh, operator.add, term, total, 0)
    if isinstance(total, int):
        raise ModelError(f"{node.name} cannot be read from what crosses")
    total.meta = {"val": wanted}
    return total


def _known(start: fx.Node) -> dict[Any, tuple[int, int]]:
    """Free sizes (batch, height, width) as symbols: the place and the multiple where they lie."""
    found: dict[Any, tuple[int, int]] = {}
    for place, size in enumerate(start.meta["val"].shape):
        symbols = [] if isinstance(size, int) else list(size.node.expr.free_symbols)
        if len(symbols) == 1 and symbols[0] not in found:
            times = size.node.expr / symbols[0]
            if times.is_Integer and times > 0:
                found[symbols[0]] = (place, int(times))
    return found


def _read(fresh: fx.Graph, made: fx.Node, place: int, times: int) -> fx.Node:
    read = fresh.call_function(torch.ops.aten.sym_size.int, (made, place))
    return read if times == 1 else fresh.call_function(operator.floordiv, (read, times))


def _joined(fresh: fx.Graph, join: Any, left: Any, right: Any, neutral: int) -> Any:
    """left · right or left + right, without a node where one of them changes nothing."""
    if isinstance(left, int) and isinstance(right, int):
        return join(left, right)
    if isinstance(right, int) and right == neutral:
        return left
    return fresh.call_function(join, (left, right))
