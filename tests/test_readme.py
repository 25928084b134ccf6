"""The README: its tree is the disk's, its commands are CI's, its Python runs."""

from __future__ import annotations

import re
import subprocess

import numpy as np
import torch

from tests.conftest import ROOT, pictures

TEXT = (ROOT / "README.md").read_text()
TREE = TEXT.split("## Where things are")[1].split("```")[1]
HIDDEN = {".git", ".gitignore", ".ci", ".venv", ".pytest_cache", ".mypy_cache", ".ruff_cache"}


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_tree_names_what_lies_at_the_top():
    told = {line.split()[0].rstrip("/") for line in TREE.splitlines() if line[:1].strip()}
    there = {path.split("/")[0] for path in tracked()} - HIDDEN
    assert told == there


def test_the_tree_names_every_module():
    inside = TREE.split("\nsplitrt/\n")[1]
    for path in tracked():
        found = re.fullmatch(r"splitrt/(?:(\w+)/)?(\w+)\.py", path)
        if found is None or found[2] == "__init__" or found[1] == "wire":
            continue
        folder, module = found[1], found[2]
        line = next(
            line
            for line in inside.splitlines()
            if (line.split()[0] == f"{folder}/" if folder else "errors.py" in line)
        )
        assert re.search(rf"\b{module}\b", line), path


def test_ci_runs_the_readmes_command():
    commands = re.findall(r"^python3 -m venv .*$", TEXT, re.MULTILINE)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text()


def test_the_readme_is_short_and_begins_with_code():
    lines = TEXT.splitlines()
    assert len(lines) <= 150
    assert "```python" in lines[:8]


def test_the_first_block_runs(server, model_dir, capsys):
    block = TEXT.split("```python")[1].split("```")[0]
    block = block.replace("models/cifar10-resnet", str(model_dir))
    block = block.replace("127.0.0.1:50700", server.address).replace("deadline=0.1", "deadline=20")
    block = block.replace("splitrt/pictures", str(ROOT / "splitrt" / "pictures"))
    exec(block, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(line.split()[1] in ("edge", "cloud") for line in lines)


def test_the_training_block_runs(tmp_path, monkeypatch, whole, capsys):
    frames = pictures(40)
    np.savez(tmp_path / "photos.npz", images=frames.images, labels=frames.labels)
    block = TEXT.split("```python")[2].split("```")[0]
    for old, new in {
        '"photos"': '"photos.npz"',
        "224": "32",
        '"layer2", channels=12': '"stem", channels=2, shape=(1, 3, 32, 32)',
        "features=10, task=10": "features=1, task=1",
    }.items():
        assert old in block
        block = block.replace(old, new)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(block, {"whole": whole})
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("whole", "q4", "jpeg", "webp"))


def test_the_verbs_of_the_readme_exist():
    from splitrt.cli import app

    there = {command.callback.__name__ for command in app.registered_commands}
    told = set(re.findall(r"^splitrt (\w+)|/splitrt (\w+)", TEXT, re.MULTILINE))
    assert {one or other for one, other in told} <= there
    assert there == {
        "demo", "cuts", "split", "score", "serve", "edge", "relay", "profile", "plan", "check",
        "exits", "chat", "api", "star", "frigate", "daemon",
    }  # fmt: skip


def test_the_numbers_of_the_readme_are_the_shipped_models():
    """The default plan's row against the manifest's own record of the even half."""
    from splitrt.core.manifest import Manifest
    from splitrt.demo import shipped

    manifest = Manifest.load(shipped())
    plan = manifest.plan(manifest.default_plan)
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| **{plan.name}**"))
    percent = float(re.search(r"\*\*([\d.]+) %\*\*", row)[1])
    assert abs(percent / 100 - plan.accuracy) < 0.01
    share = manifest.widths[-1].head_macs / manifest.cut.whole_macs
    assert f"{100 * share:.1f} % of the MACs" in TEXT
