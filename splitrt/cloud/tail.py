"""The tail in torch: packed codes of a batch in, each frame's outputs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load

from splitrt.cloud.program import load_program
from splitrt.core.codec import Codec, codecs
from splitrt.core.manifest import Manifest, verified
from splitrt.errors import ModelError, PacketError


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """value = code · step + low, each [channels, 1, …]."""

    low: torch.Tensor
    step: torch.Tensor


class Tail:
    """tail.pt2 on one device. Used by one thread: the batcher's."""

    def __init__(
        self,
        folder: str | Path,
        manifest: Manifest,
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.device = _device(device)
        self.manifest = manifest
        if threads is not None:
            torch.set_num_threads(threads)
        self.codecs = codecs(folder, manifest)
        self.scales = self._scales(folder)
        program = load_program(verified(folder, manifest, "tail.pt2"))
        if self.device.type != "cpu":
            program = torch.export.passes.move_to_device_pass(program, self.device)
        self.module = program.module()
        self.largest = max((codec.limit for codec in self.codecs.values()), default=0)
        self.kinds = [getattr(torch, output.dtype) for output in manifest.outputs]
        for size in (1, 2):
            self._warm_up(size)

    def __call__(self, codes: Sequence[tuple[str, bytes]]) -> list[list[np.ndarray]]:
        """[(codec, packed bytes)] of a batch -> outputs of each frame, without batch."""
        features = torch.empty(len(codes), *self.manifest.cut.shape, device=self.device)
        for name in {name for name, _ in codes}:
            places = [place for place, (one, _) in enumerate(codes) if one == name]
            features[places] = self._values(name, [codes[place][1] for place in places])
        arrays = self.run(features)
        return [[array[place] for array in arrays] for place in range(len(codes))]

    @torch.inference_mode()
    def run(self, features: torch.Tensor) -> list[np.ndarray]:
        """float32 [N, …] -> the outputs in the manifest's order, [N, …]."""
        pairs = zip(self.module(features), self.kinds, strict=True)
        return [output.to(kind).cpu().numpy() for output, kind in pairs]

    def open(self, name: str, payload: bytes) -> bytes:
        """The packed bytes of a payload; PacketError if they are not what the codec promises."""
        packed = self.codecs[name].open(payload)
        if self.codecs[name].bits > 8:
            kind = "<f2" if self.codecs[name].bits == 16 else "<f4"
            if not np.isfinite(np.frombuffer(packed, kind)).all():
                raise PacketError("payload holds NaN or infinity")
        return packed

    def _warm_up(self, size: int) -> None:
        """Run once on zeros; ModelError if the outputs are not the manifest's."""
        wanted = [[size, *output.shape] for output in self.manifest.outputs]
        features = torch.zeros(size, *self.manifest.cut.shape, device=self.device)
        try:
            found = [list(array.shape) for array in self.run(features)]
        except ValueError:
            found = []
        if found != wanted:
            raise ModelError(
                f"tail.pt2 gives {found}, model.toml names {wanted}\nhelp: export again"
            )

    def _values(self, name: str, packed: list[bytes]) -> torch.Tensor:
        """Packed bytes of one rung -> float32 [n, *shape of what crosses]."""
        codec, shape = self.codecs[name], self.manifest.cut.shape
        rows = torch.frombuffer(bytearray(b"".join(packed)), dtype=torch.uint8)
        rows = rows.view(len(packed), codec.packed_size).to(self.device)
        if codec.bits > 8:
            floats = rows.view(torch.float16 if codec.bits == 16 else torch.float32)
            return floats.float().view(-1, *shape)
        codes = unpacked(rows, codec).view(-1, *shape).float()
        scale = self.scales[name]
        return codes * scale.step + scale.low

    def _scales(self, folder: str | Path) -> dict[str, Scale]:
        names = [name for name, codec in self.codecs.items() if codec.bits <= 8]
        if not names:
            return {}
        tensors = load(verified(folder, self.manifest, "scales.safetensors").read_bytes())
        channels, ones = self.manifest.cut.shape[0], [1] * (len(self.manifest.cut.shape) - 1)
        scales = {}
        for name in names:
            pair = [tensors.get(f"{name}.{part}") for part in ("low", "step")]
            if any(t is None or t.shape != (channels,) or not t.isfinite().all() for t in pair):
                raise ModelError(f"scales.safetensors has no finite scale of {channels} for {name}")
            low, step = (t.float().view(-1, *ones).to(self.device) for t in pair)  # type: ignore[union-attr]
            if not (step > 0).all():
                raise ModelError(f"scales.safetensors has a step of {name} that is not positive")
            scales[name] = Scale(low, step)
        return scales


def unpacked(rows: torch.Tensor, codec: Codec) -> torch.Tensor:
    """uint8 [n, packed bytes] -> uint8 [n, count]; the low bits come first."""
    if codec.bits == 8:
        return rows
    each = 8 // codec.bits
    shifts = torch.arange(each, dtype=torch.uint8, device=rows.device) * codec.bits
    lanes = (rows.unsqueeze(2) >> shifts) & (2**codec.bits - 1)
    return lanes.flatten(1)[:, : codec.count]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"no device {name!r}\nhelp: cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("torch sees no CUDA device\nhelp: --device cpu, or install a CUDA build")
    return device
