"""Exported torch programs, opened only when nothing in them would be unpickled."""

from __future__ import annotations

import json
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
SAMPLE = re.compile(r"[^/]+/data/sample_inputs/model\.pt")
LARGEST_CONFIG = 64 << 20


def load_program(path: Path) -> torch.export.ExportedProgram:
    """torch.export.load, after a look inside; about 2 s. ModelError if anything is a pickle."""
    try:
        _look(path)
        return torch.export.load(str(path))
    except (zipfile.BadZipFile, json.JSONDecodeError, RuntimeError, KeyError) as error:
        raise ModelError(f"{path.name} is not an exported program\nhelp: export again") from error


def _look(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename
            if SAMPLE.fullmatch(name) and member.file_size == 0:
                continue
            if not PLAIN.fullmatch(name):
                raise ModelError(f"{path.name} holds {name!r}, which may be a pickle\n{HELP}")
            if name.endswith("_config.json"):
                if member.file_size > LARGEST_CONFIG:
                    raise ModelError(f"{path.name}: {name!r} is too large")
                _plain_tensors(path, json.loads(archive.read(member)))


def _plain_tensors(path: Path, table: Any) -> None:
    for name, entry in table["config"].items():
        plain = re.fullmatch(r"(weight|tensor)_\d+", str(entry["path_name"]))
        if entry["use_pickle"] is not False or not plain:
            raise ModelError(f"{path.name} holds {name!r} as a pickle\n{HELP}")


HELP = "help: export again with splitrt; it writes plain tensors only"
