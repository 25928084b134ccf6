"""The small tensors of a model directory: scales and tables, read when first asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from splitrt.core.manifest import Filed, verified
from splitrt.errors import ModelError

LARGEST = 64 << 20  # bytes


class Tensors:
    """One safetensors file by key; ModelError if the file or a key is missing or wrong.

    largest: bytes that the file may have.
    """

    def __init__(
        self, folder: str | Path, manifest: Filed, name: str, *, largest: int = LARGEST
    ) -> None:
        self.folder, self.manifest, self.name, self.largest = folder, manifest, name, largest

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self._all:
            raise ModelError(f"{self.name} has no {key!r}\nhelp: export the model again")
        return self._all[key]

    @cached_property
    def _all(self) -> dict[str, np.ndarray]:
        path = verified(self.folder, self.manifest, self.name)
        if path.stat().st_size > self.largest:
            raise ModelError(f"{path} is larger than {self.largest >> 20} MiB")
        try:
            return load(path.read_bytes())
        except (SafetensorError, KeyError, ValueError) as error:  # kinds that numpy lacks
            raise ModelError(f"{path} is no safetensors file: {error}") from error
