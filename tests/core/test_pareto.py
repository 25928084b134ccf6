"""Pareto: what another plan beats in everything goes, and nothing else."""

from __future__ import annotations

from splitrt.core.manifest import Plan
from splitrt.core.pareto import Cost, dominated, pareto


def cloud(name, size, accuracy, macs=100):
    return Plan(
        name=name, place="cloud", codec=name, bytes_mean=size, accuracy=accuracy, head_macs=macs
    )


def test_one_strict_advantage_and_no_disadvantage_beats():
    one = Cost(300, 0.88, 100)
    for other in (Cost(301, 0.88, 100), Cost(300, 0.87, 100), Cost(300, 0.88, 101)):
        assert one.beats(other) and not other.beats(one)


def test_an_advantage_anywhere_saves_a_plan():
    costs = [Cost(300, 0.88, 100), Cost(200, 0.80, 100), Cost(400, 0.89, 100), Cost(310, 0.8, 50)]
    assert dominated(costs) == [False] * 4
    assert dominated([*costs, Cost(300, 0.79, 100)]) == [False] * 4 + [True]


def test_equal_plans_both_stay_and_nothing_is_nothing():
    assert dominated([Cost(300, 0.88), Cost(300, 0.88)]) == [False, False]
    assert dominated([]) == []


def test_the_exact_rung_the_edge_and_the_unmeasured_stay():
    plans = [
        cloud("f32", 3072, 0.8848),
        cloud("f16", 1536, 0.8848),
        cloud("q8", 732, 0.8848),
        cloud("q4", 301, 0.884),
        cloud("w4-q4", 310, 0.80, 90),
        cloud("w4-q8", 900, 0.80, 100),
        Plan(name="unmeasured", place="cloud", codec="q8"),
        Plan(name="local", place="edge", accuracy=0.1),
    ]
    names = [plan.name for plan in pareto(plans)]
    assert names == ["f32", "q8", "q4", "w4-q4", "unmeasured", "local"]
    assert "f32" not in [plan.name for plan in pareto(plans, keep=())]
    assert "f16" in [plan.name for plan in pareto(plans, keep=("f16",))]
