"""What one device costs, from published figures: milliseconds, watts, memory.

Figures of other runtimes stand in until a device has measured itself; each says its source, and
whether it was measured or scaled.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitrt.errors import ProfileError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
FOLDERS = (HERE.parent / "device_profiles", HERE.parent.parent / "device_profiles")  # wheel, clone
LARGEST = 64 << 10  # bytes of a profile
MOBILENET_V2 = 300_800_000  # MACs at 224 x 224 (Sandler et al. 2018)
RESNET50 = 4_089_000_000  # MACs at 224 x 224 (He et al. 2015)

Text = Annotated[str, Field(min_length=1, max_length=400)]
Positive = Annotated[float, Field(gt=0, le=1e6)]


class Part(BaseModel):
    """A table of a profile: closed to unknown keys, frozen, nothing converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Figure(Part):
    """One number. `estimated`: scaled from another figure, as `source` says."""

    value: Positive
    source: Text
    estimated: bool


class Figures(Part):
    """Several numbers of one kind: the sizes that are sold, the modes that can be set."""

    values: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=20, strict=False)]
    source: Text
    estimated: bool


class Profile(Part):
    """One device. Units are in the names; what no source states is None.

    `mobilenet_v2_ms` and `resnet50_ms` are whole networks at 224 x 224, batch 1, on all cores;
    those that begin with `gpu_` on the GPU. `copy_gb_per_s` is memory to memory.

        Profile.load("pi-4").mobilenet_v2_ms.value
    """

    name: Text
    cpu: Text
    cores: Annotated[int, Field(ge=1, le=1024)]
    python: Text
    runtime: Text
    memory_gb: Figures
    mobilenet_v2_ms: Figure
    resnet50_ms: Figure
    gpu_mobilenet_v2_ms: Figure | None = None
    gpu_resnet50_ms: Figure | None = None
    copy_gb_per_s: Figure | None = None
    idle_w: Figure | None = None
    load_w: Figure | None = None
    power_modes_w: Figures | None = None

    @classmethod
    def load(cls, source: str | Path) -> Profile:
        """A shipped profile by its name, or any by its path; ProfileError if wrong or missing."""
        path = _path(source)
        if path.stat().st_size > LARGEST:
            raise ProfileError(
                f"{path} is larger than {LARGEST >> 10} KiB\nhelp: that is no profile; see pi-4"
            )
        try:
            return cls.model_validate(tomllib.loads(path.read_bytes().decode()))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ProfileError(
                f"{path} is not TOML: {error}\nhelp: copy a shipped profile and change its figures"
            ) from error
        except ValidationError as error:
            raise ProfileError(f"{path}: {_first(error, cls)}") from error

    @property
    def macs_per_ms(self) -> tuple[float, float]:
        """Multiply-adds a millisecond, as thin layers run (MobileNetV2) and wide ones (ResNet-50).

        In ascending order: what a head reaches lies about between the two.
        """
        thin = MOBILENET_V2 / self.mobilenet_v2_ms.value
        wide = RESNET50 / self.resnet50_ms.value
        return min(thin, wide), max(thin, wide)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Milliseconds between two bounds; nothing was measured, so `estimated` is always true."""

    low_ms: float
    high_ms: float
    estimated: bool = True

    def __str__(self) -> str:
        return f"{_short(self.low_ms)}–{_short(self.high_ms)}"


def head_ms(profile: Profile, macs: int) -> Estimate:
    """The estimate for a head of so many MACs on all cores of the device's CPU.

    It counts arithmetic alone: what a runtime spends on each layer, however small, comes on top.
    """
    if macs < 0:
        raise ProfileError(f"a head of {macs} MACs\nhelp: 0 or more; see `splitrt cuts`")
    slow, fast = profile.macs_per_ms
    return Estimate(low_ms=macs / fast, high_ms=macs / slow)


def profiles() -> dict[str, Profile]:
    """The shipped profiles by name, slowest device first."""
    found = {path.stem: Profile.load(path) for path in _shipped().glob("*.toml")}
    return dict(sorted(found.items(), key=lambda item: -item[1].mobilenet_v2_ms.value))


def _shipped() -> Path:
    for folder in FOLDERS:
        if folder.is_dir():
            return folder
    raise ProfileError(
        "the shipped device profiles are missing\nhelp: run from a clone, or install the wheel"
    )


def _path(source: str | Path) -> Path:
    """The file of a path, or of a shipped profile's name."""
    path = Path(source)
    if isinstance(source, Path) or path.suffix == ".toml" or len(path.parts) > 1:
        if path.is_file():
            return path
        raise ProfileError(f"no profile at {path}\nhelp: shipped are {', '.join(_names())}")
    if source not in _names():
        near = difflib.get_close_matches(source, _names(), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"shipped are {', '.join(_names())}"
        raise ProfileError(f"no profile {source!r}\nhelp: {hint}")
    return _shipped() / f"{source}.toml"


def _names() -> list[str]:
    return sorted(path.stem for path in _shipped().glob("*.toml"))


def _first(error: ValidationError, model: type[Profile]) -> str:
    """What is wrong with which key, and what the key wants."""
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"])
    key = str(found["loc"][-1])
    if found["type"] == "extra_forbidden":
        keys = [*model.model_fields] if len(found["loc"]) == 1 else ["value", "source", "estimated"]
        near = difflib.get_close_matches(key, keys, 1)
        return f"no key {place!r}\nhelp: " + (
            f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(keys)}"
        )
    if found["type"] == "missing":
        return f"{place} is missing\nhelp: every figure has value (or values), source, estimated"
    return (
        f"{place} = {repr(found['input'])[:80]}: {found['msg']}\nhelp: see the shipped profile pi-4"
    )


def _short(milliseconds: float) -> str:
    """Two digits that mean something: 0.42, 5.8, 41."""
    if milliseconds >= 10:
        return f"{milliseconds:,.0f}"
    return f"{milliseconds:.1f}" if milliseconds >= 1 else f"{milliseconds:.2f}"
