"""The whole way: a camera whose pictures are bad is adapted by a real learner, and gets better."""

from __future__ import annotations

import time

import numpy as np
import pytest

from splitrt import Edge
from splitrt.cloud import Server
from tests.conftest import ROOT, SHARED

MODEL = ROOT / "models" / "cifar10-resnet"
PICTURES = SHARED / "cifar10" / "clean_test_1017.npz"
LONGEST = 90.0  # seconds


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    if not PICTURES.exists():
        pytest.skip("../shared/data is absent")
    return np.load(PICTURES)["images"]


def spoilt(images: np.ndarray) -> np.ndarray:
    """As a noisy sensor would see them."""
    noise = np.random.default_rng(0).normal(0, 31, images.shape)
    return (images + noise).clip(0, 255).astype(np.uint8)


def answers(edge: Edge, images: np.ndarray) -> np.ndarray:
    return np.array([edge(image).outputs["logits"].argmax() for image in images])


def hurried(monkeypatch) -> None:
    """All that waits for other devices' sake waits less."""
    monkeypatch.setattr("splitrt.cloud.lesson.RATE", 100)
    monkeypatch.setattr("splitrt.cloud.lesson.UNREAD", 64)
    monkeypatch.setattr("splitrt.cloud.lesson.BURST", 256)
    monkeypatch.setattr("splitrt.edge.satchel.FASTEST", 100.0)
    monkeypatch.setattr("splitrt.cloud.school.DUTY", 1.0)


def test_a_noisy_camera_comes_nearer_to_what_the_server_says_of_clean_pictures(
    pictures, monkeypatch
):
    hurried(monkeypatch)
    shown, asked = pictures[:700], pictures[700:]
    with Server(MODEL, port=0, threads=1, adapt=True) as server:
        with Edge(MODEL, cloud=server.address, plan="w32-r125") as clean:
            wanted = answers(clean, asked)
        with (
            Edge(MODEL, plan="w32-exit", threads=1) as plain,
            Edge(MODEL, cloud=server.address, plan="w32-exit", threads=1, adapt=True) as edge,
        ):
            before = answers(plain, spoilt(asked))
            until, frames = time.monotonic() + LONGEST, 0
            while not edge.revision and time.monotonic() < until:
                for image in spoilt(shown):
                    result = edge(image)
                    assert result.where == "edge" and result.plan == "w32-exit"
                    frames += 1
                    if edge.revision:
                        break
            assert edge.revision, server.lessons
            told = edge._pupil.satchel.sent
            after = answers(edge, spoilt(asked))
            edge._pupil.close()  # no other comes
            edge.revert()
            for image in spoilt(asked[:50]):
                one, other = edge(image), plain(image)
                assert one.revision == 0 and one.confidence == other.confidence
                assert np.array_equal(one.outputs["logits"], other.outputs["logits"])
    assert (after == wanted).mean() > (before == wanted).mean() + 0.02
    assert told < frames / 2  # most frames teach nothing and stay here
