"""From codes back to values on the device, as the server does it: code · step + low."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitrt.core.manifest import Manifest, Plan
from splitrt.core.tensors import Tensors
from splitrt.errors import ModelError


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """One plan's scale, low and step [C]: `scale(codes)` gives float32 values of their shape."""

    low: np.ndarray
    step: np.ndarray

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Codes uint8 [C, …], of one frame."""
        along = (-1, *[1] * (codes.ndim - 1))
        return np.asarray(codes * self.step.reshape(along) + self.low.reshape(along))


def scale(folder: str | Path, manifest: Manifest, plan: Plan) -> Scale:
    """The scale of a plan that sends codes; ModelError if the directory has none for it."""
    tensors = Tensors(folder, manifest, "scales.safetensors")
    channels, key = manifest.width(plan).shape[0], f"{plan.width}.{plan.codec}"
    low, step = tensors[f"{key}.low"], tensors[f"{key}.step"]
    if low.shape != (channels,) or step.shape != (channels,):
        raise ModelError(
            f"scales.safetensors has {low.shape} lows and {step.shape} steps for {key}, "
            f"wanted {channels} each\nhelp: export the model again"
        )
    return Scale(low.astype(np.float32), step.astype(np.float32))
