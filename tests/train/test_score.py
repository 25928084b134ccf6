"""Score: the table is counted, not assumed."""

from __future__ import annotations

import pytest

from splitrt.errors import ModelError, SplitrtError
from splitrt.train import Frames, cut, export, score
from tests.conftest import SHARED, pictures


def test_without_bottleneck_every_exact_plan_agrees_with_the_whole(plain_dir):
    frames = Frames(pictures(60, seed=6).images)
    found = score(plain_dir, frames, plans=["f32", "local"])
    assert found.whole == 1.0 and not found.labelled
    assert [(plan.accuracy, plan.lost) for plan in found.plans] == [(1.0, 0), (1.0, 0)]
    f32, local = found.plans
    assert 8 * 16 * 16 * 4 < f32.bytes_mean < 8 * 16 * 16 * 4 + 20
    assert local.bytes_mean == 0 and (f32.where, local.where) == ("cloud", "edge")


def test_baselines_are_the_same_pictures_as_files(model_dir):
    frames = pictures(30, seed=6)
    found = score(model_dir, frames, plans=["q4"])
    assert [line.codec for line in found.baselines] == ["jpeg"] * 5 + ["webp"] * 5
    jpeg = [line for line in found.baselines if line.codec == "jpeg"]
    assert all(line.scan_bytes_mean < line.bytes_mean for line in jpeg)
    assert jpeg[0].bytes_mean < jpeg[-1].bytes_mean
    keys = found.as_dict()
    assert set(keys["whole"]) >= {"accuracy"}
    wanted = {"name", "accuracy", "bytes_mean", "bytes_p95", "head_ms", "total_ms"}
    assert set(keys["plans"][0]) >= wanted
    assert set(keys["baselines"][0]) >= {"codec", "quality", "accuracy", "bytes_mean"}


def test_the_gated_plan_answers_some_here(model_dir):
    found = score(model_dir, pictures(40), plans=["auto"], baselines=False)
    assert 0 <= found.plans[0].share_edge <= 1 and found.plans[0].lost == 0


def test_the_exit_curve_mixes_what_the_plans_answered(model_dir):
    found = score(model_dir, pictures(40), plans=["exit", "q4"], baselines=False)
    local, cloud = found.plans
    curve = found.exit_curve.curve
    assert (curve[0].accuracy, curve[-1].accuracy) == (cloud.accuracy, local.accuracy)
    assert (curve[0].bytes_mean, curve[-1].bytes_mean) == (cloud.bytes_mean, 0)
    assert [mix.share for mix in found.exit_curve.points] == [0.1, 0.25, 0.5, 0.75]
    assert set(found.as_dict()["exit_curve"]) == {"plan", "points", "within", "curve"}
    assert "by exit" in str(found)
    assert score(model_dir, pictures(5), plans=["q4"], baselines=False).exit_curve is None


def test_a_plan_that_costs_more_for_no_more_is_marked(plain_dir):
    frames = Frames(pictures(30, seed=6).images)
    found = score(plain_dir, frames, plans=["f32", "f16", "local"], baselines=False)
    marks = {plan.name: (plan.accuracy, plan.dominated) for plan in found.plans}
    assert marks["f32"][1] == (marks["f16"][0] >= marks["f32"][0])
    assert not marks["f16"][1] and not marks["local"][1]
    assert [head.macs for head in found.heads] == [found.plans[0].head_macs]
    assert found.warnings == []


def test_an_unknown_plan_and_a_model_without_whole_are_named(model_dir, tmp_path):
    with pytest.raises(SplitrtError, match="'q5'"):
        score(model_dir, pictures(2), plans=["q5"])
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)).eval()
    export(cut(model, after="0", shape=(1, 6)), tmp_path / "m")
    with pytest.raises(ModelError, match="pictures"):
        score(tmp_path / "m", pictures(2))


def test_the_shipped_model_keeps_its_promise_on_real_pictures():
    """128 bytes a picture, 2.5 points lost at most, on the lossless test set; 64 bytes, 4."""
    if not SHARED.exists():
        pytest.skip("../shared/data is absent")
    from splitrt.demo import shipped
    from splitrt.train import read

    file = SHARED / "cifar10" / "clean_test_1017.npz"
    frames = read(file, height=32, width=32)
    found = score(shipped(), frames, plans=["w32-r125", "w32-r58"], baselines=False)
    assert found.whole >= 0.88
    for plan, lost, most in zip(found.plans, (0.025, 0.04), (128, 64), strict=True):
        assert plan.accuracy >= found.whole - lost
        assert plan.bytes_mean <= most
