"""Forecasts: on a constant link they are the sums by hand; outages, units and the best plan."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from splitrt.core import links
from splitrt.core.forecast import crossing, options, outlook, sending
from splitrt.core.links import Trace
from splitrt.core.manifest import Manifest
from splitrt.core.profile import MOBILENET_V2, Figure, Profile, Timing
from splitrt.errors import ProfileError, SplitrtError

MS = {"head": 10.0, "exit": 8.0, "tail": 30.0, "codec": 1.0}


@pytest.fixture(scope="module")
def manifest(model_dir):
    """The tests' model with figures of its own: plans f32, q4, exit and local."""
    loaded = Manifest.load(model_dir)
    figures = {
        "f32": (1000.0, 0.90),
        "q4": (234.0, 0.88),
        "exit": (None, 0.6),
        "local": (None, 0.9),
    }
    plans = [
        loaded.plan(name).model_copy(update={"bytes_mean": size, "accuracy": accuracy})
        for name, (size, accuracy) in figures.items()
    ]
    return with_plans(loaded, plans)


def with_plans(manifest, plans):
    return manifest.model_copy(update={"plans": plans, "default_plan": plans[0].name})


def figure(value, estimated=False):
    return Figure(value=float(value), source="a test", estimated=estimated)


def measured(manifest, **more):
    """A Pi 4 that has measured the model: MS of each part, at 2 and at 1 thread."""
    width = manifest.widths[-1].name
    rows = [("head", width), ("exit", width), ("tail", width)]
    rows += [("codec", plan.name) for plan in manifest.plans if plan.place == "cloud"]
    timings = [
        Timing(
            model=manifest.name, digest=manifest.digest.hex(), part=part, name=name,
            threads=threads, p50_ms=MS[part] * slower, p95_ms=MS[part] * 9, rounds=9,
            source="measured", estimated=False,
        )
        for part, name in rows
        for threads, slower in ((1, 2.0), (2, 1.0))
    ]  # fmt: skip
    return Profile.load("pi-4").model_copy(update={"measured": tuple(timings), **more})


def found(manifest, profile, trace, **more):
    return {plan.name: plan for plan in outlook(manifest, profile, trace, **more).plans}


def test_on_a_constant_link_a_forecast_is_the_sum_by_hand(manifest):
    watts = {"idle_w": figure(2), "head_w": figure(5), "send_uj_per_byte": figure(4)}
    trace = links.find("4mbps")  # 20 ms there and back
    plans = found(manifest, measured(manifest, **watts), trace, server=0.007, deadline=1)
    for name, payload in (("f32", 1000), ("q4", 234)):
        size = payload + 16
        seconds = 0.010 + 0.001 + 8 * size / 4e6 + 0.020 + 0.007
        assert plans[name].bytes == size and plans[name].where == "cloud"
        assert plans[name].expected_ms == pytest.approx(1000 * seconds, rel=1e-9)
        assert plans[name].joules == pytest.approx(3 * 0.011 + 4e-6 * size)
        assert plans[name].hit == 1 and plans[name].worth == plans[name].accuracy
        assert not plans[name].ms_estimated and not plans[name].joules_estimated
    assert plans["exit"].expected_ms == pytest.approx(8)
    assert plans["local"].expected_ms == pytest.approx(40)
    assert plans["local"].joules == pytest.approx(3 * 0.040)
    assert plans["exit"].bytes == plans["local"].bytes == 0


def test_the_deadline_is_met_or_not_to_the_microsecond_on_a_constant_link(manifest):
    profile, trace = measured(manifest), links.find("4mbps")
    needs = 0.011 + 8 * 250 / 4e6 + 0.020 + 0.005
    for spare, hit in ((1e-6, 1), (0, 1), (-1e-6, 0)):
        assert found(manifest, profile, trace, deadline=needs + spare)["q4"].hit == hit


def test_the_exit_stands_in_for_an_answer_that_is_late(manifest):
    rates = np.array([8.0, 0.0] * 40)  # every other quarter of a second nothing
    trace = Trace("half", rates, 0.02)
    plans = found(manifest, measured(manifest), trace, deadline=0.1)
    hit = plans["q4"].hit
    assert 0.5 < hit < 0.8  # those sent in an outage's last 64 ms are in time as well
    assert plans["q4"].worth == pytest.approx(0.88 * hit + 0.6 * (1 - hit))
    assert plans["exit"].worth == 0.6 and plans["local"].worth == 0.9


