"""The tail in torch: packed codes of a batch in, each frame's outputs out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from splitrt.cloud.program import load_program
from splitrt.core import delta
from splitrt.core.codec import Codec, codecs
from splitrt.core.jpeg import Jpeg
from splitrt.core.manifest import Manifest, Plan, siblings, verified
from splitrt.core.tensors import Tensors
from splitrt.errors import ModelError, PacketError


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """value = code · step + low, each [channels, 1, …]."""

    low: torch.Tensor
    step: torch.Tensor


class Branch:
    """One model's tail.pt2 on one device: what crossed in, the outputs out.

    And its whole.pt2, pictures in, where its plans send them.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, device: torch.device) -> None:
        self.manifest, self.device = manifest, device
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
        pairs = zip(module(crossed, *beside), self.kinds, strict=True)
        return [output.to(kind).cpu().numpy() for output, kind in pairs]

    def _program(self, folder: str | Path, name: str) -> torch.nn.Module:
        program = load_program(verified(folder, self.manifest, name))
        if self.device.type != "cpu":
            program = torch.export.passes.move_to_device_pass(program, self.device)
        return program.module()

    def _warm_up(self, count: int, size: tuple[int, int] | None) -> None:
        """Run once on zeros; ModelError if the outputs are not the manifest's."""
        manifest = self.manifest.at(size)
        wanted = [[count, *output.shape] for output in manifest.outputs]
        features = torch.zeros(count, *manifest.cut.shape, device=self.device)
        sides = [np.ones((count, *side.shape), side.dtype) for side in manifest.side]
        try:
            found = [list(array.shape) for array in self.run(features, *sides)]
        except ValueError:
            found = []
        if found != wanted:
            raise ModelError(
                f"tail.pt2 gives {found}, model.toml names {wanted}\nhelp: export again"
            )


