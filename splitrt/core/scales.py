"""From codes back to values, the same on both sides: code · step + low."""

from __future__ import annotations

from collections.abc import Iterable
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
    return scales(folder, manifest, [plan])[plan.name]


def scales(folder: str | Path, manifest: Manifest, plans: Iterable[Plan]) -> dict[str, Scale]:
    """Those of several plans, by name; ModelError unless all their values are numbers."""
    tensors = Tensors(folder, manifest, "scales.safetensors")
    return {plan.name: _scale(tensors, manifest, plan) for plan in plans}


def _scale(tensors: Tensors, manifest: Manifest, plan: Plan) -> Scale:
    channels, key = manifest.width(plan).shape[0], f"{plan.width}.{plan.codec}"
    low, step = tensors[f"{key}.low"], tensors[f"{key}.step"]
    if low.shape != (channels,) or step.shape != (channels,):
        raise ModelError(
            f"scales.safetensors has {low.shape} lows and {step.shape} steps for {key}, "
            f"wanted {channels} each\nhelp: export the model again"
        )
    low, step = low.astype(np.float32), step.astype(np.float32)
    top = low + step * np.float32(2 ** manifest.codecs[plan.codec or ""].bits - 1)
    if not (np.isfinite(low).all() and np.isfinite(top).all() and (step > 0).all()):
        raise ModelError(
            f"scales.safetensors has a scale for {key} that is not positive\n"
            "help: export the model again"
        )
    return Scale(low, step)
