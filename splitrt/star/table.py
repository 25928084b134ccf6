"""A model's embedding: rows of a file, read one by one; all of it is never in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from splitrt.core.language import Shape
from splitrt.core.manifest import Filed, verified
from splitrt.core.shards import EMBEDDING
from splitrt.edge.decoder import LARGEST_WEIGHTS
from splitrt.errors import ModelError
from splitrt.star.block import layout

KINDS = {"F32": "<f4", "F16": "<f2", "I8": "i1"}


class Table:
    """float32 rows [T, hidden] of token ids [T]; ModelError if the file is no table of that shape.

    fp32 or fp16 `weight` [vocab, hidden]; or int8 `codes` of that shape, and `scales` [vocab, 1].
    """

    def __init__(self, folder: Path, files: Filed, shape: Shape) -> None:
        path = verified(folder, files, EMBEDDING, largest=LARGEST_WEIGHTS)
        self._places = {}
        wide = (shape.vocab, shape.hidden)
        wanted = {"weight": wide, "codes": wide, "scales": (shape.vocab, 1)}
        for name, (kind, size, place) in layout(path).items():
            if wanted.get(name) != size or kind not in KINDS:
                raise ModelError(f"{path} holds {name} {list(size)} of {kind}\nhelp: split again")
            self._places[name] = np.dtype(KINDS[kind]), size[1], place
        if set(self._places) not in ({"weight"}, {"codes", "scales"}):
            raise ModelError(f"{path} holds no embedding\nhelp: split the model again")
        self._file = path.open("rb", buffering=0)

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        if "weight" in self._places:
            return self._rows("weight", ids)
        return self._rows("codes", ids) * self._rows("scales", ids)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rows(self, name: str, ids: np.ndarray) -> np.ndarray:
        kind, width, place = self._places[name]
        found = np.empty((len(ids), width), kind)
        for row, token in zip(found, ids.tolist(), strict=True):
            self._file.seek(place + token * row.nbytes)
            self._file.readinto(row)
        return found.astype(np.float32, copy=False)
