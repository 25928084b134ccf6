"""A tiny checkpoint of each family, and its model directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splitrt.train import divide
from tests.language import VOCAB, checkpoint, reference

CUT, LONGEST = 2, 1024
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 13},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
}
__all__ = ["CUT", "FAMILIES", "LONGEST", "VOCAB", "Head", "made"]


def made(folder: Path, family: str = "llama", resume: Sequence[str] = ("hidden", "tokens")) -> Path:
    """A model directory; the checkpoint lies beside it."""
    source = checkpoint(
        folder / "checkpoint", family, max_position_embeddings=LONGEST, **FAMILIES[family]
    )
    divide(source, folder / family, cut=CUT, weights="fp32", resume=resume, longest=LONGEST)
    return folder / family


class Head:
    """The whole model in place of a device's part: rows after the cut, logits, greedy text."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = reference(checkpoint)

    @torch.no_grad()
    def both(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """float32 [T, hidden] after the cut, and logits [T, vocab]."""
        found = self.model(torch.tensor([list(ids)]), output_hidden_states=True)
        return found.hidden_states[CUT][0].numpy(), found.logits[0].numpy()

    def rows(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [T, hidden] after the cut."""
        return self.both(ids)[0]

    def text(self, ids: Sequence[int], count: int) -> list[int]:
        """The best continuation, a token at a time."""
        told = list(ids)
        for _ in range(count):
            told.append(int(self.both(told)[1][-1].argmax()))
        return told[len(ids) :]
