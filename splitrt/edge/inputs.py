"""What a call is given: the head's input, and the side inputs of the tail."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from splitrt.core.manifest import Manifest
from splitrt.errors import PacketError


def parted(
    manifest: Manifest, inputs: Mapping[str, np.ndarray] | np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(the head's input, side inputs by name)."""
    if isinstance(inputs, np.ndarray):
        return inputs, {}
    first = manifest.input.name
    sides = {side.name: side.picture for side in manifest.side}
    missing = [name for name, picture in sides.items() if not picture and name not in inputs]
    if first not in inputs or missing or set(inputs) - {first, *sides}:
        names = " and ".join(map(repr, [first, *sides]))
        raise PacketError(f"inputs {sorted(inputs)}\nhelp: this model takes {names}")
    side = {name: np.asarray(array) for name, array in inputs.items() if name != first}
    return np.asarray(inputs[first]), side


def filled(manifest: Manifest, array: np.ndarray) -> dict[str, np.ndarray]:
    """Side inputs that are the picture's own height and width."""
    names = [side.name for side in manifest.side if side.picture]
    if not names:
        return {}
    size = array.shape[:2] if manifest.input.kind == "pixels" else array.shape[1:3]
    return dict.fromkeys(names, np.array(size, np.int64))
