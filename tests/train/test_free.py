"""Models whose pictures change their size, with several outputs and side inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from splitrt.cloud.tail import Tail
from splitrt.core.manifest import Manifest
from splitrt.edge.head import Head, LocalTail
from splitrt.errors import ModelError
from splitrt.train import Free, Pixels, Schedule, Sizes, cut, distill, export
from splitrt.train.graph import Graph, trace
from tests.conftest import pictures
from tests.detector import anchors, detector

SIZES = Sizes.between((64, 64), (160, 192))
SIDE = {"size": torch.tensor([[96, 160]])}
SHAPES = [(1, 64, 64), (3, 96, 160), (2, 160, 64), (1, 160, 192)]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(detector(), torch.rand(2, 3, 160, 192), Free(SIZES, SIDE))


def test_the_shapes_are_the_largest_pictures_and_the_rules_give_the_others(graph):
    place = graph.find("levels.0")
    assert place.shape == (16, 20, 24)
    assert graph.output_names == ("boxes", "scores")
    assert graph.output_shapes == [(anchors(160, 192), 4), (anchors(160, 192), 5)]
    assert graph.rules(place) == [16, "4h", "4w"]
    assert graph.output_rules() == [["42hw", 4], ["42hw", 5]]


def test_every_cut_of_every_size_is_the_whole(graph):
    whole = detector()
    answers = []
    with torch.no_grad():
        for place in graph.cuts[::2]:
            head, tail = graph.part(place)
            for batch, height, width in SHAPES:
                torch.manual_seed(height)
                x, size = torch.randn(batch, 3, height, width), torch.randint(50, 900, (batch, 2))
                wanted = whole(x, size)
                for found, other in zip(tail(head(x), size), wanted.values(), strict=True):
                    assert found.shape == other.shape
                    assert (found - other).norm() <= 1e-4 * other.norm()
                answers.append(wanted["scores"].std())
    assert min(answers) > 1e-3  # answers differ, so that equality says something


def test_cuts_lie_before_the_pyramid(graph):
    assert [cut.name for cut in graph.cuts][-1] == "levels.0"
    with pytest.raises(ModelError, match="tensors cross"):
        graph.find("levels.1")


class Early(nn.Module):
    """Uses its side input before the end of the head, then ends with classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, image: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(image) * gain.view(-1, 1, 1, 1)).mean((2, 3))


def test_no_cut_lies_behind_the_first_use_of_a_side_input():
    graph = trace(Early().eval(), torch.rand(2, 3, 8, 8), Free(side={"gain": torch.ones(2)}))
    assert [cut.name for cut in graph.cuts] == ["first"]


