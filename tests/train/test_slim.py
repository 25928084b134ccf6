"""A student head of several widths: nested, each its own statistics, exact on the wire."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from splitrt import Edge, SplitrtError
from splitrt.cloud import Server
from splitrt.core.manifest import Manifest
from splitrt.errors import ModelError
from splitrt.train import Frames, Schedule, Split, Student, cut, distill, export
from splitrt.train.muon import orthogonal
from splitrt.train.rungs import Rate, contexts, levels
from tests.conftest import pictures

STUDENT = Student(
    codes=(2, 4, 6),
    shares=(0.5, 0.75, 1.0),
    stages=((8, 2, 0), (16, 2, 1)),
    payload=(20, 60),
    decoder=(16, 1),
)


def interesting(frames: Frames) -> Frames:
    return Frames(frames.images, frames.labels, frames.images.mean((1, 2, 3)) > 127)


@pytest.fixture(scope="module")
def slim(whole) -> Split:
    torch.manual_seed(0)
    split = cut(whole, after="stem", student=STUDENT, shape=(1, 3, 32, 32))
    schedule = Schedule(features=3, task=2, batch=32, once=True)
    frames = interesting(pictures(160))
    return distill(split, teacher=whole, frames=frames, schedule=schedule, progress=False)


@pytest.fixture(scope="module")
def slim_dir(slim, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "slim"
    held_out = interesting(pictures(80, seed=1))
    export(slim, folder, frames=pictures(200), held_out=held_out, pareto=False)
    return folder


@pytest.fixture(scope="module")
def slim_server(slim_dir):
    with Server(slim_dir, port=0, threads=1) as running:
        yield running


def test_the_first_channels_of_every_layer_are_a_narrow_head(slim):
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        for width in range(3):
            alone = slim.slim.alone(width)
            z = slim.project(slim.trunk(x, width), width)
            assert torch.equal(alone.project(alone.trunk(x)), z)
            assert z.shape[1:] == slim.crossings[width]
    narrow, wide = (slim.slim.layers[1].norms[width].running_var for width in (0, 2))
    assert not torch.allclose(narrow, wide[: len(narrow)])  # statistics of its own


def test_a_thin_width_computes_less(slim_dir):
    widths = Manifest.load(slim_dir).widths
    macs = [width.head_macs for width in widths]
    assert macs[0] <= macs[2] / 2 and macs == sorted(macs)
    sizes = [(slim_dir / width.head).stat().st_size for width in widths]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]


def test_every_plan_answers_as_torch_does(slim, slim_dir, slim_server):
    """Each width and rung over the wire against the modules it was exported from."""
    manifest = Manifest.load(slim_dir)
    images = pictures(5, seed=3).images
    session = {w.name: ort.InferenceSession(str(slim_dir / w.head)) for w in manifest.widths}
    plans = [p for p in manifest.plans if p.place == "cloud" and p.codec != "jpeg"]
    assert {plan.codec for plan in plans} == {"f32", "f16", "q4", "q2", "q1", "r20", "r60"}
    with Edge(slim_dir, cloud=slim_server.address, deadline=20) as edge:
        scales = slim_server.tail.scales
        for plan in plans:
            edge.plan = plan.name
            name = "features" if plan.codec in ("f32", "f16") else plan.codec
            for image in images:
                (z,) = session[plan.width].run([name], {"image": image[None]})
                z = torch.from_numpy(z)
                if name == "features":
                    z = z.half().float() if plan.codec == "f16" else z
                else:
                    z = z.float() * scales[plan.name].step + scales[plan.name].low
                with torch.no_grad():
                    wanted = slim.answer(z)[0][0].numpy()
                result = edge(image)
                assert (result.where, result.plan) == ("cloud", plan.name)
                np.testing.assert_allclose(result.outputs["logits"], wanted, rtol=1e-4, atol=1e-5)


def test_frames_of_all_widths_share_a_batch(slim_dir, slim_server):
    manifest, tail = Manifest.load(slim_dir), slim_server.tail
    random = np.random.default_rng(0)
    codes = []
    for plan in manifest.plans:
        if plan.codec in ("q2", "r20"):
            size = manifest.width(plan).elements
            codec = tail.codecs[plan.name]
            packed = codec.open(codec.encode(random.integers(0, 4, size, np.uint8)))
            codes.append((plan.name, packed))
    together = tail(codes)
    for one, outputs in zip(codes, together, strict=True):
        np.testing.assert_allclose(tail([one])[0][0], outputs[0], rtol=1e-4, atol=1e-5)


def test_the_width_is_chosen_per_frame_and_the_exit_is_that_widths(slim_dir, slim_server, image):
    with Edge(slim_dir, cloud=slim_server.address, plan="w6-r60", deadline=20) as edge:
        assert edge(image).plan == "w6-r60"
        edge.plan = "w2-r20"
        assert edge(image).plan == "w2-r20"
        slim_exit = edge.manifest.widths[0].exit
        edge.plan = "w2-exit"
        result = edge(image)
        assert (result.where, result.plan, result.sent_bytes) == ("edge", "w2-exit", 0)
        assert slim_exit is not None and slim_exit.steps
        with pytest.raises(SplitrtError, match="did you mean 'w2-r20'"):
            edge.plan = "w2-r21"
        assert edge.plan == "w2-exit"


def test_a_frame_without_interest_ends_here_and_says_so(slim_dir, slim_server):
    manifest = Manifest.load(slim_dir)
    record = manifest.widths[-1].filter
    assert record is not None and record.recall >= 0.95
    frames = interesting(pictures(60, seed=5))
    with Edge(slim_dir, cloud=slim_server.address, plan="w6-q4", deadline=20, filter=True) as edge:
        results = [edge(image) for image in frames.images]
    empty = np.array([result.plan == "empty" for result in results])
    for result in np.array(results, object)[empty]:
        assert (result.where, result.sent_bytes, result.outputs) == ("edge", 0, {})
        assert result.reason.startswith("nothing of interest")
    assert empty[~frames.interest].mean() > empty[frames.interest].mean()
    assert all(r.where == "cloud" for r in np.array(results, object)[~empty])


def test_a_model_without_a_filter_says_so(model_dir):
    with pytest.raises(SplitrtError, match="no emptiness filter"):
        Edge(model_dir, filter=True)


def test_an_interrupted_student_ends_as_an_uninterrupted_one(whole, tmp_path):
    def student(epochs: int, kept=None) -> Split:
        torch.manual_seed(7)
        split = cut(whole, after="stem", student=STUDENT, shape=(1, 3, 32, 32))
        schedule = Schedule(features=epochs, task=1, batch=32, once=True)
        frames = interesting(pictures(64))
        return distill(
            split, teacher=whole, frames=frames, schedule=schedule, checkpoint=kept, progress=False
        )

    class Stop(Exception):
        pass

    from splitrt.train import checkpoint

    straight = student(2).state_dict()
    keep, calls = checkpoint.Keeper.keep, []

    def once(self, stage, epochs):
        keep(self, stage, epochs)
        calls.append(epochs)
        raise Stop

    checkpoint.Keeper.keep = once
    try:
        with pytest.raises(Stop):
            student(2, tmp_path / "kept")
    finally:
        checkpoint.Keeper.keep = keep
    assert calls == [1]
    resumed = student(2, tmp_path / "kept").state_dict()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_the_rates_price_moves_the_bits_towards_their_aim():
    torch.manual_seed(0)
    rate = Rate(4, aim=200.0)
    optimiser = torch.optim.Adam(rate.parameters(), 0.05)
    z = torch.randn(64, 4, 8, 8)
    for step in range(600):
        values, bits = rate(z)
        loss = (values - z).square().mean() + bits * rate.charge(bits, step / 600)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert rate(z)[1].item() == pytest.approx(200, rel=0.1)


def test_contexts_are_below_about_and_above():
    assert contexts("q1") == [0, 1] and contexts("q2") == [0, 1, 2, 3]
    assert contexts("r64") == [0] * 7 + [1] + [2] * 7
    assert contexts("q4") == [0] * 6 + [1] * 4 + [2] * 6
    assert [levels(rung) for rung in ("q1", "q2", "q4", "r9")] == [2, 4, 16, 15]


def test_muons_steps_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((8, 30), (30, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.3 and values.max() < 1.4


@pytest.mark.parametrize(
    "wrong",
    [
        {"codes": (4, 2)},
        {"codes": (2, 4), "shares": (0.5, 0.9)},
        {"fixed": ("q3",)},
        {"fixed": (), "payload": ()},
        {"payload": (0,)},
    ],
)
def test_a_wrong_student_is_a_model_error(wrong):
    with pytest.raises(ModelError, match="help:"):
        Student(**{"codes": (2,), "shares": (1.0,), **wrong})


def test_a_student_is_fitted_to_the_cut(whole):
    split = cut(whole, after="last", student=(3, 5), shape=(1, 3, 32, 32))
    assert split.crossings == [(3, 8, 8), (5, 8, 8)]
    assert split.slim.student.shares == (0.5, 1.0)
    with torch.no_grad():
        assert split(torch.zeros(2, 3, 32, 32))[0].shape == (2, 10)
    alone = cut(whole, after="last", student=(4,), shape=(1, 3, 32, 32))
    assert alone.slim.student.shares == (1.0,)


def test_a_student_that_cannot_meet_the_cut_is_an_error(whole):
    with pytest.raises(ModelError, match="strides"):
        cut(whole, after="stem", student=Student(stages=((8, 3, 0),)), shape=(1, 3, 32, 32))
