"""Which plans are worth having: those that no other beats in bytes, accuracy and head at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from splitrt.core.manifest import Plan
from splitrt.core.plan import Option

EXACT = ("f32",)  # the rung that proves the cut; never left out


@dataclass(frozen=True, slots=True)
class Cost:
    """What a plan costs and is worth: bytes, head in MACs or time (less is better), accuracy.

    instead: accuracy of what stands in for it.
    """

    bytes_mean: float
    accuracy: float
    head_macs: int = 0
    instead: float = 0.0

    def beats(self, other: Cost) -> bool:
        """Nowhere worse and somewhere better."""
        return (
            self.bytes_mean <= other.bytes_mean
            and self.accuracy >= other.accuracy
            and self.head_macs <= other.head_macs
            and self.instead >= other.instead
            and self != other
        )


def dominated(costs: Sequence[Cost]) -> list[bool]:
    """For each plan, whether another beats it; two that are equal both stay."""
    return [any(other.beats(cost) for other in costs) for cost in costs]


def unbeaten(options: Sequence[Option]) -> list[Option]:
    """The options that no other beats in bytes, accuracy, head and stand-in, in their order."""
    costs = [Cost(one.bytes, one.accuracy, int(1e6 * one.head), one.instead) for one in options]
    return [one for one, beaten in zip(options, dominated(costs), strict=True) if not beaten]


def pareto(plans: Sequence[Plan], *, keep: Collection[str] = EXACT) -> list[Plan]:
    """The plans without the dominated ones among those that go to the cloud, in their order.

    Plans of the edge, those without a record and those named in `keep` stay.
    """
    costs = {plan.name: cost for plan in plans if (cost := _cost(plan)) is not None}
    beaten = dict(zip(costs, dominated(list(costs.values())), strict=True))
    return [plan for plan in plans if plan.name in keep or not beaten.get(plan.name, False)]


def _cost(plan: Plan) -> Cost | None:
    if plan.place != "cloud" or plan.bytes_mean is None or plan.accuracy is None:
        return None
    return Cost(plan.bytes_mean, plan.accuracy, plan.head_macs or 0)
