"""A small language model, its directory, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from splitrt.cloud import Server
from splitrt.core.language import Language
from tests.cloud import tongue


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tongue.made(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session")
def llama(llama_dir: Path) -> Language:
    return Language.load(llama_dir)


@pytest.fixture(scope="session")
def head(llama_dir: Path) -> tongue.Head:
    return tongue.Head(llama_dir.parent / "checkpoint")


@pytest.fixture(scope="session")
def speaking(llama_dir: Path) -> Iterator[Server]:
    with Server(llama_dir, port=0, threads=1) as running:
        yield running
