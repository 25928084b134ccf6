"""A module as an ONNX file that old runtimes load: lowest opset, IR 8, weights inside."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

IR_VERSION = 8
WRITES = 18  # the opset of torch's exporter
OLDEST = 13  # the first whose Cast, Softmax and reductions are like today's
REDUCTIONS = {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"}


def save(
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    shapes: tuple[Any, ...],
) -> int:
    """Write `module`, whose dimensions `shapes` are free; returns the opset."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            tuple(examples),
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=WRITES,
            external_data=False,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
        )
    proto = program.model_proto
    proto.ir_version = IR_VERSION
    _forget(proto)
    opset = lower_opset(proto)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return opset


def _forget(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes: stack traces with the paths of the machine that exported."""
    graph = proto.graph
    parts = [proto, graph, *_nodes(graph), *graph.value_info, *graph.input, *graph.output]
    for part in [*parts, *graph.initializer]:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def lower_opset(proto: onnx.ModelProto) -> int:
    """Relabel to the lowest opset in which every operator is what it is now; returns it.

    An operator whose schema did not change since opset n means the same under n. Only
    reductions are rewritten: until 17 their axes were an attribute. (The exporter's own
    conversion fails silently.)
    """
    stated = next(entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes = list(_nodes(proto.graph))
    reductions = [node for node in nodes if _may_have_attribute(node, constants)]
    others = {node.op_type for node in nodes} - REDUCTIONS
    others |= {node.op_type for node in nodes if node not in reductions} & REDUCTIONS
    oldest = max([OLDEST, *(_since(operator, stated.version) for operator in others)])
    if oldest < stated.version:
        for node in reductions:
            _give_attribute(node, constants)
        stated.version = oldest
    return stated.version


def _since(operator: str, version: int) -> int:
    return onnx.defs.get_schema(operator, version, "").since_version


def _may_have_attribute(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    return node.op_type in REDUCTIONS and (len(node.input) == 1 or node.input[1] in constants)


def _give_attribute(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> None:
    """The constant axes of a reduction as the attribute that they were before opset 18."""
    kept = [one for one in node.attribute if one.name != "noop_with_empty_axes"]
    if len(node.input) == 2:
        axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
        kept.append(onnx.helper.make_attribute("axes", axes))
        del node.input[1]
    del node.attribute[:]
    node.attribute.extend(kept)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        if node.domain in ("", "ai.onnx"):
            yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
