"""Distillation: it learns, it is seeded, and an interruption changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from splitrt.errors import ModelError
from splitrt.train import Schedule, Split, cut, distill
from splitrt.train.checkpoint import Keeper
from splitrt.train.rungs import STEPS, fixed_low, seen
from tests.conftest import pictures

SHORT = Schedule(features=2, task=2, batch=32)


def fresh(whole) -> Split:
    torch.manual_seed(5)
    return cut(whole, after="stem", channels=4, shape=(1, 3, 32, 32))


def trained(whole, **options) -> Split:
    return distill(
        fresh(whole), teacher=whole, frames=pictures(96), schedule=SHORT, progress=False, **options
    )


def gap(split: Split, whole) -> float:
    """How far the split's answers are from the teacher's, relative."""
    x = split.pixels(torch.from_numpy(pictures(64, seed=9).images))
    with torch.no_grad():
        return ((split(x)[0] - whole(x)).norm() / whole(x).norm()).item()


def same(one: Split, other: Split) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


def test_the_bottleneck_comes_nearer_to_the_teacher(whole):
    untrained = fresh(whole)
    long = Schedule(features=12, task=4, batch=32)
    made = distill(fresh(whole), teacher=whole, frames=pictures(256), schedule=long, progress=False)
    assert gap(made, whole) < 0.7 * gap(untrained, whole)


def test_the_teacher_is_left_as_it_was(whole):
    before = copy.deepcopy(whole.state_dict())
    trained(whole)
    assert all(torch.equal(before[name], value) for name, value in whole.state_dict().items())


def test_the_same_seed_gives_the_same_weights_and_another_does_not(whole):
    assert same(trained(whole, seed=1), trained(whole, seed=1))
    assert not same(trained(whole, seed=1), trained(whole, seed=2))


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_an_interrupted_run_ends_as_one_that_was_not(whole, tmp_path, monkeypatch, stop_after):
    kept = []
    keep = Keeper.keep

    def keep_then_stop(self, stage, epochs):
        keep(self, stage, epochs)
        kept.append(stage.name)
        if len(kept) == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Keeper, "keep", keep_then_stop)
        trained(whole, checkpoint=tmp_path / "run")
    assert same(trained(whole, checkpoint=tmp_path / "run"), trained(whole))


def test_frames_without_labels_are_enough(whole):
    frames = pictures(64)
    unlabelled = type(frames)(frames.images)
    split = distill(fresh(whole), teacher=whole, frames=unlabelled, schedule=SHORT, progress=False)
    assert torch.isfinite(split(torch.rand(2, 3, 32, 32))[0]).all()


def test_a_cut_without_bottleneck_or_with_another_teacher_is_refused(whole):
    with pytest.raises(ModelError, match="channels"):
        distill(cut(whole, after="stem", shape=(1, 3, 32, 32)), teacher=whole, frames=pictures(4))
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)).eval()
    with pytest.raises(ModelError, match="teacher"):
        distill(fresh(whole), teacher=other, frames=pictures(4), progress=False)


@pytest.mark.parametrize("rung", ["q4", "q2", "q1"])
def test_what_is_trained_is_the_quantiser_and_lets_gradients_pass(rung):
    z = torch.linspace(-6, 6, 1000, requires_grad=True)
    values = seen(z, rung)
    low = STEPS[rung] * fixed_low(rung)
    assert values.min().item() == pytest.approx(low) and values.max().item() == pytest.approx(-low)
    places = (values - low) / STEPS[rung]
    assert torch.allclose(places, places.round(), atol=1e-5)
    inner = z.detach().abs() < -low
    (slope,) = torch.autograd.grad(values.sum(), z)
    assert (slope[inner] == 1).all()
