"""The verbs, run as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from splitrt.core.manifest import Manifest
from splitrt.demo import shipped
from tests.conftest import ROOT, pictures
from tests.language import checkpoint

SHIPPED = ROOT / "models" / "cifar10-resnet"
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
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


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


def test_a_language_models_checkpoint_is_split_and_proved(here):
    checkpoint(here / "llama")
    words = ("--cut", "2", "--exits", "1,2", "--weights", "int8", "--resume", "hidden,tokens")
    made = splitrt("split", "llama", *words, "--to", "m", cwd=here)
    assert made.returncode == 0, made.stderr
    assert "2 of 4 layers on the device in int8, exits after 1, 2" in made.stdout
    told = splitrt("check", "m", cwd=here)
    assert told.returncode == 0 and "11 files" in told.stdout, told.stderr
    assert "2 of 4 layers run on CPU" in told.stdout and "70 bytes in q8" in told.stdout
    (here / "m" / "layers.safetensors").unlink()
    told = splitrt("check", "m", cwd=here)
    assert told.returncode == 0 and "layers.safetensors is not here" in told.stdout
    (here / "m" / "voice.bin").write_bytes(b"")
    told = splitrt("check", "m", cwd=here)
    assert told.returncode == 1 and "was changed after export" in told.stderr
    (here / "m" / "notes.txt").write_text("")
    told = splitrt("check", "m", cwd=here)
    assert told.returncode == 1 and "'notes.txt', which model.toml does not name" in told.stderr


def test_a_checkpoint_is_sliced_for_three_devices(here):
    checkpoint(here / "four", num_key_value_heads=4, intermediate_size=160)
    made = splitrt("split", "four", "--star", 3, "--shares", "2,1,1", "--to", "in-3", cwd=here)
    assert made.returncode == 0, made.stderr
    told = made.stdout.splitlines()
    assert told[0] == "in-3: 4 layers of in-3 in int4"
    assert "hub: 2 of 4 heads, 96 of 160 feed-forward columns" in told[1]
    assert "spoke-2: 1 of 4 heads" in told[3]
    told = splitrt("check", "in-3", cwd=here)
    assert told.returncode == 0 and told.stdout.count("files") == 3, told.stderr
    for words in (("serve", "in-3"), ("edge", "in-3", "--source", "pictures")):
        told = splitrt(*words, cwd=here)
        assert told.returncode == 1 and "Traceback" not in told.stderr
        assert "in-3 holds a star, which no server has" in told.stderr
        assert "help: `splitrt star` on the hub" in told.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--star", 5), "help: --star 3 works"),
        (("--star", 2, "--shares", "1,1,1"), "3 shares for 2 devices"),
        (("--star", 2, "--cut", 1), "--cut with --star"),
        (("--shares", "2,1"), "--shares without --star"),
        (("--star", 0), "0 devices; 1 or more"),
        (("--star", 2, "--shares", "2,x"), "'2,x' are no shares; write 2,1"),
    ],
)
def test_a_star_that_cannot_be_is_refused_in_words(here, words, told):
    if not (here / "two").is_dir():
        checkpoint(here / "two")
    done = splitrt("split", "two", *words, "--to", "refused", cwd=here)
    assert done.returncode != 0 and not (here / "refused").exists()
    assert (
        told in " ".join(done.stderr.replace("│", " ").split()) and "Traceback" not in done.stderr
    )


def test_split_with_widths_trains_a_small_head(here):
    made = splitrt(
        "split", "nets:net", "--after", "1", "--to", "m", "--shape", "1,3,16,16",
        "--frames", "pictures", "--widths", "2,4", "--epochs", "1", cwd=here,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    manifest = Manifest.load(here / "m")
    assert [width.name for width in manifest.widths] == ["w2", "w4"]
    assert manifest.widths[0].head_macs < manifest.widths[1].head_macs
    assert "w2-exit" in made.stdout
    both = splitrt(
        "split", "nets:net", "--after", "1", "--to", "m", "--shape", "1,3,16,16",
        "--frames", "pictures", "--widths", "2,4", "--channels", "3", cwd=here,
    )  # fmt: skip
    assert both.returncode == 1 and "help:" in both.stderr


def test_split_check_and_edge_of_a_detector(here):
    (here / "nets.py").write_text("from tests.detector import detector\n")
    made = splitrt(
        "split", "nets:detector", "--after", "levels.0", "--to", "m", "--shape", "1,3,96,160",
        "--smallest", "64,64", "--fit", "letterbox", "--side", "size:int64:2",
        "--picture-size", "size", cwd=here,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "16×12×20 numbers at most" in made.stdout
    told = splitrt("check", "m", cwd=here).stdout
    assert "64×64 and 96×160" in told and "the whole model answers the same" in told
    seen = splitrt("edge", "m", "--source", "pictures", "--plan", "local", "--json", cwd=here)
    lines = [json.loads(line) for line in seen.stdout.splitlines()]
    assert {(line["where"], line["answer"]) for line in lines} == {("edge", "168×4")}
    refused = splitrt("score", "m", "--data", "pictures", cwd=here)
    assert refused.returncode == 1 and "`splitrt check`" in refused.stderr


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
        (("cuts", "nano.onnx"), "is an ONNX file"),
        (("cuts", "nets:net", "--side", "size:int64"), "NAME:DTYPE:SHAPE"),
        (("cuts", "nets:net", "--smallest", "60,64"), "multiples of the step"),
        (("cuts", "nets:nat"), "did you mean 'net'"),
        (("cuts", "nowhere:net"), "no module 'nowhere'"),
        (("cuts", "nets:number"), "should"),
        (
            ("split", "nets:net", "--after", "9", "--to", "m", "--shape", "1,3,16,16"),
            "no module '9'",
        ),
        (("split", "nets:net", "--after", "1", "--to", "m", "--channels", "2"), "--frames"),
        (("split", "nets:net", "--to", "m"), "no --after"),
        (("split", "pictures", "--to", "m"), "no --cut"),
        (("split", "pictures", "--to", "m", "--cut", "2"), "no config.json"),
        (("split", "pictures", "--to", "m", "--cut", "2", "--after", "1"), "--after is for"),
        (("split", "nets:net", "--to", "m", "--after", "1", "--exits", "1"), "--exits is for"),
        (("check", "nowhere"), "no model.toml"),
        (("score", "m", "--frames", "pictures", "--plot", "a.jpg"), ".png or .svg"),
        (("edge", "nowhere", "--source", "x"), "no model.toml"),
        (("profile", "nowhere"), "no model.toml"),
        (("plan", "nowhere", "--device", "pi-4", "--link", "wifi"), "no model.toml"),
        (("plan", SHIPPED, "--device", "pi-44", "--link", "wifi"), "did you mean 'pi-4'"),
        (("plan", SHIPPED, "--device", "pi-4", "--link", "wify"), "did you mean 'wifi'"),
        (
            ("plan", SHIPPED, "--device", "pi-4", "--link", "pictures/000.png"),
            "did you mean '00.png'",
        ),
        (("profile", SHIPPED, "--threads", "4096"), "4096 threads on"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(here, words, told):
    done = splitrt(*words, cwd=here)
    assert done.returncode == 1
    assert told in done.stderr and "help:" in done.stderr
    assert "Traceback" not in done.stderr


def test_score_prints_the_exit_curve_and_the_devices_and_draws(here, model_dir):
    frames = pictures(12, seed=3)
    for i, (image, label) in enumerate(zip(frames.images, frames.labels, strict=True)):
        folder = here / "classes" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    done = splitrt(
        "score", model_dir, "--frames", "classes", "--plot", "a.svg", "--plan", "q4",
        "--plan", "exit", cwd=here,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "answered here" in done.stdout and "pi-zero-2w" in done.stdout
    assert (here / "a.svg").stat().st_size > 10_000


KEYS = ["name", "where", "expected_ms", "bytes", "joules", "accuracy", "hit"]


def test_profile_measures_this_device_and_plan_forecasts_with_it(here, model_dir):
    done = splitrt(
        "profile", model_dir, "--to", "here.toml", "--threads", "1", "--rounds", "3", cwd=here
    )
    assert done.returncode == 0, done.stderr
    assert "p95 ms" in done.stdout and "here.toml: " in done.stdout
    link = ("--link", "4mbps", "--deadline", "5")
    told = splitrt("plan", model_dir, "--device", "here.toml", *link, "--json", cwd=here)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    manifest = Manifest.load(model_dir)
    assert [plan["name"] for plan in found["plans"]] == [plan.name for plan in manifest.plans]
    assert all(list(plan) == KEYS and plan["hit"] == 1 for plan in found["plans"])
    assert found["best"] in {plan.name for plan in manifest.plans}
    assert not any("MACs" in line for line in found["estimated"])


def test_profile_prints_json(here, model_dir):
    done = splitrt("profile", model_dir, "--threads", "1", "--rounds", "2", "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["cores"] == os.cpu_count()
    assert {"head", "exit", "tail", "codec"} == {row["part"] for row in found["measured"]}


def test_plan_marks_estimates_and_names_their_sources(here, model_dir):
    (here / "drive.csv").write_text("0,4\n9,0\n10,4\n")
    done = splitrt("plan", model_dir, "--device", "pi4", "--link", "drive.csv", cwd=here)
    assert done.returncode == 0, done.stderr
    assert " est. " in done.stdout and "ncnn" in done.stdout and "Huang" in done.stdout
    assert "best: " in done.stdout and "10% of the time none" in done.stdout


def test_an_unknown_option_names_the_nearest(here):
    done = splitrt("cuts", "nets:net", "--shpe", "1,3,16,16", cwd=here)
    assert done.returncode == 2 and "--shape" in done.stderr
    assert splitrt("cuts", "nets:net", "--shape", "1,a", cwd=here).returncode == 2


def test_the_demo_shows_every_plan_and_where_it_was_answered():
    done = splitrt("demo", "--json", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    plans = {plan["name"]: plan for plan in json.loads(done.stdout)["plans"]}
    manifest = Manifest.load(shipped())
    assert set(plans) == {"auto", *(plan.name for plan in manifest.plans)}
    for plan in manifest.plans:
        here = plan.place == "edge"
        assert plans[plan.name]["where"] == plan.place
        assert (plans[plan.name]["bytes_mean"] == 0) == here
    widest = plans[f"{manifest.widths[-1].name}-f32"]["bytes_mean"]
    assert 0 < 4 * plans[manifest.default_plan]["bytes_mean"] < widest
    assert all(0 <= plan["agreement"] <= 1 for plan in plans.values())
    assert all(0 < plan["p50_ms"] <= plan["p99_ms"] for plan in plans.values())
