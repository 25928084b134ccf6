"""The ways to a picture's boxes: the whole detector, the cut one by a plan, a file to a server."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from benchmarks.detection.data import Picture, resized
from benchmarks.detection.fastestdet import FastestDet
from benchmarks.detection.make import SIDE, UNIT
from splitrt import Boxes, Edge, Frame, Manifest, Result, found

LEAST = 0.01  # score down to which boxes are ranked
OUTPUT = "output"


class Whole:
    """The uncut detector in torch."""

    def __init__(self, model: FastestDet, manifest: Manifest) -> None:
        self.model, self.manifest = model, manifest

    @torch.inference_mode()
    def __call__(self, picture: Picture, seen: np.ndarray | None = None) -> Boxes:
        """Its boxes, of `seen` (uint8 [SIDE, SIDE, 3]) in the place of the picture if given."""
        seen = resized([picture], SIDE)[0] if seen is None else seen
        output = self.model(UNIT(torch.from_numpy(seen)[None]))[0].numpy()
        return found(self.manifest, Result({OUTPUT: output}, "cloud", "whole"), picture.size)


def ranked(manifest: Manifest) -> Manifest:
    """The manifest that reads boxes down to LEAST."""
    low = manifest.boxes.model_copy(update={"threshold": LEAST})
    return manifest.model_copy(update={"boxes": low})


def sure(boxes: Boxes, manifest: Manifest) -> Boxes:
    """Those that a user sees."""
    return boxes[boxes.score >= manifest.boxes.threshold]


def packed(picture: Picture, kind: str, quality: int) -> tuple[int, np.ndarray]:
    """(bytes of the file, the pixels in it) of what the detector would see."""
    file = io.BytesIO()
    Image.fromarray(resized([picture], SIDE)[0]).save(file, kind, quality=quality)
    return file.tell(), np.array(Image.open(file).convert("RGB"))


def streamed(edge: Edge, pictures: Sequence[Picture]) -> list[Result]:
    """A result a picture, one at a time."""
    frames = (
        Frame(picture.image, index, time.monotonic(), str(index))
        for index, picture in enumerate(pictures)
    )
    return [result for _, result in edge.stream(frames, inflight=1)]


@contextlib.contextmanager
def linked(target: str, link: str) -> Iterator[str]:
    """The address of a relay in a process of its own, whose link begins anew."""
    words = ["-m", "splitrt.cli", "relay", "--to", target, "--link", link, "--port", "0"]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        yield re.search(r" at (\S+:\d+)", process.stdout.readline())[1]
    finally:
        process.terminate()
        process.wait()
