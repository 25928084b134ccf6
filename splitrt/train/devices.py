"""What a model's heads would take on the devices of device_profiles, and which are too heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from splitrt.core.manifest import Manifest
from splitrt.core.profile import MOBILENET_V2, Estimate, head_ms, profiles

PIXELS = 224 * 224  # of the pictures for which MobileNetV2's MACs are quoted


@dataclass(frozen=True, slots=True)
class HeadCost:
    """One head, the cloud plans that it serves, and its estimate by profile, slowest first."""

    plans: list[str]
    macs: int
    devices: dict[str, Estimate]


def head_costs(manifest: Manifest) -> list[HeadCost]:
    """Every distinct head of a model directory, told apart by its MACs, lightest first."""
    serves: dict[int, list[str]] = {}
    for plan in manifest.plans:
        if plan.place == "cloud":
            macs = plan.head_macs or manifest.width(plan).head_macs
            serves.setdefault(macs, []).append(plan.name)
    return [HeadCost(serves[macs], macs, estimates(macs)) for macs in sorted(serves) if macs]


def estimates(macs: int) -> dict[str, Estimate]:
    """Milliseconds of so many MACs on each shipped profile."""
    return {name: head_ms(profile, macs) for name, profile in profiles().items()}


def heavy(manifest: Manifest) -> list[str]:
    """A sentence for each head with which a whole MobileNetV2 on the device would keep up.

    Compared by MACs: 300 M at 224 x 224, more in proportion for larger pictures, not less for
    smaller ones.
    """
    larger = max(1.0, math.prod(manifest.input.shape[:2]) / PIXELS)
    limit = MOBILENET_V2 * larger
    return [
        f"the head of {', '.join(head.plans)} takes {head.macs / 1e6:,.0f} MMAC, "
        f"a whole MobileNetV2 {limit / 1e6:,.0f}; cut earlier, or run a small model on the device"
        for head in head_costs(manifest)
        if head.macs > limit
    ]
