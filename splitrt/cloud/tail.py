"""The tail in torch: packed codes of a batch in, each frame's outputs out."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from splitrt.cloud.branch import Branch
from splitrt.core import delta, packet, scales
from splitrt.core.codec import Codec, codecs
from splitrt.core.jpeg import Jpeg
from splitrt.core.manifest import Manifest, Plan, siblings
from splitrt.errors import ModelError, PacketError

FORMS = 64  # plans and sizes of pictures of which the shapes are kept
DOUBLES = [1 << place for place in range(16)]
NEARLY = 1.1  # times the cheapest frame's time
ROOM = 4 << 20  # bytes of a message with several rows: gRPC's own default
LONGEST_TRIAL = 0.1  # seconds; larger batches are not tried


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """value = code · step + low, each [channels, 1, …]."""

    low: torch.Tensor
    step: torch.Tensor


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
        self.device = placed(device)
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
        self.known = {digest: digest for digest in self.branches}
        self._form = functools.lru_cache(FORMS)(self._formed)

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
        beside = list(map(np.stack, zip(*sides, strict=True)))
        wanted = wanted or [(self.manifest.digest,)] * len(codes)
        answers: list[dict[bytes, Sequence[np.ndarray]]] = [{} for _ in codes]
        for group, crossed in self._crossed(codes, size):
            for digest in dict.fromkeys(one for place in group for one in wanted[place]):
                rows = [row for row, place in enumerate(group) if digest in wanted[place]]
                places = [group[row] for row in rows]
                chosen = crossed if len(rows) == len(group) else crossed[rows]
                arrays = self.branches[digest].run(chosen, *(one[places] for one in beside))
                for place, found in zip(places, zip(*arrays, strict=True), strict=True):
                    answers[place][digest] = found
        return [
            [array for digest in several for array in answer[digest]]
            for answer, several in zip(answers, wanted, strict=True)
        ]

    def _crossed(
        self, codes: Sequence[tuple[str, bytes]], size: tuple[int, int] | None
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """The frames of a batch that run together: their places, and what crossed as one tensor."""
        pictures = [place for place, (name, _) in enumerate(codes) if self._pictured(name)]
        if pictures:
            pixels = b"".join(codes[place][1] for place in pictures)
            whole = torch.frombuffer(bytearray(pixels), dtype=torch.uint8)
            yield pictures, whole.view(-1, *self.manifest.at(size).input.shape).to(self.device)
        group = [place for place, (name, _) in enumerate(codes) if not self._pictured(name)]
        if not group:
            return
        yield group, self._features([codes[place] for place in group], size)

    def _features(
        self, codes: Sequence[tuple[str, bytes]], size: tuple[int, int] | None
    ) -> torch.Tensor:
        """float32 [N, …] of frames; the channels that a narrow width lacks are zeros."""
        shape = self.manifest.at(size).cut.shape
        names = dict.fromkeys(name for name, _ in codes)
        if len(names) == 1:
            values = self._values(*names, [packed for _, packed in codes], size)
            if list(values.shape[1:]) == shape:
                return values
        features = torch.zeros(len(codes), *shape, device=self.device)
        for name in names:
            rows = [row for row, (one, _) in enumerate(codes) if one == name]
            values = self._values(name, [codes[row][1] for row in rows], size)
            features[rows, : values.shape[1]] = values
        return features

    def _pictured(self, name: str) -> bool:
        return isinstance(self.codecs[name], Jpeg)

    @property
    def largest_frame(self) -> int:
        """Bytes that a message from a device may have."""
        return self.largest + packet.largest_side(self.manifest) + packet.ENVELOPE

    def largest_message(self, rows: int) -> int:
        """Bytes that any message may have: a stock client's brings several rows, within ROOM."""
        return max(self.largest_frame, min(ROOM, rows * self.largest_frame))

    def succeed(self, old: Tail) -> None:
        """Answer the devices of an earlier revision too, if theirs is the same head and form.

        Before this tail is used: afterwards `known` is read by several threads.
        """
        ours = [branch.manifest for branch in self.branches.values()]
        theirs = [branch.manifest for branch in old.branches.values()]
        if [_form(manifest) for manifest in ours] != [_form(manifest) for manifest in theirs]:
            return
        places = dict(zip(old.branches, self.branches, strict=True))
        earlier = {digest: places[answering] for digest, answering in old.known.items()}
        self.known = {**earlier, **self.known}

    def answering(self, wanted: Sequence[bytes]) -> tuple[bytes, ...] | None:
        """The digests of the branches that answer for those; None if one is not known."""
        found = tuple(map(self.known.get, wanted))
        return None if None in found else found

    def run(self, features: torch.Tensor, *sides: np.ndarray) -> list[np.ndarray]:
        """The first tail alone."""
        return self.branches[self.manifest.digest].run(features, *sides)

    def open(self, name: str, payload: bytes, size: tuple[int, int] | None = None) -> bytes:
        """The packed bytes of a payload; PacketError if they are not what the codec promises."""
        codec = self._form(name, size)[0]
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
        codec = self._form(name, size)[0]
        if len(base) != codec.packed_size:
            raise PacketError("a difference to a frame of another size")
        return delta.open(payload, base, codec.bits)

    def enough(self, largest: int) -> int:
        """Frames, at most `largest`, that a batch needs to be worth its while; tried on zeros.

        Beyond it a batch saves nothing; and while two small ones take turns, one is computed as
        the other's answers and next frames travel.
        """
        if self.manifest.sizes is not None:
            return largest
        costs: dict[int, float] = {}
        for count in (*itertools.takewhile(lambda one: one < largest, DOUBLES), largest):
            seconds = sum(branch.seconds(count) for branch in self.branches.values())
            costs[count] = seconds / count
            if seconds > LONGEST_TRIAL:
                break
        return knee(costs)

    def _formed(self, name: str, size: tuple[int, int] | None) -> tuple[Codec | Jpeg, list[int]]:
        """The codec of a plan and the shape of what crosses by it, for pictures of that size."""
        manifest = self.manifest.at(size)
        shape = manifest.crossing(manifest.plan(name))
        return self.codecs[name].sized(shape), shape

    def _values(self, name: str, packed: list[bytes], size: tuple[int, int] | None) -> torch.Tensor:
        """float32 [n, channels, …] of frames that went by one plan."""
        codec, shape = self._form(name, size)
        rows = torch.frombuffer(bytearray(b"".join(packed)), dtype=torch.uint8)
        rows = rows.view(len(packed), codec.packed_size).to(self.device)
        if codec.bits > 8:
            floats = rows.view(torch.float16 if codec.bits == 16 else torch.float32)
            return floats.float().view(-1, *shape)
        codes = unpacked(rows, codec).view(-1, *shape).float()
        scale = self.scales[name]
        return codes * scale.step + scale.low

    def _scales(self, folder: str | Path) -> dict[str, Scale]:
        plans = [self.manifest.plan(name) for name, codec in self.codecs.items() if codec.codes]
        found = scales.scales(folder, self.manifest, plans)
        return {plan.name: self._placed(found[plan.name], plan) for plan in plans}

    def _placed(self, scale: scales.Scale, plan: Plan) -> Scale:
        along = (-1, *[1] * (len(self.manifest.width(plan).shape) - 1))
        pair = (torch.from_numpy(part).view(along) for part in (scale.low, scale.step))
        return Scale(*(one.to(self.device) for one in pair))


def knee(costs: Mapping[int, float]) -> int:
    """The smallest batch whose frames cost nearly as little as any's: {frames: seconds each}."""
    cheapest = min(costs.values())
    return min(count for count, cost in costs.items() if cost <= NEARLY * cheapest)


def unpacked(rows: torch.Tensor, codec: Codec | Jpeg) -> torch.Tensor:
    """uint8 [n, packed bytes] -> uint8 [n, count]; the low bits come first."""
    if codec.bits == 8:
        return rows
    each = 8 // codec.bits
    shifts = torch.arange(each, dtype=torch.uint8, device=rows.device) * codec.bits
    lanes = (rows.unsqueeze(2) >> shifts) & (2**codec.bits - 1)
    return lanes.flatten(1)[:, : codec.count]


def _form(manifest: Manifest) -> tuple[object, ...]:
    """What a device relies on: the payload it sends, the outputs that it reads."""
    return manifest.contract, manifest.outputs, manifest.sizes


def placed(name: str) -> torch.device:
    """The device of that name; ModelError if torch has none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"no device {name!r}\nhelp: cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("torch sees no CUDA device\nhelp: --device cpu, or install a CUDA build")
    return device
