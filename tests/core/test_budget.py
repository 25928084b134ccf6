"""Budgets: the price settles where the cap is kept, and is nothing while less is spent."""

from __future__ import annotations

import pytest

from splitrt.core.budget import Budget, repriced, spent
from splitrt.errors import SplitrtError

GAINS = (0.02, 0.05, 0.08, 0.11, 0.14)  # of the frames, in turn


def spending(cap: float, seconds: int, gain: float = 1.0) -> tuple[list[float], Budget]:
    """Bytes of each second at 10 frames a second of 2,000 bytes, sent where they are worth it."""
    budget, told = Budget(cap), []
    for second in range(seconds):
        budget = repriced(budget, float(second))
        sent = sum(
            2000 for frame in range(10) if gain * GAINS[frame % 5] > 2000 * budget.price + 0.004
        )
        budget = spent(budget, sent)
        told.append(sent)
    return told, budget


def test_a_cap_is_kept_on_average_and_all_of_it_used():
    told, budget = spending(cap=8000, seconds=400)
    assert max(told) == 20_000  # as long as the price is unknown
    assert sum(told[100:]) / 300 == pytest.approx(8000, rel=0.1)
    assert budget.price > 0


def test_who_spends_less_than_the_cap_pays_nothing():
    told, budget = spending(cap=50_000, seconds=50)
    assert min(told) == 20_000 and budget.price == 0


def test_who_makes_every_frame_worth_sending_is_capped_too():
    told, _ = spending(cap=4000, seconds=2000, gain=20.0)
    assert sum(told[-500:]) / 500 == pytest.approx(4000, rel=0.15)


def test_the_price_falls_again_when_nothing_is_spent():
    _, budget = spending(cap=4000, seconds=100)
    for second in range(100, 200):
        budget = repriced(budget, float(second))
    assert budget.price == 0


def test_within_a_second_the_price_stays():
    budget = spent(repriced(Budget(100), 0.0), 1e9)
    assert repriced(budget, 0.99) == budget
    assert 0 < repriced(budget, 1.0).price <= 3 * 0.1 / 100 + 1e-12


@pytest.mark.parametrize("cap", [0, -1, float("inf"), float("nan")])
def test_a_budget_must_be_something(cap):
    with pytest.raises(SplitrtError):
        Budget(cap)
