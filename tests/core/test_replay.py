"""The controller on replayed links: bounded by the oracle, above the simpler rules."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.link.__main__ import main
from benchmarks.link.oracle import oracle
from benchmarks.link.policies import Bandit, Controlled, Neurosurgeon, Policy, Static
from benchmarks.link.replay import replay
from benchmarks.link.scene import PI4, Scene, Table, Uplink, scene, shipped, suite
from splitrt.core import links
from splitrt.core.control import Rules
from splitrt.core.links import Trace
from splitrt.core.plan import Local, Option

SEEDS = (4,)


def constant(mbps: float, options: tuple[Option, ...], *, deadline: float) -> Scene:
    """A link, round trips of 50 ms and a server's 10 ms that never vary; local answers: 0.6."""
    trace = Trace("constant", np.full(240, mbps), 0.05)
    one = scene(trace, Table("test", options, Local(0.6)), deadline=deadline)
    return replace(one, rtts=np.full(one.frames, 0.05), servers=np.full(one.frames, 0.01))


@pytest.fixture(scope="module")
def played() -> dict[str, dict[str, float]]:
    """Captured share of each policy on each scene of a small suite."""
    told = {}
    for one in suite(PI4, SEEDS, seconds=200):
        best, local = oracle(one), one.table.local.accuracy
        policies = {
            "controller": Controlled(one),
            "blind": Controlled(one, rules=Rules(probes=0.0)),
            "certain": Controlled(one, rules=Rules(spread=1e-3), risk=False),
            "uncensored": Controlled(one, rules=Rules(patience=math.inf)),
            "trusting": Controlled(one, rules=Rules(silence=math.inf)),
            "neurosurgeon": Neurosurgeon(one),
            "bandit": Bandit(one),
            **{option.name: Static(one, option) for option in one.table.options},
        }
        reached = {name: replay(one, policy).accuracy for name, policy in policies.items()}
        told[one.name] = {name: (got - local) / (best - local) for name, got in reached.items()}
    return told


def mean(played: dict[str, dict[str, float]], name: str) -> float:
    return sum(shares[name] for shares in played.values()) / len(played)


def test_the_oracle_bounds_every_policy(played):
    for name, shares in played.items():
        assert max(shares.values()) <= 1, name


def test_most_of_what_a_clairvoyant_would_gain_is_captured(played):
    shares = [row["controller"] for row in played.values()]
    assert mean(played, "controller") >= 0.83 and min(shares) >= 0.70


def test_the_controller_is_close_to_the_best_static_plan_in_hindsight_or_better(played):
    static = [max(row[one.name] for one in PI4.options) for row in played.values()]
    assert mean(played, "controller") >= sum(static) / len(static) - 0.03


@pytest.mark.parametrize("name", ["neurosurgeon", "bandit"])
def test_rules_of_mean_latency_are_worse(played, name):
    assert mean(played, name) < mean(played, "controller") - 0.05


@pytest.mark.parametrize("name", ["blind", "certain", "uncensored", "trusting"])
def test_each_part_of_the_controller_earns_its_place(played, name):
    assert mean(played, name) < mean(played, "controller")


def test_a_hedge_is_worth_more_than_any_rule():
    """On one link of each kind: not hedged, each late answer is none."""
    for one in suite(PI4, SEEDS, names=("lte-fair", "umts"), seconds=120):
        hedged = replay(one, Controlled(one)).accuracy
        assert replay(one, Controlled(one, hedged=False), hedged=False).accuracy < hedged


def test_small_messages_only_are_enough_to_come_back_to_the_best_plan():
    """The shipped model's plans are too small to tell the rate by themselves."""
    for one in suite(shipped(), SEEDS, names=("lte-good",), seconds=200):
        gain = replay(one, Controlled(one)).accuracy - one.table.local.accuracy
        assert gain >= 0.9 * (oracle(one) - one.table.local.accuracy)


def test_few_frames_are_probes():
    for one in suite(PI4, SEEDS, names=("lte-poor",), seconds=120):
        for hedged in (True, False):
            told = replay(one, Controlled(one, hedged=hedged), hedged=hedged)
            assert told.probes <= 0.05 + 1 / one.frames


def test_the_device_alone_is_the_zero_of_the_scale():
    one = constant(1.0, PI4.options, deadline=0.25)
    assert replay(one, Policy(one)).accuracy == pytest.approx(0.6)


def test_on_a_constant_link_the_oracle_takes_the_best_plan_that_fits():
    """1 Mbit/s: 10,000 bytes take 80 ms and fit into each period; 20,000 miss the deadline."""
    options = (Option("a", 20_000, 0, 0.9), Option("b", 10_000, 0, 0.8), Option("c", 100, 0, 0.7))
    one = constant(1.0, options, deadline=0.2)
    assert oracle(one) == pytest.approx(0.8)
    assert replay(one, Static(one, options[1])).accuracy == pytest.approx(0.8)
    assert oracle(replace(one, deadline=0.06)) == pytest.approx(0.6)


@pytest.mark.parametrize("mbps", [0.3, 1.0, 3.0, 10.0])
def test_on_a_constant_link_the_controller_settles_near_the_oracle(mbps):
    one = constant(mbps, PI4.options, deadline=0.25)
    gain = replay(one, Controlled(one)).accuracy - 0.6
    assert gain >= 0.8 * (oracle(one) - 0.6)


def test_on_a_constant_link_the_oracle_shares_it_among_frames():
    """15,000 bytes take 120 ms: only after a pause do they meet the deadline, every second time."""
    one = constant(1.0, (Option("a", 15_000, 0, 0.9),), deadline=0.185)
    assert oracle(one) == pytest.approx((0.9 + 0.6) / 2)


def test_the_uplink_is_a_queue_that_stands_still_in_an_outage():
    trace = links.broken(Trace("t", np.full(80, 8.0)), 5, 10)  # a million bytes a second
    link = Uplink(trace, lossy=False)
    assert link.put(1.0, 100_000) == pytest.approx(1.1)
    assert link.put(1.05, 100_000) == pytest.approx(1.2)
    assert link.put(4.95, 100_000) == pytest.approx(10.05)
    link.reopen(6.0)
    assert link.put(6.0, 100_000) == pytest.approx(10.1)


def test_what_an_outage_swallows_comes_again_only_when_tcp_tries():
    """Tries 0.3 s after 5 s, then 0.9, 2.1, 4.5, 9.3 s; a new connection need not wait."""
    trace = links.broken(Trace("t", np.full(80, 8.0)), 5, 10)
    old, new = Uplink(trace, lossy=True), Uplink(trace, lossy=True)
    assert old.put(4.95, 100_000) == pytest.approx(14.3 + 0.05)
    new.put(4.95, 100_000)
    new.reopen(6.5)
    assert new.put(6.5, 100_000) == pytest.approx(10.1)


def test_a_recorded_trace_is_replayed_and_told_as_json(tmp_path, monkeypatch, capsys):
    lines = [f"{second},{1 + second % 3}" for second in range(31)]
    (tmp_path / "drive.csv").write_text("\n".join(lines))
    paths = ["--trace", str(tmp_path / "drive.csv"), "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", ["link", *paths])
    main()
    told = json.loads((tmp_path / "out.json").read_text())["drive/0"]
    assert 0 < told["controller"]["captured"] <= told["oracle"]["captured"] == 1
    assert "neurosurgeon" in capsys.readouterr().out
