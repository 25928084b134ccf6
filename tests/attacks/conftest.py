"""Servers that the attacks are made on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from splitrt.cloud.batch import Batcher
from splitrt.cloud.tail import Tail
from splitrt.core.manifest import Manifest
from tests.attacks.unharmed import Company
from tests.attacks.victim import Victim
from tests.cloud.conftest import head, llama, llama_dir, speaking  # noqa: F401

WARM_UPS = 50  # until threads and memory are what they stay


@pytest.fixture(scope="session")
def victim(model_dir: Path) -> Iterator[Victim]:
    yield from _warm(model_dir)


@pytest.fixture(scope="session")
def detector_victim(detector_dir: Path) -> Iterator[Victim]:
    yield from _warm(detector_dir)


@pytest.fixture(scope="session")
def talker(request: pytest.FixtureRequest) -> Iterator[Victim]:
    yield from _warm(request.getfixturevalue("llama_dir"))


@pytest.fixture(scope="session")
def company(model_dir: Path) -> Iterator[Company]:
    manifest = Manifest.load(model_dir)
    batcher = Batcher(Tail(model_dir, manifest, threads=1))
    yield Company(batcher, manifest)
    batcher.close()


def _warm(folder: Path) -> Iterator[Victim]:
    running = Victim(folder)
    for _ in range(WARM_UPS):
        running.known_good()
    yield running
    running.close()
