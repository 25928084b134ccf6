"""`splitrt edge` over a detector: boxes in the line and in its JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitrt import Edge, Result, found
from splitrt.core.manifest import Manifest
from splitrt.shown import seen
from tests.core.test_manifest import edited
from tests.test_cli import splitrt

TABLE = '[boxes]\nkind = "boxes"\noriginal = true\nthreshold = 0.05\nmost = 5\n\n[codecs.'


@pytest.fixture(scope="module")
def folder(detector_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Path(shutil.copytree(detector_dir, tmp_path_factory.mktemp("boxes") / "detector"))
    edited(made, "[codecs.", TABLE)
    edited(made, "picture = false", "picture = true")
    edited(made, 'fit = "exact"', 'fit = "letterbox"')
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    image = np.random.default_rng(0).integers(0, 256, (120, 150, 3), np.uint8)
    Image.fromarray(image).save(made / "one.png")
    return made


def test_a_line_has_the_boxes_that_found_gives(folder, pictures):
    done = splitrt("edge", str(folder), "--source", str(pictures), "--plan", "local", "--json")
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    with Edge(folder, plan="local", threads=1) as edge:
        image = np.asarray(Image.open(pictures / "one.png"))
        wanted = found(edge.manifest, edge(image), image.shape[:2])
    assert len(line["boxes"]) == len(wanted) == 5
    for box, xyxy, score in zip(line["boxes"], wanted.xyxy, wanted.score, strict=True):
        np.testing.assert_allclose(box["xyxy"], xyxy, atol=0.06)
        assert box["score"] == pytest.approx(float(score), abs=1e-3)
    assert line["answer"].startswith(line["boxes"][0]["label"])
    assert line["answer"].endswith("of 5")
    told = splitrt("edge", str(folder), "--source", str(pictures), "--plan", "local")
    assert line["answer"] in told.stdout


def test_a_frame_in_which_nothing_is_says_so(folder):
    manifest = Manifest.load(folder)
    outputs = {"boxes": np.zeros((3, 4)), "scores": np.zeros((3, 5))}
    assert seen(manifest, Result(outputs, "cloud", "q8"), (9, 9)) == ("nothing", {"boxes": []})
    assert seen(manifest, Result({}, None, "empty"), (9, 9)) == ("-", {})
