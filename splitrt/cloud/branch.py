"""One model of a head on one device: what crossed in, its outputs out."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from splitrt.cloud.program import load_program, prepare
from splitrt.core.manifest import Manifest, verified
from splitrt.errors import ModelError

TRIES = 6  # of which the fastest counts


class Branch:
    """One model's tail.pt2: what crossed in, the outputs out.

    And its whole.pt2, pictures in, where its plans send them.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, device: torch.device) -> None:
        self.folder, self.manifest, self.device = Path(folder), manifest, device
        self.module = self._program(folder, "tail.pt2")
        self.whole = None
        if any(spec.coder == "jpeg" for spec in manifest.codecs.values()):
            self.whole = self._program(folder, "whole.pt2")
        self.kinds = [getattr(torch, output.dtype) for output in manifest.outputs]
        if manifest.sizes is None:
            for count in (1, 2):
                self._warm_up(count, None)
        else:
            self._warm_up(2, manifest.sizes.smallest)
            self._warm_up(1, manifest.sizes.largest)

    @torch.inference_mode()
    def run(self, crossed: torch.Tensor, *sides: np.ndarray) -> list[np.ndarray]:
        """What crossed [N, …] and side tensors [N, …] -> the outputs in the manifest's order.

        float32 features go to the tail, uint8 pictures [N, H, W, C] to the whole model.
        """
        module = self.whole if crossed.dtype == torch.uint8 else self.module
        assert module is not None  # plans of pictures are the manifest's
        beside = [torch.from_numpy(side).to(self.device) for side in sides]
        # Not the module's call: its hooks compare every shape again, 50 µs a batch.
        pairs = zip(module.forward(crossed, *beside), self.kinds, strict=True)
        return [output.to(kind).cpu().numpy() for output, kind in pairs]

    def seconds(self, count: int) -> float:
        """What a batch of so many takes, at best, where pictures have but one size."""
        features, sides = self._zeros(count, None)
        found = []
        for _ in range(TRIES):
            started = time.perf_counter()
            self.run(features, *sides)
            found.append(time.perf_counter() - started)
        return min(found)

    def _program(self, folder: str | Path, name: str) -> torch.nn.Module:
        program = load_program(verified(folder, self.manifest, name))
        if self.device.type != "cpu":
            program = torch.export.passes.move_to_device_pass(program, self.device)
        module = program.module()
        prepare(module, self.device)
        return module

    @torch.inference_mode()
    def _warm_up(self, count: int, size: tuple[int, int] | None) -> None:
        """Run once on zeros; ModelError if the outputs are not the manifest's."""
        manifest = self.manifest.at(size)
        wanted = [[count, *output.shape] for output in manifest.outputs]
        features, sides = self._zeros(count, size)
        beside = [torch.from_numpy(side).to(self.device) for side in sides]
        runs = [(self.module, "tail.pt2", features)]
        if self.whole is not None:
            pixels = torch.zeros(count, *manifest.input.shape, dtype=torch.uint8)
            runs.append((self.whole, "whole.pt2", pixels.to(self.device)))
        for module, name, crossed in runs:
            try:
                found = [list(output.shape) for output in module(crossed, *beside)]
            except ValueError:
                found = []
            if found != wanted:
                raise ModelError(
                    f"{name} gives {found}, model.toml names {wanted}\nhelp: export again"
                )

    def _zeros(
        self, count: int, size: tuple[int, int] | None
    ) -> tuple[torch.Tensor, list[np.ndarray]]:
        """Features and side tensors of a batch that says nothing."""
        manifest = self.manifest.at(size)
        features = torch.zeros(count, *manifest.cut.shape, device=self.device)
        return features, [np.ones((count, *side.shape), side.dtype) for side in manifest.side]