class Odd(nn.Module):
    """Its maps have ceil(H / 4) rows: multiples of 2 do not say how many."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.body(image)


def test_a_step_that_is_too_small_is_said_with_the_way_out():
    sizes = Sizes.between((8, 8), (32, 32), step=2)
    with pytest.raises(ModelError, match="larger step"):
        trace(Odd().eval(), torch.rand(2, 3, 32, 32), Free(sizes))


def test_one_free_side_may_be_fixed():
    sizes = Sizes.between((16, 32), (16, 64), step=16)
    graph = trace(Odd().eval(), torch.rand(2, 3, 16, 64), Free(sizes))
    assert graph.output_rules() == [[4, 4, "4w"]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"after": "levels.0", "free": Free(SIZES)}, "check --side"),
        ({"after": "levels.0", "free": Free(SIZES, {"size": torch.ones(2, 2) > 0})}, "float32 or"),
        ({"after": "levels.0", "free": Free(SIZES, SIDE, "sise")}, "no side input 'sise'"),
        (
            {"after": "levels.0", "free": Free(SIZES, SIDE), "example": torch.rand(2, 3, 64, 64)},
            "that large",
        ),
    ],
)
def test_what_cannot_be_is_said(given, words):
    with pytest.raises(ModelError, match=words):
        cut(detector(), **given)


def test_both_tails_and_both_heads_answer_the_same_at_every_size(detector_dir):
    manifest = Manifest.load(detector_dir)
    head, here, there = (
        Head(detector_dir, manifest, manifest.widths[0], threads=1),
        LocalTail(detector_dir, manifest, threads=1),
        Tail(detector_dir, manifest),
    )
    model, low, step = detector(), there.scales["q8"].low, there.scales["q8"].step
    random = np.random.default_rng(0)
    for _, height, width in SHAPES:
        image = random.integers(0, 256, (height, width, 3), np.uint8)
        size = np.array([3 * height, 2 * width])
        seen = head(image, ["features", "q8"])
        ours, theirs = (
            here(seen["features"], [size]),
            there.run(torch.from_numpy(seen["features"][None]), size[None]),
        )
        with torch.no_grad():
            wanted = model(Pixels()(torch.from_numpy(image)[None]), torch.from_numpy(size)[None])
        for (name, array), other in zip(ours.items(), theirs, strict=True):
            np.testing.assert_allclose(array, other[0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(array, wanted[name][0], rtol=1e-4, atol=1e-3)
        codes = ((torch.from_numpy(seen["features"]) - low) / step).round().clamp(0, 255).numpy()
        assert np.abs(codes - seen["q8"]).max() <= 1


def test_a_bottleneck_is_trained_at_one_size_and_serves_all(tmp_path):
    whole = detector()
    split = cut(whole, after="levels.0", channels=4, free=Free(SIZES, SIDE))
    frames = pictures(24, size=96)
    before = split.bottleneck.project[0].weight.clone()
    schedule = Schedule(features=1, task=1, batch=8)
    distill(split, teacher=whole, frames=frames, schedule=schedule, progress=False)
    assert not torch.equal(before, split.bottleneck.project[0].weight)
    manifest = export(split, tmp_path / "m", frames=frames)
    assert manifest.sizes.crossing == [4, "2h", "2w"]
    head, here, there = (
        Head(tmp_path / "m", manifest, manifest.widths[0], threads=1),
        LocalTail(tmp_path / "m", manifest, threads=1),
        Tail(tmp_path / "m", manifest),
    )
    for _, height, width in SHAPES:
        image = pictures(1, size=192).images[0, :height, :width]
        size = np.array([height, width])
        seen = head(np.ascontiguousarray(image), ["features", "q4"])
        assert seen["q4"].shape == (4, height // 16, width // 16)
        with torch.no_grad():
            wanted = split(split.pixels(torch.from_numpy(image)[None]), torch.tensor(size)[None])
        ours = here(seen["features"], [size])
        theirs = there.run(torch.from_numpy(seen["features"][None]), size[None])
        for one, other, torchs in zip(ours.values(), theirs, wanted, strict=True):
            np.testing.assert_allclose(one, other[0], rtol=1e-4, atol=1e-3)
            np.testing.assert_allclose(one, torchs[0], rtol=1e-4, atol=1e-3)


def test_a_bottleneck_that_would_halve_an_odd_number_is_refused():
    deep = nn.Sequential(Odd(), nn.Conv2d(4, 4, 1))
    sizes = Sizes.between((8, 8), (32, 64), step=4)
    with pytest.raises(ModelError, match="larger step"):
        cut(deep.eval(), after="0.body", channels=2, shape=(1, 3, 32, 64), free=Free(sizes))


def test_a_model_of_changing_tensors_and_no_side_input(tmp_path):
    sizes = Sizes.between((16, 16), (32, 64), step=16)
    split = cut(Odd().eval(), after="body.0", shape=(1, 3, 32, 64), free=Free(sizes))
    split.pixels = None
    manifest = export(split, tmp_path / "m")
    assert (manifest.input.kind, manifest.input.shape) == ("tensor", [3, 32, 64])
    x = torch.rand(1, 3, 16, 48)
    head, tail = (
        Head(tmp_path / "m", manifest, manifest.widths[0]),
        LocalTail(tmp_path / "m", manifest),
    )
    found = tail(head(head.prepare(x[0].numpy()), ["features"])["features"])
    torch.testing.assert_close(torch.from_numpy(found["output"]), split(x)[0][0])
