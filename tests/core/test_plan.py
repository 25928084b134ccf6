"""The choice: probabilities that behave, values that follow, plans that do not flutter."""

from __future__ import annotations

import math
import random

import pytest

from splitrt.core.plan import Local, Option, Outlook, Price, choose, worth

FREE = Price()
LEAN, RICH = Option("lean", 1000, 0.03, 0.73), Option("rich", 20_000, 0.01, 0.78)


def outlook(seed: int) -> Outlook:
    """One that may occur."""
    draw = random.Random(seed)
    residuals = sorted(draw.gauss(0, 0.7) for _ in range(draw.choice([0, 5, 8, 12])))
    return Outlook(
        mu=draw.uniform(6, 16),
        spread=draw.uniform(0.15, 2),
        residuals=tuple(residuals),
        fixed=draw.uniform(0, 0.3),
        ahead=draw.uniform(0, 50_000),
        drained=draw.uniform(-0.1, 1),
        kappa=draw.uniform(0.5, 3),
    )


@pytest.mark.parametrize("seed", range(50))
def test_a_probability_lies_between_0_and_1_and_falls_with_bytes_and_rises_with_time(seed):
    link = outlook(seed)
    sizes = [link.hit(Option("", size, 0.03, 0.7), 0.25) for size in (1, 300, 4000, 90_000, 1e7)]
    times = [link.hit(Option("", 4000, 0.03, 0.7), left) for left in (0, 0.05, 0.2, 0.5, 2, 60)]
    heads = [link.hit(Option("", 4000, head, 0.7), 0.25) for head in (0.5, 0.2, 0.1)]
    assert all(0 <= hit <= 1 for hit in [*sizes, *times, *heads])
    assert sizes == sorted(sizes, reverse=True)
    assert times == sorted(times)
    assert heads[0] == 0.0  # longer than the deadline


def test_bytes_ahead_lower_the_probability_until_they_have_drained():
    kept = {"mu": math.log(50_000), "spread": 0.3, "residuals": (), "fixed": 0.08}
    alone = Outlook(**kept).hit(LEAN, 0.25)
    behind = Outlook(**kept, ahead=30_000, drained=0.0).hit(LEAN, 0.25)
    drained = Outlook(**kept, ahead=30_000, drained=0.7).hit(LEAN, 0.25)
    assert behind < 0.1 < drained == alone


def test_what_was_seen_weighs_more_than_the_normal_distribution():
    kept = {"mu": math.log(50_000), "spread": 1.0, "fixed": 0.08}
    option = Option("", 5000, 0.03, 0.7)
    never = Outlook(**kept, residuals=(-3.0,) * 12).hit(option, 0.25)
    always = Outlook(**kept, residuals=(3.0,) * 12).hit(option, 0.25)
    assert never < 0.3 and always > 0.7


def test_a_hedged_frame_is_never_worth_less_than_the_devices_own_answer():
    local = Local(0.6)
    assert worth(LEAN, 0.0, local, FREE) == pytest.approx(0.0)
    assert worth(LEAN, 1.0, local, FREE) == pytest.approx(0.13)
    assert worth(LEAN, 0.5, local, FREE) == pytest.approx(0.065)


def test_without_a_hedge_a_miss_costs_the_devices_answer():
    local = Local(0.6, hedged=False)
    assert worth(LEAN, 0.0, local, FREE) == pytest.approx(-0.6)
    assert worth(LEAN, 1.0, local, FREE) == pytest.approx(0.13)


def test_a_sure_device_sends_nothing():
    assert worth(RICH, 1.0, Local(0.97), FREE) < 0


def test_prices_are_taken_off():
    option = Option("", 1000, 0.03, 0.73, joules=0.2)
    price = Price(byte=1e-5, joule=0.1)
    gain = worth(option, 1.0, Local(0.6), FREE) - worth(option, 1.0, Local(0.6), price)
    assert gain == pytest.approx(1e-5 * 1000 + 0.1 * 0.2)


def picked(values, last=None, options=(LEAN, RICH)):
    best = choose(options, values, last, least=0.004, step=0.004)
    return best.name if best else None


def test_the_best_is_chosen_and_nothing_that_is_worth_too_little():
    assert picked([0.1, 0.2]) == "rich"
    assert picked([0.2, 0.1]) == "lean"
    assert picked([0.0039, -1]) is None
    assert picked([], options=()) is None


def test_a_richer_plan_must_be_better_by_a_step_and_a_leaner_one_need_not():
    assert picked([0.1, 0.1039], last="lean") == "lean"
    assert picked([0.1, 0.1041], last="lean") == "rich"
    assert picked([0.1001, 0.1], last="rich") == "lean"
    assert picked([0.003, 0.0065], last="lean") == "rich"  # the last is worth nothing by now
