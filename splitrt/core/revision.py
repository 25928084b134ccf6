"""A revision of the device's exit: a few kilobytes from the server that correct its logits.

The head itself stays as it was exported, and without a revision the exit's logits are its own, bit
for bit. A revision looks at what the device sends anyway, the dequantised codes of one plan, as the
exit looks at the head's trunk: a mixture of channels, its mean and largest over the places, one
linear step. So exchanging or dropping it costs microseconds and no new ONNX session. It carries
what CEMA (Chen et al. 2024) sends a device by fresh norm parameters: what a server learnt.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from splitrt.core.gate import probabilities
from splitrt.core.manifest import Manifest, Plan, Width
from splitrt.errors import PacketError

LARGEST = 64 << 10  # bytes of an encoded revision
MOST_MAPS = 1024
LONGEST_HEADER = 8  # bytes that say how long a safetensors header is
HIGHEST = 2**31 - 1  # number of a revision
SMALLEST = 1e-30  # share of which a logarithm is taken
HELP = "help: server and device must be of one version, and hold the same model"


@dataclass(frozen=True, slots=True, eq=False)
class Revision:
    """What replaces the exit of `width` on streams like the one it was learnt from.

    number: from 1, grows.  model: Manifest.contract.  plan: whose dequantised codes it takes.
    weights, as float16 would hold them, for K classes, C channels and H maps: scale [1],
    bias [K], mix [H, C], lift [H], join [K, 2H]; axis [C] and edge [1] say for which streams.
    """

    number: int
    model: bytes
    width: str
    plan: str
    weights: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        """What is used here is what will arrive there."""
        halves = {name: _rounded(array) for name, array in self.weights.items()}
        object.__setattr__(self, "weights", halves)

    def __call__(self, logits: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Logits [K] of the exit and values [C, …] of the codes -> float32 [K], the new logits."""
        own = self.weights
        mixed = own["mix"] @ values.reshape(len(values), -1) + own["lift"][:, None]  # [H, places]
        maps = np.maximum(mixed, 0)
        pooled = np.concatenate((maps.mean(1), maps.max(1)))
        found = own["scale"] * logits + own["bias"] + own["join"] @ pooled
        return np.asarray(found, np.float32)

    def fits(self, stream: np.ndarray) -> bool:
        """Whether a stream with that mean `mark` [C] is nearer to its own than to clean ones."""
        return float(self.weights["axis"] @ stream) > float(self.weights["edge"][0])

    def encode(self) -> bytes:
        """A safetensors file of float16; the same revision gives the same bytes."""
        said = {
            "number": self.number,
            "model": self.model.hex(),
            "width": self.width,
            "plan": self.plan,
        }
        halves = {name: array.astype(np.float16) for name, array in self.weights.items()}
        return save(halves, {"revision": json.dumps(said, sort_keys=True)})

    @property
    def sha256(self) -> bytes:
        """Of the encoded revision: 32 bytes."""
        return hashlib.sha256(self.encode()).digest()

    @classmethod
    def decode(cls, body: bytes, manifest: Manifest) -> Revision:
        """The revision that a peer encoded; PacketError if it is not one for this model."""
        if len(body) > LARGEST:
            raise PacketError(f"revision of {len(body)} bytes, at most {LARGEST} wanted\n{HELP}")
        try:
            tensors = dict(deserialize(body))
        except (SafetensorError, ValueError) as error:
            raise PacketError(f"revision is no safetensors file: {error}\n{HELP}") from error
        number, plan = _said(body, manifest)
        width = manifest.width(plan)
        shapes = wanted(classes(manifest, width), width.shape[0], _maps(tensors))
        return cls(number, manifest.contract, width.name, plan.name, _weights(tensors, shapes))


def wanted(answers: int, channels: int, maps: int) -> dict[str, list[int]]:
    """The shape of every weight, for so many classes, channels and maps."""
    return {
        "axis": [channels],
        "bias": [answers],
        "edge": [1],
        "join": [answers, 2 * maps],
        "lift": [maps],
        "mix": [maps, channels],
        "scale": [1],
    }


def coded(manifest: Manifest, plan: Plan) -> bool:
    """Whether a plan sends codes, of which a scale makes values."""
    return (
        plan.codec is not None
        and manifest.codecs[plan.codec].bits <= 8
        and not (manifest.pictured(plan))
    )


def mark(values: np.ndarray) -> np.ndarray:
    """Values [C, …] of one frame -> float32 [C]: each channel's mean.

    The encoder's last normalisation makes it 0 on average for pictures like those it has seen.
    """
    return np.asarray(values.reshape(len(values), -1).mean(1), np.float32)


