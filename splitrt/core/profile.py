"""What one device costs: milliseconds, watts, memory.

Published figures of other runtimes stand in until a device has measured itself (`splitrt
profile`); each says its source, and whether it was scaled from something else.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from splitrt.errors import ProfileError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
FOLDERS = (HERE.parent / "device_profiles", HERE.parent.parent / "device_profiles")  # wheel, clone
LARGEST = 256 << 10  # bytes of a profile
MOBILENET_V2 = 300_800_000  # MACs at 224 x 224 (Sandler et al. 2018)
RESNET50 = 4_089_000_000  # MACs at 224 x 224 (He et al. 2015)

Text = Annotated[str, Field(min_length=1, max_length=400)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=1024)]


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


class Timing(Part):
    """How long one part of one model took: median and 95th percentile of so many rounds.

    part: `head` makes what crosses and the exit's answer, `exit` the exit's answer alone, `tail`
    is the server's half run here, `codec` makes bytes. name: the width's, of a codec the plan's.
    digest: of the model's manifest, in hex.
    """

    model: Text
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    part: Literal["head", "exit", "tail", "codec"]
    name: Text
    threads: Count
    macs: Annotated[int, Field(ge=0)] = 0
    p50_ms: Positive
    p95_ms: Positive
    rounds: Annotated[int, Field(ge=1)]
    source: Text
    estimated: bool

    @model_validator(mode="after")
    def _ordered(self) -> Timing:
        if self.p95_ms < self.p50_ms:
            raise ValueError(f"p95_ms {self.p95_ms} is less than p50_ms {self.p50_ms}")
        return self


class Profile(Part):
    """One device. Units are in the names; what no source states is None.

    `mobilenet_v2_ms` and `resnet50_ms` are whole networks at 224 x 224, batch 1, on all cores;
    those that begin with `gpu_` on the GPU. `copy_gb_per_s` is memory to memory. `board`: what
    stands in the device tree's model. `head_w`: of the whole device while a head runs again and
    again. `send_uj_per_byte`: of its radio, beyond being idle. `measured`: on the device itself.

        Profile.load("pi-4").mobilenet_v2_ms.value
    """

    name: Text
    cpu: Text
    cores: Count
    python: Text
    runtime: Text
    board: Text | None = None
    memory_gb: Figures
    mobilenet_v2_ms: Figure | None = None
    resnet50_ms: Figure | None = None
    gpu_mobilenet_v2_ms: Figure | None = None
    gpu_resnet50_ms: Figure | None = None
    copy_gb_per_s: Figure | None = None
    idle_w: Figure | None = None
    load_w: Figure | None = None
    power_modes_w: Figures | None = None
    head_w: Figure | None = None
    send_uj_per_byte: Figure | None = None
    peak_memory_mb: Figure | None = None
    measured: Annotated[tuple[Timing, ...], Field(max_length=4096, strict=False)] = ()

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
            raise ProfileError(f"{path}: {_first(error)}") from error

    def save(self, path: str | Path) -> None:
        """Write it to a file, whole or not at all; ProfileError if that cannot be."""
        path = Path(path)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            fresh.write_text(_toml(self.model_dump(exclude_none=True)), encoding="utf-8")
            os.replace(fresh, path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise ProfileError(
                f"{path} cannot be written: {error.strerror}\nhelp: name a file in another folder"
            ) from error

    @property
    def macs_per_ms(self) -> tuple[float, float]:
        """Multiply-adds a millisecond, as thin layers run (MobileNetV2) and wide ones (ResNet-50).

        In ascending order: what a head reaches lies about between the two. Where no whole network
        is stated: the slowest and the fastest measured head. ProfileError if there is none.
        """
        whole = ((MOBILENET_V2, self.mobilenet_v2_ms), (RESNET50, self.resnet50_ms))
        rates = [macs / figure.value for macs, figure in whole if figure is not None]
        rates = rates or [one.macs / one.p50_ms for one in self._heads()]
        if not rates:
            raise ProfileError(
                f"{self.name} has measured no head whose MACs are known\n"
                "help: `splitrt profile` with a model whose manifest says head_macs"
            )
        return min(rates), max(rates)

    @property
    def working_w(self) -> float | None:
        """Watts of a head on top of those of an idle device; all of them if idle is unknown."""
        busy = self.head_w or self.load_w
        if busy is None:
            return None
        return max(0.0, busy.value - (self.idle_w.value if self.idle_w else 0.0))

    def took(self, digest: bytes, part: str, name: str) -> float | None:
        """Median milliseconds of a part of a model, at the fastest number of threads; or None."""
        found = [
            one.p50_ms
            for one in self.measured
            if (one.part, one.name, one.digest) == (part, name, digest.hex())
        ]
        return min(found, default=None)

    def _heads(self) -> list[Timing]:
        """Of each measured head whose MACs are known, the fastest row."""
        best: dict[tuple[str, str], Timing] = {}
        for one in self.measured:
            key = (one.digest, one.name)
            if (
                one.part in ("head", "exit")
                and one.macs
                and one.p50_ms <= best.get(key, one).p50_ms
            ):
                best[key] = one
        return list(best.values())

    @model_validator(mode="after")
    def _enough(self) -> Profile:
        """Something must say how fast it is."""
        for key in ("mobilenet_v2_ms", "resnet50_ms"):
            if getattr(self, key) is None and not self.measured:
                raise ValueError(f"{key} is missing, and nothing was measured")
        return self


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
    return dict(sorted(found.items(), key=lambda item: item[1].macs_per_ms[0]))


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
    short = {_plain(name): name for name in _names()}
    if _plain(str(source)) not in short:
        near = difflib.get_close_matches(_plain(str(source)), short, 1)
        hint = f"did you mean {short[near[0]]!r}?" if near else f"shipped are {', '.join(_names())}"
        raise ProfileError(f"no profile {source!r}\nhelp: {hint}")
    return _shipped() / f"{short[_plain(str(source))]}.toml"


def _plain(name: str) -> str:
    """pi-4, pi4, Pi_4, rpi4 and raspberry-pi-4 are one name; 3b+ is 3b-plus."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "plus"))
    return re.sub(r"^(raspberry|r)pi", "pi", letters)


