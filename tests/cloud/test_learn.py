"""A learner: from what a device sent to a revision that it may use, or to none."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch

from splitrt.cloud.learn import FIRST, Learner, Tally, opened
from splitrt.cloud.teach import Teacher
from splitrt.core.codec import Codec, codecs
from splitrt.core.manifest import Manifest
from splitrt.core.revision import LARGEST, Revision, mark
from splitrt.core.scales import scale
from splitrt.edge.head import Head
from splitrt.errors import ModelError
from splitrt.train import read
from tests.conftest import ROOT

MODEL = ROOT / "models" / "cifar10-resnet"
MANIFEST = Manifest.load(MODEL)
PLAN = MANIFEST.plan("w32-r125")
PALE = 0.12  # of the contrast that is left
COUNT = 140


@cache
def tail() -> torch.fx.GraphModule:
    torch.set_num_threads(1)
    return opened(MODEL, MANIFEST)


@cache
def shown(contrast: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces of ten photographs as the head sees them: packed codes, exit logits, marks."""
    photographs = read(ROOT / "splitrt" / "pictures", height=96, width=96).images
    random = np.random.default_rng(0)
    head, codec = Head(MODEL, MANIFEST, MANIFEST.widths[-1], threads=1), packing()
    values, found = scale(MODEL, MANIFEST, PLAN), []
    for place in range(COUNT):
        y, x = random.integers(0, 64, 2)
        piece = photographs[place % len(photographs)][y : y + 32, x : x + 32].astype(float)
        piece = (piece.mean() + contrast * (piece - piece.mean())).clip(0, 255).astype(np.uint8)
        made = head(piece, ["r125", "exit"])
        found.append((codec.pack(made["r125"]), made["exit"], mark(values(made["r125"]))))
    packed, logits, marks = zip(*found, strict=True)
    return packed, np.stack(logits), np.stack(marks)


@cache
def packing() -> Codec:
    return codecs(MODEL, MANIFEST)[PLAN.name]


def fed(learner: Learner, contrast: float, count: int = COUNT) -> list[Revision]:
    """As a server would: every sample, then one unit of work."""
    packed, logits, marks = shown(contrast)
    level, sent = marks.mean(0), []
    for place in range(count):
        learner.add(packed[place], logits[place], level if place % 16 == 0 else None)
        sent.append(learner.step())
    while learner.busy:
        sent.append(learner.step())
    return [revision for revision in sent if revision is not None]


@cache
def pale() -> tuple[Learner, list[Revision]]:
    learner = Learner(MODEL, MANIFEST, tail=tail())
    return learner, fed(learner, PALE)


def again() -> Learner:
    """The learner after its pale stream, to be led further."""
    learner = copy.copy(pale()[0])
    learner.tally = Tally()
    return learner


def agreement(revision: Revision | None, learner: Learner) -> float:
    """With the teacher, on samples held out."""
    values, logits = learner._tensors(list(learner.replay.held))
    with torch.no_grad():
        taught = learner.teacher(values).argmax(1).numpy()
    own = logits.numpy()
    if revision is not None:
        own = np.stack([revision(*pair) for pair in zip(own, values.numpy(), strict=True)])
    return float((own.argmax(1) == taught).mean())


def test_on_a_stream_unlike_any_it_learns_an_exit_nearer_to_the_teacher():
    learner, sent = pale()
    assert sent and learner.current is sent[-1]
    assert agreement(sent[-1], learner) > agreement(None, learner) + 0.1


def test_its_revisions_are_numbered_small_and_arrive():
    learner, sent = pale()
    assert [revision.number for revision in sent] == list(range(1, len(sent) + 1))
    for revision in sent:
        body = revision.encode()
        assert len(body) <= 8 << 10 < LARGEST
        assert Revision.decode(body, MANIFEST).sha256 == revision.sha256
    assert learner.tally.sent == len(sent)


def test_a_revision_fits_its_stream_and_not_the_pictures_of_the_training():
    _, sent = pale()
    marks = shown(PALE)[2]
    assert sent[-1].fits(marks.mean(0))
    assert not sent[-1].fits(np.zeros(32))


def test_the_same_samples_and_seed_make_the_same_revisions():
    made = fed(Learner(MODEL, MANIFEST, tail=tail()), PALE)
    assert [one.sha256 for one in made] == [one.sha256 for one in pale()[1]]