def classes(manifest: Manifest, width: Width) -> int:
    """Of the answer that a width's exit stands in for."""
    found = width.exit
    assert found is not None  # asked of widths with an exit
    answer = next(output for output in manifest.outputs if output.name == found.output)
    return math.prod(answer.shape)


def corrected(
    answer: np.ndarray, shipped: np.ndarray, revised: np.ndarray, temperature: float
) -> np.ndarray:
    """A server's logits [K] for codes, and what the revision made of the exit's -> better ones.

    The shares that the server gives are multiplied by revised / shipped ones; temperature: by which
    the exit's are read. The tail was never adapted, and misreads a strange stream as the exit did:
    alone it is right less often than the revised exit, so corrected more often: METHODOLOGY.md.
    """
    gained = (revised.astype(np.float64) - shipped) / temperature
    found, most = answer + gained.reshape(answer.shape), np.finfo(answer.dtype).max
    return np.asarray(found.clip(-most, most), answer.dtype)


def averaged(answer: np.ndarray, revised: np.ndarray, temperature: float) -> np.ndarray:
    """A server's logits [K], and the revised exit's -> logits of their mean shares.

    Where the server saw a picture, or coarser codes, it errs in ways that the exit does not.
    """
    shares = probabilities(answer.reshape(-1)) + probabilities(revised, temperature)
    found = np.log(np.maximum(shares / 2, SMALLEST))
    return np.asarray(found.reshape(answer.shape), answer.dtype)


def _rounded(array: np.ndarray) -> np.ndarray:
    return np.asarray(array).astype(np.float16).astype(np.float32)


def _said(body: bytes, manifest: Manifest) -> tuple[int, Plan]:
    """Number and plan in the header, which safetensors has found to be plain."""
    start = LONGEST_HEADER
    header = json.loads(body[start : start + int.from_bytes(body[:start], "little")])
    try:
        said = json.loads((header.get("__metadata__") or {}).get("revision", ""))
        number, model, names = said["number"], said["model"], (said["width"], said["plan"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PacketError(f"revision does not say whose it is\n{HELP}") from error
    if model != manifest.contract.hex():
        raise PacketError(
            f"revision of model {str(model)[:12]}…, wanted {manifest.contract.hex()[:12]}…\n{HELP}"
        )
    if type(number) is not int or not 1 <= number <= HIGHEST:
        raise PacketError(f"revision number {str(number)[:20]}, wanted 1 to {HIGHEST}\n{HELP}")
    plan = next((plan for plan in manifest.plans if plan.name == names[1]), None)
    if plan is None or not coded(manifest, plan):
        raise PacketError(f"revision for codes of {str(names[1])[:40]!r}, no such plan\n{HELP}")
    width = manifest.width(plan)
    if width.name != names[0] or width.exit is None:
        raise PacketError(f"revision for the exit of {str(names[0])[:40]!r}, no such exit\n{HELP}")
    return number, plan


def _maps(tensors: Mapping[str, Mapping[str, object]]) -> int:
    """How many mixtures of channels a revision has."""
    shape = tensors.get("lift", {}).get("shape")
    if not isinstance(shape, list) or len(shape) != 1 or not 1 <= shape[0] <= MOST_MAPS:
        raise PacketError(f"revision's lift has shape {shape}, wanted 1 to {MOST_MAPS}\n{HELP}")
    return int(shape[0])


def _weights(
    tensors: Mapping[str, Mapping[str, object]], shapes: Mapping[str, list[int]]
) -> dict[str, np.ndarray]:
    """The tensors of a file as arrays, after kind, shape and every number were looked at."""
    if set(tensors) != set(shapes):
        names = sorted(str(name)[:20] for name in tensors)[: len(shapes) + 1]
        raise PacketError(f"revision holds {names}, wanted {sorted(shapes)}\n{HELP}")
    found = {}
    for name, shape in shapes.items():
        kind, size = tensors[name]["dtype"], tensors[name]["shape"]
        if kind != "F16" or size != shape:
            raise PacketError(f"revision's {name} is {kind} {size}, wanted F16 {shape}\n{HELP}")
        array = np.frombuffer(bytes(tensors[name]["data"]), "<f2").reshape(shape)  # type: ignore[call-overload]
        if not np.isfinite(array).all():
            raise PacketError(f"revision's {name} holds NaN or infinity, wanted numbers\n{HELP}")
        found[name] = array
    if not found["scale"][0] > 0:
        raise PacketError(f"revision scales by {found['scale'][0]}, wanted more than 0\n{HELP}")
    return found
