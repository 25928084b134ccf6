"""The choice: probabilities that behave, values that follow, plans that do not flutter."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrt.core.plan import (
    Bin,
    Local,
    Option,
    Outlook,
    Price,
    alike,
    choose,
    confirmed,
    worth,
)

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


UNIT = st.floats(0, 1)
drawn = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@st.composite
def binned(draw) -> Option:
    """An option with bins: shares that sum to 1, whatever accuracies."""
    weights = draw(st.lists(st.floats(0.1, 1), min_size=1, max_size=8))
    shares = [weight / sum(weights) for weight in weights]
    bins = tuple(Bin(share, draw(UNIT), draw(UNIT)) for share in shares)
    accuracy = sum(one.share * one.sent for one in bins)
    edges = tuple((place + 1) / len(bins) for place in range(len(bins) - 1))
    return Option("", 1000, 0.03, accuracy, 0.1, bins, edges)


@drawn
@given(binned(), UNIT, UNIT)
def test_with_bins_sending_is_worth_the_mean_of_what_it_is_worth_where_it_gains(option, hit, here):
    """Which is never less than keeping every frame, and never less than sending every frame."""
    found = worth(option, hit, Local(here), FREE)
    kept = option.instead - here
    sent = hit * option.accuracy + (1 - hit) * option.instead - here
    assert found >= max(kept, sent) - 1e-9
    by_hand = sum(one.share * max(0.0, hit * (one.sent - one.exit)) for one in option.bins)
    assert found == pytest.approx(kept + by_hand)


@drawn
@given(binned(), UNIT, UNIT)
def test_what_a_frame_is_promised_before_its_exit_answers_is_what_frames_get_after_it(
    option, hit, here
):
    price, begins = Price(byte=1e-5, joule=0.01), (0.0, *option.edges)
    gains = [max(0.0, confirmed(option, hit, begin, price)) for begin in begins]
    mean = sum(one.share * gain for one, gain in zip(option.bins, gains, strict=True))
    promised = worth(option, hit, Local(here), price)
    assert promised == pytest.approx(option.instead - here + mean, abs=1e-9)


@drawn
@given(binned(), UNIT)
def test_a_frame_lies_in_the_bin_that_begins_at_or_below_its_confidence(option, confidence):
    place = sum(edge <= confidence for edge in option.edges)
    assert option.seen(confidence) == option.bins[place]


def test_a_weak_exit_of_its_own_makes_an_option_worth_less_the_likelier_it_misses():
    own = Option("own", 1000, 0.0, 0.9, bins=(Bin(1.0, 0.87, 0.9),))
    weak = Option("weak", 1000, 0.0, 0.9, bins=(Bin(1.0, 0.83, 0.9),))
    local = Local(0.87)
    assert worth(own, 1.0, local, FREE) == pytest.approx(worth(weak, 1.0, local, FREE))
    assert worth(own, 0.0, local, FREE) == pytest.approx(0.0)
    assert worth(weak, 0.0, local, FREE) == pytest.approx(-0.04)


def test_without_bins_or_without_a_hedge_the_accuracy_over_all_frames_counts():
    bins = (Bin(0.5, 0.3, 0.9), Bin(0.5, 0.9, 0.5))
    with_bins, bare = Option("", 1000, 0.03, 0.7, bins=bins, edges=(0.5,)), Option("", 9, 0.03, 0.7)
    assert worth(bare, 0.5, Local(0.6), FREE) == pytest.approx(0.05)
    assert confirmed(bare, 0.5, 0.6, FREE) == pytest.approx(0.05)
    alone = Local(0.6, hedged=False)
    assert worth(with_bins, 0.5, alone, FREE) == worth(bare, 0.5, alone, FREE)


def test_options_are_compared_by_bins_only_if_all_have_them():
    one = Option("one", 1000, 0.03, 0.7, bins=(Bin(1.0, 0.6, 0.7),))
    assert alike([one, one]) == [one, one]
    assert [option.bins for option in alike([one, LEAN])] == [(), ()]