class Tail:
    """The tails of one head on one device. Used by one thread: the batcher's.

    others: folders of further tails of the same head, which answer the same payloads
    (FrankenSplit, Furutanpey et al. 2023). ModelMismatch if theirs is another head.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Manifest,
        *,
        others: Sequence[str | Path] = (),
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.device = _device(device)
        self.manifest = manifest
        if threads is not None:
            torch.set_num_threads(threads)
        self.codecs = codecs(folder, manifest)
        self.scales = self._scales(folder)
        self.largest = max((codec.limit for codec in self.codecs.values()), default=0)
        self.branches = {manifest.digest: Branch(folder, manifest, self.device)}
        for other in others:
            found = siblings(manifest, other)
            self.branches[found.digest] = Branch(other, found, self.device)

    def __call__(
        self,
        codes: Sequence[tuple[str, bytes]],
        size: tuple[int, int] | None = None,
        sides: Sequence[Sequence[np.ndarray]] = (),
        wanted: Sequence[Sequence[bytes]] = (),
    ) -> list[list[np.ndarray]]:
        """[(plan, packed bytes)] of a batch -> outputs of each frame, without batch.

        A narrow width's missing channels are zeros, so frames of all widths share a batch. size:
        of the batch's pictures, where models take several.  sides: the side tensors of each
        frame, where models take any.  wanted: the digests of the tails that are to answer each
        frame, its outputs in that order; by default the first tail.
        """
        manifest = self.manifest.at(size)
        beside = list(map(np.stack, zip(*sides, strict=True)))
        wanted = wanted or [(self.manifest.digest,)] * len(codes)
        answers: list[dict[bytes, list[np.ndarray]]] = [{} for _ in codes]
        for group, crossed in self._crossed(codes, manifest):
            for digest in dict.fromkeys(one for place in group for one in wanted[place]):
                rows = [row for row, place in enumerate(group) if digest in wanted[place]]
                places = [group[row] for row in rows]
                arrays = self.branches[digest].run(crossed[rows], *(one[places] for one in beside))
                for row, place in enumerate(places):
                    answers[place][digest] = [array[row] for array in arrays]
        return [
            [array for digest in several for array in found[digest]]
            for found, several in zip(answers, wanted, strict=True)
        ]

    def _crossed(
        self, codes: Sequence[tuple[str, bytes]], manifest: Manifest
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """The frames of a batch that run together: their places, and what crossed as one tensor."""
        pictures = [place for place, (name, _) in enumerate(codes) if self._pictured(name)]
        if pictures:
            pixels = b"".join(codes[place][1] for place in pictures)
            whole = torch.frombuffer(bytearray(pixels), dtype=torch.uint8)
            yield pictures, whole.view(-1, *manifest.input.shape).to(self.device)
        group = [place for place, (name, _) in enumerate(codes) if not self._pictured(name)]
        if not group:
            return
        features = torch.zeros(len(group), *manifest.cut.shape, device=self.device)
        for name in {codes[place][0] for place in group}:
            rows = [row for row, place in enumerate(group) if codes[place][0] == name]
            shape = manifest.width(manifest.plan(name)).shape
            values = self._values(name, [codes[group[row]][1] for row in rows], shape)
            features[rows, : shape[0]] = values
        yield group, features

    def _pictured(self, name: str) -> bool:
        return isinstance(self.codecs[name], Jpeg)

    def run(self, features: torch.Tensor, *sides: np.ndarray) -> list[np.ndarray]:
        """The first tail alone."""
        return self.branches[self.manifest.digest].run(features, *sides)

    def open(self, name: str, payload: bytes, size: tuple[int, int] | None = None) -> bytes:
        """The packed bytes of a payload; PacketError if they are not what the codec promises."""
        codec = self._codec(name, size)
        packed = codec.open(payload)
        if codec.bits > 8:
            kind = "<f2" if codec.bits == 16 else "<f4"
            if not np.isfinite(np.frombuffer(packed, kind)).all():
                raise PacketError("payload holds NaN or infinity")
        return packed

    def open_delta(
        self, name: str, payload: bytes, base: bytes, size: tuple[int, int] | None = None
    ) -> bytes:
        """The packed bytes of a difference to an earlier frame's packed bytes."""
        codec = self._codec(name, size)
        if len(base) != codec.packed_size:
            raise PacketError("a difference to a frame of another size")
        return delta.open(payload, base, codec.bits)

    def _codec(self, name: str, size: tuple[int, int] | None) -> Codec | Jpeg:
        manifest = self.manifest.at(size)
        return self.codecs[name].sized(manifest.crossing(manifest.plan(name)))

    def _values(self, name: str, packed: list[bytes], shape: list[int]) -> torch.Tensor:
        """Packed bytes of one plan -> float32 [n, *shape of what crosses]."""
        codec = self.codecs[name].sized(shape)
        rows = torch.frombuffer(bytearray(b"".join(packed)), dtype=torch.uint8)
        rows = rows.view(len(packed), codec.packed_size).to(self.device)
        if codec.bits > 8:
            floats = rows.view(torch.float16 if codec.bits == 16 else torch.float32)
            return floats.float().view(-1, *shape)
        codes = unpacked(rows, codec).view(-1, *shape).float()
        scale = self.scales[name]
        return codes * scale.step + scale.low

    def _scales(self, folder: str | Path) -> dict[str, Scale]:
        tensors = Tensors(folder, self.manifest, "scales.safetensors")
        return {
            name: self._scale(tensors, self.manifest.plan(name))
            for name, codec in self.codecs.items()
            if codec.codes
        }

    def _scale(self, tensors: Tensors, plan: Plan) -> Scale:
        channels, *rest = self.manifest.width(plan).shape
        key = f"{plan.width}.{plan.codec}"
        low, step = tensors[f"{key}.low"], tensors[f"{key}.step"]
        if low.shape != (channels,) or step.shape != (channels,):
            raise ModelError(f"scales.safetensors has no scale of {channels} channels for {key}")
        if not (np.isfinite(low).all() and np.isfinite(step).all() and (step > 0).all()):
            raise ModelError(f"scales.safetensors has a scale for {key} that is not positive")
        pair = (torch.from_numpy(part.copy()).float() for part in (low, step))
        return Scale(*(one.view(-1, *[1] * len(rest)).to(self.device) for one in pair))


def unpacked(rows: torch.Tensor, codec: Codec | Jpeg) -> torch.Tensor:
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
