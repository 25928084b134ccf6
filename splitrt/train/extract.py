"""A part of a flat graph: what lies between some of its tensors and some others."""

from __future__ import annotations

import operator
from collections.abc import Iterable
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
            raise ModelError("the input itself is still needed behind the cut")
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
    """A size of an earlier tensor, taken from the tensor that crosses."""
    wanted = node.meta.get("val")
    for place, size in enumerate(start.meta["val"].shape):
        if isinstance(size, int) or isinstance(wanted, int):
            continue
        for times in _ratio(size, wanted):
            read = fresh.call_function(torch.ops.aten.sym_size.int, (made, place))
            read.meta = {"val": size}
            if times == 1:
                return read
            read = fresh.call_function(operator.floordiv, (read, times))
            read.meta = {"val": wanted}
            return read
    raise ModelError(f"{node.name} cannot be read from what crosses")


def _ratio(size: Any, wanted: Any) -> Iterable[int]:
    """k, where size = k · wanted whatever the batch."""
    ratio = size.node.expr / wanted.node.expr
    return [int(ratio)] if ratio.is_Integer and ratio > 0 else []
