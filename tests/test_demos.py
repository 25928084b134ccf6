"""The demos and the link's benchmark, run as a user would, on a short script."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def run(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def namespaces():
    """The benchmark's own module: benchmarks are no package."""
    path = ROOT / "benchmarks" / "link" / "namespaces.py"
    spec = importlib.util.spec_from_file_location("namespaces", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bad_network_accounts_for_every_frame():
    done = run(ROOT / "demos" / "bad_network.py", "--json", "--seconds", "8")
    assert done.returncode == 0, done.stderr
    *seconds, last = map(json.loads, done.stdout.splitlines())
    tally = last["tally"]
    parts = ("cloud", "edge_sure", "edge_in_its_stead", "unanswered")
    assert sum(tally[part] for part in parts) == tally["frames"] == 80
    assert sum(second["frames"] for second in seconds) == 80
    assert tally["cloud"] > 0 and tally["edge_in_its_stead"] > 0 and tally["unanswered"] == 0
    assert {"good, 20 Mbit/s", "black hole"} <= {second["link"] for second in seconds}
    assert tally["sent_bytes"] == sum(second["sent_bytes"] for second in seconds) > 0


def test_a_black_hole_between_namespaces_is_left_behind(tmp_path):
    if not namespaces().possible():
        pytest.skip("no network namespaces here: they need root and `ip`")
    before = run("-c", "import os; print(sorted(os.listdir('/run/netns')))").stdout
    found = tmp_path / "found.json"
    words = ("--path", "namespaces", "--seconds", "2", "--json", found)
    done = run(ROOT / "benchmarks" / "link" / "blackhole.py", *words)
    assert done.returncode == 0, done.stderr
    ours, plain = json.loads(found.read_text())
    assert (ours["device"], plain["device"]) == ("splitrt", "plain")
    for one in (ours, plain):
        assert one["accounted"] and one["cloud"] < one["frames"]
        assert one["recovered_s"] is not None
    assert plain["late"] > 0  # the device's own exit answers in time
    after = run("-c", "import os; print(sorted(os.listdir('/run/netns')))").stdout
    assert after == before
