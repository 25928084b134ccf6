"""A small model that the tests make themselves, its directory, and a server of it."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from splitrt.cloud import Server
from splitrt.train import Frames, Free, Sizes, Split, cut, export, read
from tests.detector import boxed, detector

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


class Small(nn.Module):
    """A residual network of 10 classes for 32-pixel pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.side = nn.Conv2d(8, 8, 3, 1, 1)
        self.last = nn.Conv2d(8, 16, 3, 2, 1)
        self.classify = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.side(x))
        return self.classify(self.last(x).mean((2, 3)))


def settled(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The model after a few train-mode batches: fresh BatchNorm would squash everything."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _ in range(5):
            model.train()(torch.randn(4, *shape))
    return model.eval()


def pictures(count: int, size: int = 32, seed: int = 0) -> Frames:
    """Smooth random pictures with random labels."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, size // 4, size // 4, 3), np.uint8)
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)
    return Frames(images, random.integers(0, 10, count))


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of xdist's workers makes, and the others wait for."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / f"shared-{name}"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            half = shared / f"half-{name}"
            make(half)
            half.rename(folder)
    return folder


def heeding() -> None:
    """In a child before it begins: SIGINT ends it, though jobs in the background ignore that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def whole() -> nn.Module:
    torch.manual_seed(0)
    return settled(Small(), (3, 32, 32))


@pytest.fixture(scope="session")
def split(whole: nn.Module) -> Split:
    torch.manual_seed(0)
    made = cut(whole, after="stem", channels=4, shape=(1, 3, 32, 32))
    settled(made.bottleneck.trunk, made.place.shape)
    return made


@pytest.fixture(scope="session")
def model_dir(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    held_out = pictures(100, seed=1)
    export(split, folder, frames=pictures(400), held_out=held_out, pareto=False)
    return folder


@pytest.fixture(scope="session")
def plain_dir(whole: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cut without a bottleneck, so without an exit to stand in."""
    folder = tmp_path_factory.mktemp("models") / "plain"
    export(cut(whole, after="stem", shape=(1, 3, 32, 32)), folder, frames=pictures(50))
    return folder


@pytest.fixture(scope="session")
def detector_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 64×64 to 160×192, their original sizes beside them; boxes and scores."""

    def make(folder: Path) -> None:
        free = Free(Sizes.between((64, 64), (160, 192)), {"size": torch.tensor([[96, 160]])})
        images = pictures(40, size=96, seed=5).images.repeat(2, axis=2)[:, :, :160]
        export(cut(detector(), after="levels.0", free=free), folder, frames=Frames(images))

    return once(tmp_path_factory, "detector", make)


@pytest.fixture(scope="session")
def boxed_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of 64×96 pictures whose model.toml says how its outputs are boxes."""
    return boxed(tmp_path_factory.mktemp("models") / "boxed")


@pytest.fixture(scope="session")
def fastest_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FastestDet with its published weights, cut, for pictures of 160×160 to 352×352."""
    from benchmarks.detection.make import LAYOUT, UNIT, whole

    if not (SHARED / "detectors" / "FastestDet.safetensors").exists():
        pytest.skip("../shared/data is absent")

    def make(folder: Path) -> None:
        free = Free(Sizes.between((160, 160), (352, 352)))
        split = cut(whole(SHARED), after="backbone.stage2", pixels=UNIT, free=free)
        frames = read(ROOT / "splitrt" / "pictures", height=352, width=352)
        export(split, folder, frames=frames, boxes=LAYOUT)

    return once(tmp_path_factory, "fastest", make)


@pytest.fixture(scope="session")
def server(model_dir: Path) -> Iterator[Server]:
    with Server(model_dir, port=0, threads=1) as running:
        yield running


@pytest.fixture
def image() -> np.ndarray:
    return pictures(1, seed=2).images[0]
