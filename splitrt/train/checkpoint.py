"""What outlives an epoch of distillation: its state on disk, and a bar for those who wait."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn


class Stage(Protocol):
    """What is kept of a stage of training."""

    name: str
    parts: Mapping[str, nn.Module]
    optimiser: torch.optim.Optimizer


class Keeper:
    """A distillation's state between epochs: one file of tensors a stage; nothing is pickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, stage: Stage, epochs: int) -> None:
        tensors = {
            f"{part}.{name}": tensor.contiguous().clone()
            for part, module in stage.parts.items()
            for name, tensor in module.state_dict().items()
        }
        for number, state in stage.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": v.clone() for name, v in state.items()}
        target = self._file(stage)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(".new")
        save_file(tensors, fresh, {"epochs": json.dumps(epochs)})
        fresh.replace(target)

    def restore(self, stage: Stage) -> int:
        """Load what was kept of the stage; the epochs that were done (0 if nothing was kept)."""
        target = self._file(stage)
        if not target.exists():
            return 0
        tensors = load_file(target)
        for part, module in stage.parts.items():
            prefix = f"{part}."
            own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            module.load_state_dict(own)
        kept: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, number, name = key.split(".")
                kept.setdefault(int(number), {})[name] = value
        state = stage.optimiser.state_dict()
        stage.optimiser.load_state_dict({"state": kept, "param_groups": state["param_groups"]})
        return _epochs(target)

    def _file(self, stage: Stage) -> Path:
        return self.path.with_name(f"{self.path.name}.{stage.name}.safetensors")


def _epochs(file: Path) -> int:
    with safe_open(file, "pt") as opened:
        return int(json.loads(opened.metadata()["epochs"]))


@contextlib.contextmanager
def bar(shown: bool, steps: int) -> Iterator[Callable[[str, float], None]]:
    """A progress bar over `steps`, or silence; yields advance(text, by)."""
    columns = (TextColumn("{task.description:<20}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not shown) as progress:
        task = progress.add_task("distill", total=steps)
        yield lambda text, by: progress.update(task, description=text, advance=by)