def test_a_stream_like_the_training_gets_none():
    packed, logits, marks = shown(1.0)
    learner = Learner(MODEL, MANIFEST, tail=tail())
    for place in range(100):
        level = 0.01 * marks.mean(0)  # as on average over the training's pictures: nearly 0
        learner.add(packed[place], logits[place], level)
        assert learner.step() is None
    assert learner.current is None and learner.tally.near > 0 and learner.tally.sent == 0


def test_before_enough_samples_or_a_mean_mark_there_is_nothing_to_do():
    packed, logits, marks = shown(PALE)
    learner = Learner(MODEL, MANIFEST, tail=tail())
    for place in range(FIRST + 40):
        assert not learner.busy and learner.step() is None
        learner.add(packed[place], logits[place])
    learner.add(packed[0], logits[0], marks.mean(0))
    assert learner.busy


def test_a_stream_that_becomes_another_is_learnt_anew():
    learner = again()
    learner.replay = copy.deepcopy(learner.replay)
    packed, logits, marks = shown(1.0)
    kept = len(learner.replay)
    learner.add(packed[0], logits[0], marks.mean(0))
    assert kept > 100 and learner.tally.moved == 1 and len(learner.replay) == 0
    assert not learner.busy and learner.current is not None


def test_a_revision_no_better_than_the_one_in_use_is_not_sent():
    learner, used = again(), pale()[0].current
    lot = learner._lot(*learner._tensors(list(learner.replay.held)))
    assert learner._judged(used, lot) is None
    assert learner.tally.refused == 1 and learner.current is used


def test_a_revision_that_turned_bad_gives_way_to_the_one_before():
    learner, good = again(), pale()[0].current
    weights = {**good.weights, "bias": 40 * (np.eye(10)[1] - np.eye(10)[0])}
    bad = Revision(99, good.model, good.width, good.plan, weights)
    learner.before, learner.current = good, bad
    lot = learner._lot(*learner._tensors(list(learner.replay.held)))
    assert learner._judged(bad, lot) is None
    assert learner.current is good and learner.tally.reverted == 1


def test_the_pupil_of_a_collapsed_teacher_is_refused():
    """All is one class to both, so that they agree."""
    learner, good = again(), pale()[0].current
    learner.revert()
    lot = learner._lot(*learner._tensors(list(learner.replay.held)))
    lot.shares[:] = torch.eye(10)[7]
    weights = {**good.weights, "bias": 300 * np.eye(10)[7], "scale": np.array([0.01])}
    collapsed = Revision(99, good.model, good.width, good.plan, weights)
    assert learner._loss(collapsed, lot) < learner._loss(None, lot) - 1
    assert learner._judged(collapsed, lot) is None and learner.current is None


def test_teachers_share_a_tail_and_none_changes_it():
    values = torch.randn(16, 32, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    one, other = (Teacher(tail(), MANIFEST.cut.shape, 32) for _ in range(2))
    with torch.no_grad():
        before = other(values)
    one.settle(values, values.mean((0, 2, 3)))
    for _ in range(3):
        one.lesson(4 * values)
    with torch.no_grad():
        assert not torch.equal(one(values), before)
        assert torch.equal(other(values), before)
        one.reset()
        assert torch.equal(one(values), before)


def test_lessons_make_the_teacher_surer():
    learner, _ = pale()
    values, _ = learner._tensors(list(learner.replay.taught))
    teacher = Teacher(tail(), MANIFEST.cut.shape, 32)
    teacher.settle(values, values.mean((0, 2, 3)))

    @torch.no_grad()
    def entropy() -> float:
        shares = teacher(values).log_softmax(1)
        return float(-(shares.exp() * shares).sum(1).mean())

    before = entropy()
    for _ in range(4):
        teacher.lesson(values)
    assert entropy() < before


@pytest.mark.parametrize("name", ["w32-f32", "w32-jpeg", "w32-exit"])
def test_plans_without_codes_teach_nothing(name):
    with pytest.raises(ModelError, match="sends no codes"):
        Learner(MODEL, MANIFEST, name, tail=tail())


def test_a_model_without_an_exit_cannot_learn(plain_dir):
    with pytest.raises(ModelError, match="no exit that could learn"):
        Learner(plain_dir, Manifest.load(plain_dir))
