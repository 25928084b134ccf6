"""A star of three devices that the tests slice themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from splitrt.core.shards import Shards
from splitrt.star.roster import Roster
from splitrt.train import shard
from tests.language import checkpoint
from tests.star.crowd import CALM, LOCAL

MANY = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 160}


@pytest.fixture(scope="session")
def star_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("star")
    source = checkpoint(folder / "checkpoint", **MANY)
    shard(source, folder / "made", shares=(1, 1, 1), weights="fp32")
    return folder / "made"


@pytest.fixture(scope="session")
def star(star_dir: Path) -> Shards:
    return Shards.load(star_dir)


@pytest.fixture
def roster(star_dir: Path, star: Shards) -> Iterator[Roster]:
    with Roster(star_dir, star, LOCAL, patience=CALM) as running:
        yield running
