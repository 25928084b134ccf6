"""A device measured: every part has a row, the profile is one that loads, forecasts use it."""

from __future__ import annotations

import os
import shutil

import pytest

from splitrt.core import links
from splitrt.core.forecast import outlook
from splitrt.core.manifest import Manifest
from splitrt.core.profile import Profile
from splitrt.edge.measure import default_threads, measure
from splitrt.errors import ModelError, ProfileError
from tests.edge.test_power import ORIN_NANO, PI_5, nothing, rails, tree


def measured(folder, root, run=nothing, **more):
    return measure(
        folder, **{"threads": [1], "rounds": 3, "seconds": 0.1} | more, root=root, run=run
    )


def board(root, model):
    tree(root, "proc/device-tree", {"model": f"{model}\0"})


@pytest.fixture(scope="module")
def profile(model_dir, tmp_path_factory):
    return measured(model_dir, tmp_path_factory.mktemp("bare"))


def test_every_part_of_a_model_is_timed_and_flagged_as_measured(profile, model_dir):
    manifest = Manifest.load(model_dir)
    width = manifest.widths[-1].name
    cloud = {("codec", plan.name) for plan in manifest.plans if plan.place == "cloud"}
    rows = {(row.part, row.name) for row in profile.measured}
    assert rows == {("head", width), ("exit", width), ("tail", width)} | cloud
    for row in profile.measured:
        assert 0 < row.p50_ms <= row.p95_ms and row.rounds == 3 and row.threads == 1
        assert row.digest == manifest.digest.hex() and not row.estimated
    heads = [row for row in profile.measured if row.part == "head"]
    assert heads[0].macs == manifest.widths[-1].head_macs
    assert profile.cores == os.cpu_count() and profile.peak_memory_mb.value > 10


def test_a_measured_profile_comes_back_from_its_file(profile, tmp_path):
    profile.save(tmp_path / "here.toml")
    assert Profile.load(tmp_path / "here.toml") == profile
    assert Profile.load(str(tmp_path / "here.toml")).measured == profile.measured


def test_a_forecast_takes_what_was_measured(profile, model_dir):
    manifest = Manifest.load(model_dir)
    told = outlook(manifest, profile, links.find("4mbps"))
    plans = {plan.name: plan for plan in told.plans}
    assert not any(plan.ms_estimated for plan in told.plans)
    exits = profile.took(manifest.digest, "exit", manifest.widths[-1].name)
    assert plans["exit"].expected_ms == pytest.approx(exits)


def test_another_model_is_estimated_at_the_pace_of_the_measured_heads(profile, detector_dir):
    told = outlook(Manifest.load(detector_dir), profile, links.find("4mbps"))
    assert all(plan.ms_estimated and plan.expected_ms > 0 for plan in told.plans)
    assert any("its measured heads" in line for line in told.estimated)


def test_a_model_that_does_not_say_its_macs_is_measured_all_the_same(model_dir, tmp_path):
    silent = tmp_path / "silent"
    shutil.copytree(model_dir, silent)
    lines = (silent / "model.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("head_macs")]
    (silent / "model.toml").write_text("\n".join(kept))
    found = measured(silent, tmp_path)
    plans = outlook(Manifest.load(silent), found, links.find("4mbps")).plans
    assert not any(plan.ms_estimated for plan in plans)
    with pytest.raises(ProfileError, match="MACs are known"):
        outlook(Manifest.load(model_dir), found, links.find("4mbps"))


def test_each_number_of_threads_has_rows_of_its_own(model_dir, tmp_path):
    counts = sorted({1, min(2, os.cpu_count())})
    found = measured(model_dir, tmp_path, threads=[*counts, 1])
    assert [row.threads for row in found.measured if row.part == "head"] == counts
    assert default_threads()[0] == 1 and max(default_threads()) <= os.cpu_count()


def test_models_without_an_exit_and_models_of_several_sizes_are_timed(
    plain_dir, detector_dir, tmp_path
):
    assert not [row for row in measured(plain_dir, tmp_path).measured if row.part == "exit"]
    manifest = Manifest.load(detector_dir)
    rows = measured(detector_dir, tmp_path).measured
    assert {row.part for row in rows} == {"head", "tail", "codec"}
    assert {row.name for row in rows if row.part == "codec"} == {
        plan.name for plan in manifest.plans if plan.place == "cloud"
    }


def test_a_device_that_nothing_is_known_of_has_no_watts(profile):
    assert profile.idle_w is None and profile.head_w is None and profile.working_w is None


def test_a_pi_4_keeps_its_published_figures_and_its_watts_are_estimated(model_dir, tmp_path):
    board(tmp_path, "Raspberry Pi 4 Model B Rev 1.4")
    found, known = measured(model_dir, tmp_path), Profile.load("pi-4")
    assert found.name == "Raspberry Pi 4 Model B Rev 1.4" and found.cpu == known.cpu
    assert found.mobilenet_v2_ms == known.mobilenet_v2_ms and found.idle_w == known.idle_w
    assert found.head_w.estimated and "no sensor" in found.head_w.source
    assert known.idle_w.value <= found.head_w.value <= known.load_w.value


def test_a_jetsons_watts_are_read_idle_and_with_a_head(model_dir, tmp_path):
    board(tmp_path, "NVIDIA Jetson Orin Nano Developer Kit")
    tree(tmp_path, ORIN_NANO, rails((1, "VDD_IN", 5000, 1000)))
    found = measured(model_dir, tmp_path)
    assert found.idle_w.value == found.head_w.value == pytest.approx(5)
    assert not found.idle_w.estimated and not found.head_w.estimated
    assert found.gpu_resnet50_ms == Profile.load("jetson-orin-nano").gpu_resnet50_ms


def test_a_pi_5s_watts_are_read_by_a_command(model_dir, tmp_path):
    board(tmp_path, "Raspberry Pi 5 Model B Rev 1.0")
    found = measured(model_dir, tmp_path, run=lambda words: PI_5)
    assert "vcgencmd" in found.head_w.source and not found.head_w.estimated
    assert found.head_w.value == pytest.approx(1.6706, abs=0.001)


@pytest.mark.parametrize("name", ["Raspberry Pi 3 Model B Plus Rev 1.3", "Jetson-AGX AGX Orin"])
def test_boards_are_known_by_their_device_tree(model_dir, tmp_path, name):
    board(tmp_path, name)
    assert measured(model_dir, tmp_path).mobilenet_v2_ms is not None


@pytest.mark.parametrize(
    "more", [{"threads": [0]}, {"threads": [4096]}, {"rounds": 0}, {"seconds": 0}]
)
def test_what_cannot_be_measured_is_said(model_dir, tmp_path, more):
    with pytest.raises(ProfileError, match="help:"):
        measured(model_dir, tmp_path, **more)
    with pytest.raises(ModelError, match=r"no model\.toml"):
        measured(tmp_path, tmp_path)
