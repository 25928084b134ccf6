"""The verbs, run as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT, pictures

NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

number = 3
"""


def splitrt(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "splitrt.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NET)
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(pictures(30, size=16).images):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{i:02}.png")
    return tmp_path


def test_cuts_split_check_and_edge_of_a_users_own_network(here):
    done = splitrt("cuts", "nets:net", "--shape", "1,3,16,16", "--json", cwd=here)
    cuts = json.loads(done.stdout)["cuts"]
    assert [cut["name"] for cut in cuts] == ["0", "1", "2", "3", "4"]
    assert cuts[0] == {
        "name": "0", "shape": [4, 8, 8], "bytes": 1024, "head_macs": 6912, "head_params": 112,
    }  # fmt: skip
    assert "legal cuts" in splitrt("cuts", "nets.py:net", "--shape", "1,3,16,16", cwd=here).stdout
    made = splitrt(
        "split", "nets:net", "--after", "1", "--to", "m", "--shape", "1,3,16,16",
        "--frames", "pictures", cwd=here,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "q8" in made.stdout
    assert "tail.pt2 answers the same" in splitrt("check", "m", cwd=here).stdout
    seen = splitrt("edge", "m", "--source", "pictures", "--plan", "local", "--json", cwd=here)
    lines = [json.loads(line) for line in seen.stdout.splitlines()]
    assert [line["frame"] for line in lines] == [f"{i:02}.png" for i in range(30)]
    assert {line["where"] for line in lines} == {"edge"}


def test_split_with_a_bottleneck_trains_one(here):
    made = splitrt(
        "split", "nets:net", "--after", "1", "--to", "m", "--shape", "1,3,16,16",
        "--frames", "pictures", "--channels", "2", "--epochs", "1", cwd=here,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "2×4×4" in made.stdout and "exit" in made.stdout
    assert sorted(path.name for path in here.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("cuts", "nets"), "MODULE:CALLABLE"),
        (("cuts", "nets:nat"), "did you mean 'net'"),
        (("cuts", "nowhere:net"), "no module 'nowhere'"),
        (("cuts", "nets:number"), "should"),
        (
            ("split", "nets:net", "--after", "9", "--to", "m", "--shape", "1,3,16,16"),
            "no module '9'",
        ),
        (("split", "nets:net", "--after", "1", "--to", "m", "--channels", "2"), "--frames"),
        (("check", "nowhere"), "no model.toml"),
        (("edge", "nowhere", "--source", "x"), "no model.toml"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(here, words, told):
    done = splitrt(*words, cwd=here)
    assert done.returncode == 1
    assert told in done.stderr and "help:" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_option_names_the_nearest(here):
    done = splitrt("cuts", "nets:net", "--shpe", "1,3,16,16", cwd=here)
    assert done.returncode == 2 and "--shape" in done.stderr
    assert splitrt("cuts", "nets:net", "--shape", "1,a", cwd=here).returncode == 2


def test_the_demo_shows_every_plan_and_where_it_was_answered():
    done = splitrt("demo", "--json", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    plans = {plan["name"]: plan for plan in json.loads(done.stdout)["plans"]}
    assert {"f32", "f16", "q8", "q4", "local", "exit"} <= set(plans)
    assert plans["q4"]["where"] == "cloud" and plans["exit"]["where"] == "edge"
    assert 0 < plans["q4"]["bytes_mean"] < plans["q8"]["bytes_mean"] < plans["f32"]["bytes_mean"]
    assert plans["local"]["bytes_mean"] == 0
    assert all(0 <= plan["agreement"] <= 1 for plan in plans.values())
    assert all(0 < plan["p50_ms"] <= plan["p99_ms"] for plan in plans.values())
