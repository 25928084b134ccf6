"""A real detector with its real weights, asked as Frigate asks, on real photographs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from splitrt.cloud import Server
from splitrt.core.boxes import iou
from tests.conftest import SHARED
from tests.edge.test_frigate import Client, running


def photographs(archive: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Photographs at 352×352, and the large people in them: corners [n, 4], top first."""
    with zipfile.ZipFile(archive) as opened:
        for name in sorted(name for name in opened.namelist() if name.endswith(".txt")):
            rows = np.loadtxt(opened.read(name).decode().splitlines(), ndmin=2)
            large = rows[(rows[:, 0] == 0) & (rows[:, 3] * rows[:, 4] > 0.1)]
            photo = name.replace("labels", "images").replace(".txt", ".jpg")
            if len(large) and photo in opened.namelist():
                middle, half = large[:, [2, 1]], large[:, [4, 3]] / 2
                corners = np.concatenate([middle - half, middle + half], 1)
                picture = Image.open(io.BytesIO(opened.read(photo))).convert("RGB")
                yield np.asarray(picture.resize((352, 352))), corners


def test_a_real_detector_finds_people_where_they_are(fastest_dir):
    """FastestDet on pictures of COCO: what Frigate is told against what people have drawn."""
    drawn = seen = 0
    with Server(fastest_dir, port=0, threads=1) as server:
        with running(fastest_dir, server.address, deadline=20.0, plan="f32") as place:
            with Client(place.endpoint) as client:
                for photo, people in photographs(SHARED / "coco128" / "val2017.zip"):
                    table = client.detect(photo[None])
                    table = table[(table[:, 1] > 0) & (table[:, 0] == 0)]
                    drawn += len(people)
                    seen += (iou(people, table[:, 2:]) >= 0.5).any(1).sum()
            assert place.finder.counts["cloud"] >= 10
    assert drawn >= 10 and seen / drawn >= 0.7
