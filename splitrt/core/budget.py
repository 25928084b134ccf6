"""A cap on bytes or joules a second, as a price that rises while too many are spent.

Dual ascent: the price is the multiplier of the cap. It also caps who would make the device send
everything, for instance with pictures that no exit is sure of (Hong et al. 2021, DeepSloth).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from splitrt.errors import SplitrtError

EVERY = 1.0  # seconds between two prices
STEP = 0.1  # how far the price moves when twice the cap is spent, in 1 / cap
FURTHEST = 3.0  # times the cap: what is spent beyond does not raise the price faster


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `cap` units a second on average.

    price: of a unit, in accuracy of a frame.  spent: units since `since`, in seconds.

        budget = repriced(spent(Budget(cap=20_000), 3_700), now)
    """

    cap: float
    price: float = 0.0
    spent: float = 0.0
    since: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.cap < float("inf"):
            raise SplitrtError(f"a budget of {self.cap} a second\nhelp: more than 0, and finite")


def spent(budget: Budget, units: float) -> Budget:
    """The budget after so many bytes or joules."""
    return replace(budget, spent=budget.spent + units)


def repriced(budget: Budget, now: float) -> Budget:
    """The same until a second has passed; then the next price."""
    if budget.since is None:
        return replace(budget, since=now)
    passed = now - budget.since
    if passed < EVERY:
        return budget
    over = min(budget.spent / (budget.cap * passed) - 1, FURTHEST)
    price = max(0.0, budget.price + STEP * over * passed / budget.cap)
    return replace(budget, price=price, spent=0.0, since=now)
