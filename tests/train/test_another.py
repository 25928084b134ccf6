"""One head, many tails: another model answers the same payload, and the device sends once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from splitrt import Edge
from splitrt.cloud import Server
from splitrt.core import packet
from splitrt.core.manifest import Manifest, prove
from splitrt.errors import ModelError, ModelMismatch
from splitrt.train import Frames, Schedule, another, cut, distill, export
from tests.conftest import pictures, settled


class Places(nn.Module):
    """Another network for the same pictures: 4 kinds of places, of another shape inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 5, 2, 2), nn.BatchNorm2d(12), nn.ReLU())
        self.classify = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.stem(x).mean((2, 3)))


@pytest.fixture(scope="module")
def places_dir(split, model_dir, tmp_path_factory):
    torch.manual_seed(2)
    whole = settled(Places(), (3, 32, 32))
    images = pictures(64).images
    before = copy.deepcopy(split.state_dict())
    second = another(split, whole, after="stem")
    schedule = Schedule(features=1, task=1, batch=32)
    distill(second, teacher=whole, frames=Frames(images), schedule=schedule, progress=False)
    for name, tensor in split.state_dict().items():
        assert torch.equal(before[name], tensor), name  # the head stays as it was
    folder = tmp_path_factory.mktemp("models") / "places"
    export(second, folder, labels=list("abcd"), head=model_dir)
    return folder


def test_the_second_directory_is_whole_and_has_the_same_head(model_dir, places_dir):
    first, second = prove(model_dir), prove(places_dir)
    assert first.contract == second.contract and first.digest != second.digest
    for width in first.widths:
        assert first.files[width.head] == second.files[width.head]
    assert second.outputs[0].shape == [4] and second.labels == list("abcd")


@pytest.mark.parametrize("plan", ["f32", "q8", "q4"])
def test_one_payload_is_answered_by_both_tails(model_dir, places_dir, plan):
    images, name = pictures(6, seed=7).images, Manifest.load(places_dir).outputs[0].name
    with Server(model_dir, port=0, tails=[places_dir], threads=1) as server:
        with Edge(model_dir, cloud=server.address, plan=plan, deadline=20) as edge:
            first = [edge(image) for image in images]
        with Edge(places_dir, cloud=server.address, plan=plan, deadline=20) as edge:
            second = [edge(image) for image in images]
        with Edge(
            model_dir, cloud=server.address, plan=plan, deadline=20, tails=[places_dir]
        ) as edge:
            both = [edge(image) for image in images]
    for one, other, result in zip(first, second, both, strict=True):
        assert list(result.outputs) == ["logits", f"places/{name}"]
        assert result.sent_bytes == one.sent_bytes == other.sent_bytes
        np.testing.assert_array_equal(result.outputs["logits"], one.outputs["logits"])
        np.testing.assert_array_equal(result.outputs[f"places/{name}"], other.outputs[name])


def test_devices_that_want_different_tails_share_a_batch(model_dir, places_dir):
    with Server(model_dir, port=0, tails=[places_dir], threads=1) as server:
        tail, manifest = server.tail, server.manifest
        codec = tail.codecs["q8"]
        packed = codec.open(codec.encode(np.zeros(codec.count, np.uint8)))
        mine, others = list(tail.branches)
        found = tail([("q8", packed)] * 3, wanted=[(mine,), (others,), (others, mine)])
        assert [[array.shape for array in one] for one in found] == [
            [(10,)], [(4,)], [(4,), (10,)],
        ]  # fmt: skip
        alone = tail([("q8", packed)])[0][0]
        np.testing.assert_allclose(found[2][1], alone, rtol=1e-4, atol=1e-5)
        assert packet.agree(tail.branches, packet.hello(manifest)) == (mine,)


def test_a_tail_that_the_server_does_not_hold_is_a_mismatch(model_dir, places_dir, image):
    with Server(model_dir, port=0, threads=1) as server:
        with Edge(model_dir, cloud=server.address, plan="q4", tails=[places_dir]) as edge:
            with pytest.raises(ModelMismatch):
                edge(image)


def test_a_tail_of_another_head_is_a_mismatch(model_dir, plain_dir):
    with pytest.raises(ModelMismatch, match="another head"):
        Server(model_dir, port=0, tails=[plain_dir])
    with pytest.raises(ModelMismatch, match="another head"):
        Edge(model_dir, tails=[plain_dir])


def test_what_cannot_be_shared_says_so(whole, split, model_dir, tmp_path):
    with pytest.raises(ModelError, match="no other tail"):
        another(cut(whole, after="stem", shape=(1, 3, 32, 32)), whole, after="stem")
    with pytest.raises(ModelError, match="as large"):
        another(split, whole, after="last")
    with pytest.raises(ModelError, match="head="):
        export(another(split, whole, after="stem"), tmp_path / "m")
    assert Manifest.load(model_dir).contract
