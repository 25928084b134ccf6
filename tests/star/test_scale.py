"""The tables of benchmarks/star/scale.md: what the command prints, and formulas that agree."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "star" / "scale.py"


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def printed(*words: object) -> str:
    command = [sys.executable, SCRIPT, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_page_holds_the_tables_that_the_command_prints():
    told = printed().splitlines()
    page = (ROOT / "benchmarks" / "star" / "scale.md").read_text().split("## Checked")[0]
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) > 40
    assert [row for row in rows if row not in told] == []


def test_two_devices_pay_one_exchange_by_every_way(scale):
    """Ring and star: there and back. Mesh and doubling: once."""
    both = [way(2, 0.001, 4096, 1e6) for way in scale.WAYS.values()]
    assert both == pytest.approx([2 * (0.001 + 2048e-6), 2 * (0.001 + 4096e-6)] + [0.005096] * 2)


@given(n=st.integers(2, 64), delay=st.floats(0, 1), size=st.integers(0, 10**6))
def test_one_device_sums_for_nothing_and_more_never_for_less(scale, n, delay, size):
    for way in scale.WAYS.values():
        assert way(1, delay, size, 1e8) == 0
        assert way(n + 1, delay, size, 1e8) >= way(n, delay, size, 1e8) >= delay


def test_a_model_has_the_weights_that_its_name_says(scale):
    for model, billions in zip(scale.MODELS, (1.1, 70.6), strict=True):
        whole = model.layers * model.layer(1) + 2 * model.voice
        assert whole / 1e9 == pytest.approx(billions, rel=0.01)
        halves = [model.layers * model.layer(n) for n in (1, 2, 4)]
        assert halves[0] == 2 * halves[1] == 4 * halves[2]


def test_measured_sums_stand_beside_the_formula(tmp_path):
    lines = [
        {"way": "star f32", "rows": 1, "ms": 2.9, "delay_ms": 1.0, "devices": 4},
        {"way": "mesh f32", "rows": 1, "ms": 2.1, "delay_ms": 1.0, "devices": 4},
        {"way": "mesh q8", "rows": 1, "ms": 2.0, "delay_ms": 1.0, "devices": 4},
        {"way": "gloo", "rows": 1, "ms": 7.0, "delay_ms": 0.0, "devices": 4},
    ]
    (tmp_path / "sums.json").write_text(json.dumps(lines))
    told = printed("--check", tmp_path / "sums.json").splitlines()
    assert [line for line in told if line.startswith("| 1 ms")] == [
        "| 1 ms, 4 | star | 2.90 | 2.0 | 0.90 |",
        "| 1 ms, 4 | mesh | 2.10 | 1.0 | 1.10 |",
    ]
