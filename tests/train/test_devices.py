"""Heads on the shipped profiles, and the heads that are too heavy."""

from __future__ import annotations

import pytest

from splitrt.core.manifest import Manifest, Plan
from splitrt.core.profile import profiles
from splitrt.train.devices import head_costs, heavy


def with_heads(folder, *macs, shape=(32, 32, 3)):
    manifest = Manifest.load(folder)
    plans = [
        Plan(name=f"w{i}-q8", place="cloud", codec="q8", head_macs=each)
        for i, each in enumerate(macs)
    ]
    taken = manifest.input.model_copy(update={"shape": list(shape)})
    return manifest.model_copy(update={"plans": plans, "input": taken})


def test_every_distinct_head_is_estimated_on_every_profile(model_dir):
    heads = head_costs(with_heads(model_dir, 30, 10, 30))
    assert [(head.macs, head.plans) for head in heads] == [
        (10, ["w1-q8"]),
        (30, ["w0-q8", "w2-q8"]),
    ]
    for head in heads:
        assert list(head.devices) == list(profiles())
        assert all(one.estimated and 0 < one.low_ms < one.high_ms for one in head.devices.values())


def test_plans_without_macs_of_their_own_have_those_of_their_width(model_dir):
    (head,) = head_costs(with_heads(model_dir, None, None))
    assert head.macs == Manifest.load(model_dir).widths[-1].head_macs


@pytest.mark.parametrize(
    ("macs", "side", "warns"),
    [(300_000_000, 224, 0), (301_000_000, 224, 1), (28_000_000, 32, 0), (301_000_000, 32, 1),
     (301_000_000, 448, 0), (1_300_000_000, 448, 1)],
)  # fmt: skip
def test_a_head_heavier_than_a_whole_mobilenet_is_told(model_dir, macs, side, warns):
    told = heavy(with_heads(model_dir, macs, 1, shape=(side, side, 3)))
    assert len(told) == warns
    assert all("w0-q8" in line and "MobileNetV2" in line for line in told)
