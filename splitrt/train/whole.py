"""The model as the user has it: found by MODULE:CALLABLE."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from splitrt.errors import ModelError


def load(spec: str) -> nn.Module:
    """The model that MODULE:CALLABLE returns, in eval mode.

    MODULE is importable from here or the path of a .py file. ModelError says what is wrong.
    """
    if spec.endswith(".onnx"):
        raise ModelError(
            f"{spec} is an ONNX file, and a cut is made in torch\n"
            "help: write MODULE:CALLABLE, which returns the torch.nn.Module it was exported from"
        )
    place, colon, name = spec.partition(":")
    if not (place and colon and name):
        raise ModelError(
            f"{spec!r} names no model\nhelp: write MODULE:CALLABLE, as in nets:resnet50"
        )
    module = _module(place)
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"define {name}() there"
        raise ModelError(f"{place} has no {name!r}\nhelp: {hint}")
    model = getattr(module, name)
    if callable(model) and not isinstance(model, nn.Module):
        model = model()
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{spec} gives a {type(model).__name__}\nhelp: it should give a torch.nn.Module"
        )
    return model.eval()


def example(shape: Sequence[int], dtype: str = "float32") -> torch.Tensor:
    """A random input of that shape (with batch), two samples at least."""
    sizes = (max(2, shape[0]), *shape[1:])
    if dtype == "float32":
        return torch.rand(sizes)
    if dtype == "int64":
        return torch.randint(0, 100, sizes)
    raise ModelError(f"no input of dtype {dtype!r}\nhelp: float32 or int64")


def _module(place: str) -> ModuleType:
    if place.endswith(".py"):
        return _from_file(Path(place))
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and not place.startswith(error.name):
            raise ModelError(
                f"{place} needs {error.name!r}, which is not installed\nhelp: pip install it"
            ) from error
        raise ModelError(
            f"no module {place!r}\nhelp: run from its folder, or give the path of the .py file"
        ) from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"no file {path}\nhelp: MODULE is a module's name or a .py file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader  # a .py file has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
