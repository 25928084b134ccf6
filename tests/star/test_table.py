"""The benchmark's table: which rows there are, how runs become one line, how peers are driven."""

from __future__ import annotations

import stat
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from tests.conftest import ROOT

DLLAMA = """#!/bin/sh
[ "$1" = worker ] && exec sleep 60
echo "$@" > "$(dirname "$0")/words"
echo '🔷️ E   60 ms S     0 kB R     0 kB (16 tokens)'
for token in 1 2 3 4 5 6; do
    echo "🔶 P    7 ms S    12 kB R    10 kB a"
    sleep 0.02
done
sleep 60
"""
TPI = """
import argparse
from transformers import TextStreamer
import numpy as np

parser = argparse.ArgumentParser()
for name in ("rank", "world_size", "length", "memory_window", "k"):
    parser.add_argument(f"--{name}", type=int)
for name in ("master_ip", "master_port", "model_type", "model_path", "prompt"):
    parser.add_argument(f"--{name}")
parser.add_argument("--disable_memory_schedule", action="store_true")
options = parser.parse_args()
if options.rank == 0:
    assert options.disable_memory_schedule and options.world_size == 2
    streamer = TextStreamer(None)
    streamer.put(np.array([[5, 6, 7]]))
    for token in range(options.length):
        streamer.put(np.array([token]))
    streamer.end()
"""


@pytest.fixture
def star(monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """The benchmark's modules: scripts of one folder, which import each other by plain names."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "star")
    import crew
    import foreign
    import goals
    import rows

    return Namespace(rows=rows, goals=goals, foreign=foreign, crew=crew)


def test_each_condition_has_the_peers_that_can_be_in_it(star):
    rows = list(star.rows.planned(["58M", "1.1B"], [1, 2, 4], [0.0, 1.0, 5.0]))
    assert len(set(rows)) == len(rows)
    assert [row for row in rows if row.name == "gloo" and (row.devices == 1 or row.delay > 1)] == []
    assert {row.room for row in rows if row.model == "1.1B" and row.name == "splitrt"} == {
        "", "350MB", "250MB", "1000MB",
    }  # fmt: skip
    wanted = {goal.row for goal in star.goals.goals({})}
    assert wanted <= set(rows)
    assert rows[0] == star.rows.standard(rows[0])


def test_several_runs_become_their_medians_and_the_largest_peak(star):
    Figures = star.rows.Figures
    runs = [Figures(token=ms, cold=9, peak=ms, ids=(1, 2), shares={"load": ms}) for ms in (5, 1, 3)]
    found = star.rows.middle([star.rows.missing("it broke"), *runs])
    assert (found.token, found.peak, found.shares, found.ids) == (3, 5, {"load": 3}, (1, 2))
    assert star.rows.middle([star.rows.missing("no DIR")]).why == "no DIR"


def test_a_text_is_the_same_or_so_far(star):
    assert star.rows.alike((1, 2, 3), (1, 2, 3)) == "yes"
    assert star.rows.alike((1, 9, 3), (1, 2, 3)) == "1 of 3"
    assert star.rows.alike((1, 2), (1, 2, 3)) == "2 of 3"
    assert star.rows.alike((), (1,)) == "–"


def test_a_goal_is_met_or_missed_by_what_was_found(star):
    row = star.rows.Row("splitrt", "1.1B", "int4", 4, 1.0)
    for ms, met in ((60.0, "| yes |"), (61.0, "| **no** |")):
        line = star.goals.compared({row: star.rows.Figures(token=ms)}).splitlines()[-1]
        assert line.startswith("| 1.1B splitrt int4 n=4 1 ms, a token | 60 ms |")
        assert line.endswith(met)
    peer = star.rows.Row("TPI-LLM", "58M", "fp32", 4)
    ours = star.rows.Row("splitrt", "58M", "fp32", 4)
    found = {peer: star.rows.Figures(token=50.0), ours: star.rows.Figures(token=11.0)}
    assert "TPI-LLM's 50) | 11 | **no** |" in star.goals.compared(found)


def test_distributed_llama_is_driven_by_its_readmes_command(star, tmp_path):
    """By a script in its place, which prints as it does."""
    program = tmp_path / "dllama"
    program.write_text(DLLAMA)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    for name in ("dllama_model_58M_q40.m", "dllama_tokenizer_58M.t"):
        (tmp_path / name).touch()
    row = star.rows.Row("distributed-llama", "58M", "q40", 2)
    hosts = ["127.0.0.1"] * 2
    with star.crew.Crew() as crew:
        said = star.foreign.dllama(
            crew, row, tmp_path, tmp_path, tmp_path, hosts, lambda _: [], "Hi there", 5
        )
    assert len(said["ms"]) == 5 and said["ms"][0] == 67
    assert min(said["ms"]) > 0
    words = (tmp_path / "words").read_text()
    assert "--buffer-float-type q80" in words and "--workers 127.0.0.1:" in words


def test_tpi_llm_is_driven_by_its_own_example(star, tmp_path):
    """By a script in its place, which takes the same options and streams to transformers' class."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "transformers.py").write_text("class TextStreamer: ...\n")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "run_multihost.py").write_text(TPI)
    source = tmp_path / "checkpoint"
    source.mkdir()
    row = star.rows.Row("TPI-LLM", "58M", "fp32", 2)
    hosts = ["127.0.0.1"] * 2
    with star.crew.Crew() as crew:
        said = star.foreign.tpi(
            crew, row, source, tmp_path, tmp_path, hosts, lambda _: [], "Hi there", 6
        )
    assert said["ids"] == [0, 1, 2, 3, 4, 5] and len(said["ms"]) == 6


def test_a_process_that_ends_is_told_with_its_last_words(star):
    with star.crew.Crew() as crew:
        process = crew.start([sys.executable, "-c", "raise SystemExit('the disk is full')"])
        with pytest.raises(star.crew.Failed, match="the disk is full"):
            crew.heard(process)


def test_the_largest_process_counts_with_what_it_started(star):
    inner = "x = b'x' * (80 << 20); print('ready', flush=True); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with star.crew.Crew() as crew:
        process = crew.start([sys.executable, "-c", outer])
        assert crew.heard(process) == "ready"
        assert 80 << 20 < crew.peak < 160 << 20
        assert process.pid in star.crew.family(process.pid)
        assert len(star.crew.family(process.pid)) == 2
    assert process.returncode is not None and Path(f"/proc/{process.pid}").exists() is False