def test_with_bins_a_frame_goes_only_where_its_plan_beats_the_exit(manifest):
    """.6 and .8 of q4 against .3 and .9 of the exit: those of which it is sure stay."""
    width = manifest.widths[-1]
    bins = {"edges": [0.7], "shares": [0.5, 0.5], "bins": [0.3, 0.9]}
    binned = width.model_copy(update={"exit": width.exit.model_copy(update=bins)})
    plans = [
        plan.model_copy(update={"bins": [0.6, 0.8]}) if plan.name == "q4" else plan
        for plan in manifest.plans
    ]
    model = with_plans(manifest, plans).model_copy(update={"widths": [binned]})
    made = {option.name: option for option in options(model, measured(manifest))}
    assert made["f32"].bins == () and made["q4"].edges == (0.7,)
    assert made["q4"].instead == pytest.approx(0.6)
    fast = found(model, measured(manifest), links.find("4mbps"), deadline=1)["q4"]
    assert fast.hit == 1 and fast.worth == pytest.approx((0.6 + 0.9) / 2)
    slow = found(model, measured(manifest), links.find("0.1mbps"), deadline=0.02)["q4"]
    assert slow.hit == 0 and slow.worth == pytest.approx(0.6)  # all by the exit


def test_nothing_stands_in_where_the_head_alone_is_late_or_there_is_no_exit(manifest):
    trace = links.find("4mbps")
    assert found(manifest, measured(manifest), trace, deadline=0.005)["q4"].worth == 0
    plans = [plan for plan in manifest.plans if plan.name != "exit"]
    widths = [width.model_copy(update={"exit": None}) for width in manifest.widths]
    bare = with_plans(manifest, plans).model_copy(update={"widths": widths})
    late = found(bare, measured(manifest), trace, deadline=0.02)["q4"]
    assert late.hit == 0 and late.worth == 0


def test_the_best_plan_is_worth_most_and_of_equals_soonest(manifest):
    profile = measured(manifest)
    assert outlook(manifest, profile, links.find("100mbps")).best == "f32"  # as good as local
    assert outlook(manifest, profile, links.find("0.1mbps")).best == "local"
    assert outlook(manifest, profile, links.find("9mbps"), deadline=0.039).best == "f32"
    assert outlook(manifest, profile, links.find("1mbps"), deadline=0.039).best == "q4"
    assert outlook(manifest, profile, links.find("0.1mbps"), deadline=0.039).best == "exit"


def test_what_was_not_measured_is_computed_from_macs_and_says_so(manifest):
    profile = Profile.load("pi-4")
    pace = 61.9 / MOBILENET_V2
    plans = found(manifest, profile, links.find("4mbps"))
    head = manifest.widths[-1].head_macs * pace
    assert plans["exit"].expected_ms == pytest.approx(head)
    whole = max(manifest.cut.whole_macs, manifest.widths[-1].head_macs) * pace
    assert plans["local"].expected_ms == pytest.approx(whole)
    assert plans["q4"].expected_ms == pytest.approx(head + 8e3 * 250 / 4e6 + 20 + 5)
    assert all(plan.ms_estimated and plan.joules_estimated for plan in plans.values())
    told = outlook(manifest, profile, links.find("4mbps"))
    assert any("ncnn" in line and "MACs" in line for line in told.estimated)


def test_a_model_whose_macs_nobody_knows_must_be_measured(manifest):
    widths = [width.model_copy(update={"head_macs": 0}) for width in manifest.widths]
    plans = [plan.model_copy(update={"head_macs": None}) for plan in manifest.plans]
    unknown = with_plans(manifest, plans).model_copy(update={"widths": widths})
    with pytest.raises(ProfileError, match="splitrt profile"):
        options(unknown, Profile.load("pi-4"))
    assert len(options(unknown, measured(manifest))) == len(plans)


