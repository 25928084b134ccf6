"""Cutting: what is legal, what it is called, and that the parts are the whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from splitrt.errors import ModelError
from splitrt.train.graph import Graph, trace
from tests.conftest import settled


class Branches(nn.Module):
    """Two branches that meet, a residual, and a reshape by the batch that was read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.left = nn.Conv2d(4, 4, 1)
        self.right = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU())
        self.join = nn.Conv2d(8, 8, 1)
        self.classify = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = self.join(torch.cat([self.left(x), self.right(x)], 1))
        x = x + torch.sigmoid(x)
        return self.classify(x.reshape(x.shape[0], 8, -1).mean(2))


class Keys(nn.Module):
    """Answers with a dict, one value of which is None."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
        x = self.body(x).relu()
        return {"boxes": x[:, :2], "loss": None, "scores": x[:, 2:]}


@pytest.fixture(scope="module")
def branches() -> Graph:
    return trace(Branches().eval(), torch.rand(2, 3, 8, 8))


def test_exactly_the_tensors_on_every_path_are_legal(branches):
    names = [cut.name for cut in branches.cuts]
    assert names == ["first", "cat", "join", "add", "view", "mean"]


def test_a_cut_says_what_crosses_and_what_lies_before(branches):
    first = branches.find("first")
    assert (first.shape, first.dtype, first.bytes) == ((4, 4, 4), "float32", 4 * 4 * 4 * 4)
    assert first.head_macs == 4 * 4 * 4 * 27
    assert first.head_params == 4 * 27 + 4


def test_an_illegal_place_names_the_nearest_legal_ones(branches):
    with pytest.raises(ModelError, match=r"'left' 2 tensors cross.*\n.*'first'.*'cat'"):
        branches.find("left")


def test_an_unknown_place_names_the_nearest_name(branches):
    with pytest.raises(ModelError, match="'join'"):
        branches.find("joins")


def test_the_end_of_the_model_is_no_cut(branches):
    with pytest.raises(ModelError, match="end of the model"):
        branches.find("classify")


def test_every_cut_of_every_batch_is_the_whole(branches):
    for batch in (1, 3, 5):
        x = torch.rand(batch, 3, 8, 8)
        for cut in branches.cuts:
            head, tail = branches.part(cut)
            torch.testing.assert_close(tail(head(x))[0], branches.whole()(x)[0])


class Strided(nn.Module):
    """Makes a view that only its own memory layout allows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).contiguous(memory_format=torch.channels_last) * 2
        return self.last(x.permute(0, 2, 3, 1).view(x.shape[0], -1, 4)).mean(1)


def test_what_crosses_may_arrive_in_another_memory_layout():
    model = Strided().eval()
    graph = trace(model, torch.rand(2, 3, 4, 4))
    x = torch.rand(3, 3, 4, 4)
    head, tail = graph.part(graph.find("mul"))
    torch.testing.assert_close(tail(head(x).contiguous())[0], model(x))


def test_a_model_in_train_mode_is_refused():
    with pytest.raises(ModelError, match="train mode"):
        trace(Branches(), torch.rand(2, 3, 8, 8))


def test_a_model_that_does_not_take_the_shape_is_a_model_error():
    with pytest.raises(ModelError, match="--shape"):
        trace(Branches().eval(), torch.rand(2, 5, 8, 8))


def test_names_of_a_dict_are_kept_and_none_is_dropped():
    graph = trace(Keys().eval(), torch.rand(2, 6))
    assert graph.output_names == ("boxes", "scores")
    assert graph.output_shapes == [(2,), (2,)]
    head, tail = graph.part(graph.find("body"))
    assert len(tail(head(torch.rand(3, 6)))) == 2


def test_the_fingerprint_is_of_the_structure_alone():
    one, two = (trace(Branches().eval(), torch.rand(2, 3, 8, 8)) for _ in range(2))
    other = Branches().eval()
    other.join = nn.Conv2d(8, 8, 3, 1, 1)
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != trace(other.eval(), torch.rand(2, 3, 8, 8)).fingerprint


def transformers_model(name: str) -> nn.Module:
    lib = pytest.importorskip("transformers")
    resnet = {"num_labels": 10}
    made = {
        "resnet-18": lambda: lib.ResNetForImageClassification(
            lib.ResNetConfig(
                depths=[2, 2, 2, 2], layer_type="basic", hidden_sizes=[64, 128, 256, 512], **resnet
            )
        ),
        "resnet-50": lambda: lib.ResNetForImageClassification(lib.ResNetConfig(**resnet)),
        "mobilenet-v2": lambda: lib.MobileNetV2ForImageClassification(
            lib.MobileNetV2Config(num_labels=10)
        ),
        "convnext": lambda: lib.ConvNextForImageClassification(lib.ConvNextConfig(num_labels=10)),
        "vit": lambda: lib.ViTForImageClassification(
            lib.ViTConfig(num_labels=10, image_size=64, num_hidden_layers=12)
        ),
    }
    torch.manual_seed(0)
    return settled(made[name](), (3, 64, 64))


@pytest.mark.parametrize("name", ["resnet-18", "resnet-50", "mobilenet-v2", "convnext", "vit"])
def test_known_networks_cut_anywhere_answer_as_the_whole(name: str):
    model = transformers_model(name)
    graph = trace(model, torch.rand(2, 3, 64, 64))
    cuts = graph.cuts
    assert len({cut.name for cut in cuts}) == len(cuts) >= 15
    torch.manual_seed(2)
    inputs = {batch: torch.randn(batch, 3, 64, 64) for batch in (1, 3, 5)}
    with torch.no_grad():
        wanted = {batch: model(x).logits for batch, x in inputs.items()}
        assert wanted[5].std(0).mean() > 1e-4  # answers differ, so that equality says something
        for cut in cuts[:: max(1, len(cuts) // 6)]:
            head, tail = graph.part(cut)
            for batch, x in inputs.items():
                (logits,) = tail(head(x))
                gap = (logits - wanted[batch]).norm() / wanted[batch].norm()
                assert gap <= 1e-4, (cut.name, batch)
