"""A module as an ONNX file that old runtimes load: lowest opset, IR 8, weights inside."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import nn

IR_VERSION = 8
WRITES = 18  # the opset of torch's exporter
BATCH = torch.export.Dim("batch", min=1, max=4096)


def save(
    module: nn.Module, example: torch.Tensor, path: Path, *, inputs: str, outputs: Sequence[str]
) -> int:
    """Write `module` with a dynamic batch; returns the opset."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: BATCH},),
            opset_version=WRITES,
            external_data=False,
            verbose=False,
            input_names=[inputs],
            output_names=list(outputs),
        )
    proto = program.model_proto
    proto.ir_version = IR_VERSION
    opset = lower_opset(proto)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return opset


def lower_opset(proto: onnx.ModelProto) -> int:
    """Relabel to the lowest opset in which every operator is what it is now; returns it.

    An operator whose schema did not change since opset n means the same under n, so nothing
    is converted. (The exporter's own conversion fails silently.)
    """
    stated = next(entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    since = [
        onnx.defs.get_schema(op, stated.version, "").since_version for op in _operators(proto.graph)
    ]
    stated.version = max([13, *since])  # 13: the first whose Cast and Softmax are today's
    return stated.version


def _operators(graph: onnx.GraphProto) -> set[str]:
    found = {node.op_type for node in graph.node if node.domain in ("", "ai.onnx")}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _operators(attribute.g)
    return found
