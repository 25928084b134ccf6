"""One model on one device: its plans, what each costs there, what each answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.endtoend.record import QUALITIES, Records, pictured
from splitrt.core import forecast
from splitrt.core.forecast import ENVELOPE
from splitrt.core.gate import Verdict, unsure
from splitrt.core.manifest import Manifest
from splitrt.core.pareto import unbeaten
from splitrt.core.plan import Option, alike
from splitrt.core.profile import Profile, head_ms

DEVICES = ("pi-4", "pi-5", "jetson-nano")
CAMERA_HEAD, CAMERA_WHOLE = 300_000_000, 4_000_000_000  # MACs
CAMERA_DEFAULT = "split-8k"
# Made up, of the size of a detector at 224 pixels: bytes and what the controller thinks that an
# answer is worth. Nothing was trained, so no accuracy is ever reported.
CAMERA_PLANS = {
    "split-2k": (2_000, 0.700),
    "split-4k": (4_000, 0.740),
    "split-8k": (8_000, 0.770),
    "split-20k": (20_000, 0.780),
}
CAMERA_JPEGS = {"jpeg-9k": (9_000, 0.730), "jpeg-14k": (14_000, 0.765), "jpeg-22k": (22_000, 0.785)}
CAMERA_JPEG, CAMERA_EXIT = "jpeg-22k", 0.550


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The plans of a model on a device.

    options: the controller's, with the seconds of the head that the exit needs too.  default: the
    plan of a fixed split.  jpegs: of several qualities and stand-ins.  exits: seconds and expected
    accuracy of each, by its plan.  stands: which of them stands in for an option.  unsure: the best
    exit's accuracy where it is not sure, for options without bins.  whole: seconds of the whole
    model.  watts: of computing.  records: real answers; None where no model is.
    """

    name: str
    device: Profile
    options: tuple[Option, ...]
    default: Option
    jpegs: tuple[Option, ...]
    exits: dict[str, tuple[float, float]]
    stands: dict[str, str]
    unsure: float
    whole: float
    records: Records | None = None

    @property
    def watts(self) -> float:
        """Of the device while it computes, beyond being idle."""
        return self.device.working_w or 0.0

    @property
    def best_exit(self) -> str:
        """The plan of the exit that is right most often."""
        return max(self.exits, key=lambda name: self.exits[name][1])

    def sent(self, option: Option, frame: int) -> float:
        """Bytes of the message of that frame."""
        return (
            option.bytes if self.records is None else float(self.records.bytes[option.name][frame])
        )

    def right(self, plan: str, frame: int) -> bool:
        """Whether that plan answers that frame as it is labelled."""
        found = self.records
        return found is not None and bool(found.answers[plan][frame] == found.labels[frame])

    def judged(self, exits: str, frame: int) -> Verdict:
        """On an exit's answer; without a model never sure, of average worth."""
        found = self.records
        if found is None:
            return Verdict(False, self.exits[exits][1])
        return Verdict(bool(found.sure[exits][frame]), float(found.confidence[exits][frame]))


def shipped(model: Path, device: str, records: Records) -> Table:
    """The shipped model; options, heads and their order as `splitrt plan` and an Edge have them."""
    manifest, profile = Manifest.load(model), Profile.load(device)
    known = {option.name: option for option in forecast.options(manifest, profile)}
    cloud = [known[plan.name] for plan in manifest.plans if plan.place == "cloud"]
    exits = {plan.name: plan for plan in manifest.plans if plan.exits}
    jpeg = known[pictured(manifest)]
    others = {f"jpeg-{quality}": f"jpeg-{quality}" for quality in QUALITIES}
    pictures = [known[plan.name] for plan in manifest.plans if manifest.pictured(plan)]
    jpegs = (*pictures, *(_scored(jpeg, name, records) for name in others))
    stands = {
        plan.name: manifest.exit_plan(manifest.width(plan)).name
        for plan in manifest.plans
        if plan.place == "cloud"
    }
    return Table(
        manifest.name,
        profile,
        tuple(alike(unbeaten(cloud))),
        known[manifest.default_plan],
        jpegs,
        {name: (known[name].head, plan.accuracy or 0.0) for name, plan in exits.items()},
        stands | dict.fromkeys(others, stands[jpeg.name]),
        unsure(manifest.exit),
        head_ms(profile, manifest.cut.whole_macs).low_ms / 1000,
        records,
    )


def camera(device: str) -> Table:
    """A made-up model of a detector's size: latency and bytes only."""
    profile = Profile.load(device)
    head = head_ms(profile, CAMERA_HEAD).high_ms / 1000
    splits, jpegs = (
        {name: Option(name, size + ENVELOPE, head, worth) for name, (size, worth) in plans.items()}
        for plans in (CAMERA_PLANS, CAMERA_JPEGS)
    )
    return Table(
        "camera",
        profile,
        (*splits.values(), jpegs[CAMERA_JPEG]),
        splits[CAMERA_DEFAULT],
        tuple(jpegs.values()),
        {"exit": (head, CAMERA_EXIT)},
        dict.fromkeys([*splits, *jpegs], "exit"),
        CAMERA_EXIT,
        head_ms(profile, CAMERA_WHOLE).low_ms / 1000,
    )


def _scored(jpeg: Option, name: str, records: Records) -> Option:
    size = float(np.mean(records.bytes[name]))
    return replace(jpeg, name=name, bytes=size, accuracy=records.right(name))
