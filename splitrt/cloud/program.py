"""Exported torch programs, opened only when nothing in them would be unpickled."""

from __future__ import annotations

import json
import operator
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from splitrt.errors import ModelError

# What torch 2.13 writes for a program of plain tensors. Pickles hide in other members
# (custom_obj_*, opaque_obj_*), in entries with use_pickle, and in sample inputs that are not empty.
PLAIN = re.compile(
    r"[^/]+/(data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id))"
)
# torch.export.load hands these strings to sympy, which evaluates them as Python.
SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(, (positive|nonnegative|integer)=(True|False))*\)")
ARITHMETIC = re.compile(
    r"([\s,()+-]|\*(?!\*)|//|\d{1,10}\b|(Integer|Add|Mul|Mod|FloorDiv|CleanDiv|Max|Min|Eq|Ne|Ge|Gt|Le|Lt)\()*"
)
LONGEST_EXPRESSION = 2000  # characters
TARGET = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)[a-z_0-9]+\.[A-Za-z_0-9]+"
    r"|_operator\.(add|sub|mul|floordiv|mod|neg|eq|ne|ge|gt|le|lt|getitem)"
    r"|torch\.sym_(max|min|not)"
)
SAMPLE = re.compile(r"[^/]+/data/sample_inputs/model\.pt")
LARGEST_CONFIG = 64 << 20
USUAL = 16  # frames of a batch, for which weights are ordered; others work too


def load_program(path: Path) -> torch.export.ExportedProgram:
    """torch.export.load, after a look inside; about 2 s. ModelError if anything is a pickle."""
    try:
        _look(path)
        return torch.export.load(str(path))
    except ModelError:
        raise
    except Exception as error:  # what torch and zipfile raise at a wrong file has no common tree
        raise ModelError(f"{path.name} is not an exported program\nhelp: export again") from error


def prepare(module: torch.fx.GraphModule, device: torch.device) -> None:
    """Leave out what the tail never uses; on a CPU order the convolutions' weights once.

    Else oneDNN orders them at every call: a third of the time of one frame, a tenth of 32. Sums
    are taken in another order, so outputs differ by rounding.
    """
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        convolution = torch.ops.aten.conv2d.default
        for node in module.graph.find_nodes(op="call_function", target=convolution):
            _order(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _order(module: torch.fx.GraphModule, node: torch.fx.Node) -> None:
    """Let one convolution of fixed size take its weights as oneDNN wants them."""
    given = node.normalized_arguments(module, normalize_to_only_use_kwargs=True)
    if given is None or given.kwargs["weight"].op != "get_attr":
        return
    said = given.kwargs
    weight = operator.attrgetter(said["weight"].target)(module).detach()
    size = said["input"].meta["val"].shape[1:]
    if weight.dtype != torch.float32 or not all(isinstance(side, int) for side in size):
        return
    how = [said["padding"], said["stride"], said["dilation"], said["groups"]]
    ordered = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, [USUAL, *size])
    name = f"ordered_{node.name}"
    module.register_buffer(name, ordered, persistent=False)
    with module.graph.inserting_before(node):
        place = module.graph.get_attr(name)
        arguments = (said["input"], place, said["bias"], *how, "none", [], "")
        faster = module.graph.call_function(
            torch.ops.mkldnn._convolution_pointwise.default, arguments
        )
    faster.meta = node.meta
    node.replace_all_uses_with(faster)
    module.graph.erase_node(node)


def _look(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename
            if SAMPLE.fullmatch(name) and member.file_size == 0:
                continue
            if not PLAIN.fullmatch(name):
                raise ModelError(f"{path.name} holds {name!r}, which may be a pickle\n{HELP}")
            if name.endswith(".json"):
                if member.file_size > LARGEST_CONFIG:
                    raise ModelError(f"{path.name}: {name!r} is too large")
                table = json.loads(archive.read(member))
                if name.endswith("_config.json"):
                    _plain_tensors(path, table)
                else:
                    _plain_graph(path, table)


def _plain_tensors(path: Path, table: Any) -> None:
    for name, entry in table["config"].items():
        plain = re.fullmatch(r"(weight|tensor)_\d+", str(entry["path_name"]))
        if entry["use_pickle"] is not False or not plain:
            raise ModelError(f"{path.name} holds {name!r} as a pickle\n{HELP}")


def _plain_graph(path: Path, program: Any) -> None:
    """ModelError unless every string that loading would evaluate or look up is harmless."""
    if program.get("guards_code"):
        raise ModelError(f"{path.name} holds guards, which are Python\n{HELP}")
    todo = [program]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        elif isinstance(item, dict):
            todo += item.values()
            expression = item.get("expr_str", "0")
            if not isinstance(expression, str) or not _arithmetic(expression):
                raise ModelError(f"{path.name} holds an expression that is no arithmetic\n{HELP}")
            target = item.get("target")
            if isinstance(target, str) and "inputs" in item and not TARGET.fullmatch(target):
                raise ModelError(f"{path.name} calls {target[:100]!r}, no tensor operator\n{HELP}")


def _arithmetic(expression: str) -> bool:
    if len(expression) > LONGEST_EXPRESSION:
        return False
    return ARITHMETIC.fullmatch(SYMBOL.sub("0", expression)) is not None


HELP = "help: export again with splitrt; it writes plain tensors only"