def _names() -> list[str]:
    return sorted(path.stem for path in _shipped().glob("*.toml"))


def _first(error: ValidationError) -> str:
    """What is wrong with which key, and what the key wants."""
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(found["loc"][-1]), keys := _keys(found["loc"]), 1)
        return f"no key {place!r}\nhelp: " + (
            f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(keys)}"
        )
    if found["type"] == "missing":
        return f"{place} is missing\nhelp: every figure has value (or values), source, estimated"
    if found["type"] == "value_error":
        told = found["msg"].removeprefix("Value error, ")
        told = f"{place}: {told}" if place else told
        return f"{told}\nhelp: copy a shipped profile, or measure one: `splitrt profile`"
    return (
        f"{place} = {repr(found['input'])[:80]}: {found['msg']}\nhelp: see the shipped profile pi-4"
    )


def _keys(place: Collection[int | str]) -> list[str]:
    """The keys of the table in which that place is."""
    if len(place) == 1:
        return [*Profile.model_fields]
    return [*Timing.model_fields] if "measured" in place else ["value", "source", "estimated"]


def _toml(profile: dict[str, Any]) -> str:
    """A profile's values, then its tables, then its lists of tables."""
    tables = {key: value for key, value in profile.items() if isinstance(value, dict)}
    rows = [(key, row) for key, value in profile.items() if key == "measured" for row in value]
    plain = {k: value for k, value in profile.items() if k not in tables and k != "measured"}
    parts = [_pairs(plain)]
    parts += [f"[{key}]\n{_pairs(table)}" for key, table in tables.items()]
    parts += [f"[[{key}]]\n{_pairs(row)}" for key, row in rows]
    return "\n".join(parts)


def _pairs(table: dict[str, Any]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def _value(value: Any) -> str:
    """TOML's words for a number, a truth, a text, several of them."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _short(milliseconds: float) -> str:
    """Two digits that mean something: 0.42, 5.8, 41."""
    if milliseconds >= 10:
        return f"{milliseconds:,.0f}"
    return f"{milliseconds:.1f}" if milliseconds >= 1 else f"{milliseconds:.2f}"