def test_options_are_the_manifests_plans_in_order(manifest):
    profile = measured(manifest, idle_w=figure(2), head_w=figure(5), send_uj_per_byte=figure(4))
    made = options(manifest, profile)
    assert [option.name for option in made] == [plan.name for plan in manifest.plans]
    one = made[1]
    assert (one.bytes, one.accuracy) == (250, 0.88) and one.head == pytest.approx(0.011)
    assert one.joules == pytest.approx(3 * 0.011 + 4e-6 * 250)
    assert options(manifest, profile, uj_per_byte=0)[1].joules == pytest.approx(3 * 0.011)


def test_a_plan_without_a_record_counts_its_largest_message(manifest):
    plans = [p.model_copy(update={"bytes_mean": None, "accuracy": None}) for p in manifest.plans]
    bare = with_plans(manifest, plans)
    made = {option.name: option for option in options(bare, measured(manifest))}
    count = manifest.widths[-1].elements
    assert made["f32"].bytes == 16 + 4 * count + 1
    assert made["q4"].bytes == 16 + math.ceil(count / 2) + 1
    assert made["q4"].accuracy == made["local"].accuracy == 1 and made["exit"].accuracy == 0
    told = outlook(bare, measured(manifest), links.find("4mbps"))
    assert all(plan.accuracy is None for plan in told.plans)
    assert any("no record" in line for line in told.estimated)


def test_side_data_travels_too(detector_dir):
    manifest = Manifest.load(detector_dir)
    with_side = options(manifest, Profile.load("pi-4"))[0].bytes
    without = options(manifest.model_copy(update={"side": []}), Profile.load("pi-4"))[0].bytes
    assert with_side - without == 16  # two int64


def test_bytes_wait_for_the_end_of_an_outage_and_the_trace_begins_again():
    trace = Trace("steps", np.array([8.0, 0.0, 0.0, 4.0]))  # 250,000 bytes, then 125,000 a lap
    # Sent at 0, 0.25, 0.5 and 0.75 s.
    assert crossing(trace, 125_000, 4) == pytest.approx([0.125, 0.75, 0.5, 0.25])
    assert crossing(trace, 250_000, 4) == pytest.approx([0.25, 0.875, 0.625, 0.375])
    assert crossing(trace, 375_000, 4) == pytest.approx([1.0, 1.0, 0.75, 0.5])
    assert crossing(trace, 375_000 * 7 + 125_000, 4) == pytest.approx([7.125, 7.75, 7.5, 7.25])
    assert not crossing(trace, 0, 4).any()


def test_more_bytes_never_arrive_sooner_and_no_link_means_never():
    trace = links.generate(links.link("lte-poor"), 120, seed=4)
    times = [crossing(trace, size, 500) for size in (10, 1_000, 100_000, 10_000_000)]
    assert all((one <= two).all() for one, two in itertools.pairwise(times))
    assert np.isinf(crossing(Trace("dead", np.zeros(4)), 1, 3)).all()


def test_without_any_link_the_device_answers(manifest):
    told = outlook(manifest, measured(manifest), Trace("dead", np.zeros(40)), deadline=0.25)
    plans = {plan.name: plan for plan in told.plans}
    assert told.best == "local" and plans["q4"].hit == 0 and plans["q4"].expected_ms == 10_000


def test_a_phones_modem_is_taken_for_a_cellular_link_unless_sending_was_measured():
    pi, lte, wifi = Profile.load("pi-4"), links.find("lte-fair"), links.find("wifi")
    assert sending(pi, lte) == 3.5 and sending(pi, links.find("umts")) == 7
    assert sending(pi, wifi) == pi.send_uj_per_byte.value == 2.3
    own = pi.model_copy(update={"send_uj_per_byte": figure(1)})
    assert sending(own, lte) == sending(own, wifi) == 1


def test_joules_are_unknown_where_watts_are(manifest):
    told = outlook(manifest, Profile.load("laptop"), links.find("wifi"))
    assert all(plan.joules is None for plan in told.plans)
    assert any("no watts" in line for line in told.estimated)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"deadline": 0}, "deadline"),
        ({"deadline": math.inf}, "deadline"),
        ({"server": -1}, "server"),
    ],
)
def test_what_cannot_be_is_said(manifest, wrong, words):
    with pytest.raises(SplitrtError, match=words) as caught:
        outlook(manifest, Profile.load("pi-4"), links.find("wifi"), **wrong)
    assert "help:" in str(caught.value)
