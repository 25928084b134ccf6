"""The device's half in an environment of its own, without torch, against a server with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, pictures

DEVICE = """
import json, sys, time
import numpy as np
from splitrt import Edge, Frame
images = np.load(sys.argv[3])
with Edge(sys.argv[1], cloud=sys.argv[2], plan="q4", deadline=20) as edge:
    frames = (Frame(image, i, time.monotonic(), str(i)) for i, image in enumerate(images))
    results = [result for _, result in edge.stream(frames)]
assert "torch" not in sys.modules
try:
    import torch
except ImportError:
    torch = None
print(json.dumps({
    "torch": torch is not None,
    "where": sorted({str(result.where) for result in results}),
    "logits": [result.outputs["logits"].tolist() for result in results],
}))
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with splitrt and its base dependencies alone."""
    folder = tmp_path_factory.mktemp("device")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    source = folder / "source"  # a build leaves nothing in the working tree
    ignore = shutil.ignore_patterns(".venv*", "build", ".git", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignore)
    lock = ["-c", str(ROOT / "requirements.lock")] if sys.version_info[:2] == (3, 11) else []
    install = [python, "-m", "pip", "install", "-q", *lock, str(source)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode and ("No matching" in done.stderr or "connection" in done.stderr.lower()):
        pytest.skip("no package registry to install the device's half from")
    assert done.returncode == 0, done.stderr
    return python


def test_a_device_without_torch_is_answered(device, model_dir, server, tmp_path):
    import numpy as np

    from splitrt import Edge

    images = pictures(20, seed=8).images
    np.save(tmp_path / "images.npy", images)
    command = [device, "-c", DEVICE, model_dir, server.address, tmp_path / "images.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["torch"] is False and told["where"] == ["cloud"]
    with Edge(model_dir, cloud=server.address, plan="q4") as edge:
        here = [edge(image).outputs["logits"] for image in images]
    np.testing.assert_allclose(told["logits"], here, atol=1e-3)


def test_the_command_line_of_a_device_works_and_says_what_needs_torch(device, model_dir, tmp_path):
    program = device.parent / "splitrt"
    done = subprocess.run(
        [program, "check", model_dir], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "torch is not installed" in done.stdout
    done = subprocess.run(
        [program, "serve", model_dir], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "splitrt[cloud]" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([program, "api", model_dir], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "splitrt[chat]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_device_profiles_are_installed_with_it(device, tmp_path):
    code = "from splitrt.core.profile import profiles; print(*profiles())"
    done = subprocess.run(
        [device, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert set(done.stdout.split()) == {path.stem for path in (ROOT / "device_profiles").iterdir()}
