"""What every plan really answers to every picture, by a real Edge and a real Server, once.

The replay then takes each frame's answer, bytes and confidence from here: nothing is an average.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from splitrt import Edge, Frame
from splitrt.cloud import Server
from splitrt.core.gate import judge
from splitrt.core.manifest import Manifest
from splitrt.train import read

QUALITIES = (10, 30, 50, 90)  # of JPEG, beside the model's own plan
WHOLE = "whole"  # the model that was cut, on the picture as it is
BATCH = 100  # pictures


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Each plan's answers to the same pictures, by its name: arrays of [pictures].

    answers: classes.  bytes: of the whole message, 0 at the edge.  confidence, sure: what the gate
    says of an exit's answer, by the exit's plan.
    """

    labels: np.ndarray
    answers: dict[str, np.ndarray]
    bytes: dict[str, np.ndarray]
    confidence: dict[str, np.ndarray]
    sure: dict[str, np.ndarray]

    def right(self, plan: str) -> float:
        """Share of the pictures that a plan answers as they are labelled."""
        return float((self.answers[plan] == self.labels).mean())

    def save(self, path: Path) -> None:
        """Write it to a file."""
        parts = {"answers": self.answers, "bytes": self.bytes}
        parts |= {"confidence": self.confidence, "sure": self.sure}
        arrays = {
            f"{word}/{name}": row for word, part in parts.items() for name, row in part.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, labels=self.labels, **arrays)

    @classmethod
    def load(cls, path: Path) -> Records:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as found:
            parts: dict[str, dict[str, np.ndarray]] = {
                word: {
                    name.partition("/")[2]: found[name] for name in found if name.startswith(word)
                }
                for word in ("answers", "bytes", "confidence", "sure")
            }
            return cls(found["labels"], **parts)


def records(model: Path, data: Path, build: Path, *, limit: int | None = None) -> Records:
    """Of the odd half of `data`, from the cache in `build` if they are there."""
    manifest = Manifest.load(model)
    images, labels = odd(manifest, data, limit)
    print_of = hashlib.sha256(manifest.digest + images.tobytes() + bytes(QUALITIES)).hexdigest()
    path = build / f"records-{print_of[:12]}.npz"
    if not path.is_file():
        made(model, images, labels, build).save(path)
    return Records.load(path)


def odd(manifest: Manifest, data: Path, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(pictures, labels) that neither exits nor filter were calibrated on."""
    height, width, _ = manifest.input.shape
    frames = read(data, height=height, width=width)
    half = frames[np.arange(1, len(frames), 2)]
    return np.stack(half.images[:limit]), np.asarray(half.labels[:limit])


def made(model: Path, images: np.ndarray, labels: np.ndarray, build: Path) -> Records:
    """Every picture by every plan of the model, and as JPEG of every quality."""
    found = Records(labels, {WHOLE: whole(model, images)}, {WHOLE: np.zeros(len(labels))}, {}, {})
    with Server(model, port=0, threads=1) as server:
        for plan in Manifest.load(model).plans:
            _by(model, server.address, plan.name, plan.name, images, found)
    for quality in QUALITIES:
        other = requantised(model, build / f"jpeg-{quality}", quality)
        with Server(other, port=0, threads=1) as server:
            plan = pictured(Manifest.load(other))
            _by(other, server.address, plan, f"jpeg-{quality}", images, found)
    return found


@torch.inference_mode()
def whole(model: Path, images: np.ndarray) -> np.ndarray:
    """The classes that the whole model sees."""
    program = torch.export.load(model / "whole.pt2").module()
    batches = np.array_split(images, max(1, len(images) // BATCH))
    return np.concatenate([program(torch.from_numpy(one))[0].argmax(-1).numpy() for one in batches])


def requantised(model: Path, folder: Path, quality: int) -> Path:
    """A copy of the model directory whose JPEGs have another quality."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    words = (model / "model.toml").read_text()
    changed, count = re.subn(r"(?m)^quality = \d+$", f"quality = {quality}", words)
    if count != 1:
        sys.exit(f"error: {model}/model.toml has {count} lines of a quality, 1 wanted")
    (folder / "model.toml").write_text(changed)
    return folder


def pictured(manifest: Manifest) -> str:
    """The plan that sends pictures."""
    return next(plan.name for plan in manifest.plans if manifest.pictured(plan))


def _by(
    model: Path, address: str, plan: str, name: str, images: np.ndarray, found: Records
) -> None:
    """Every picture by one plan, a few on their way at a time."""
    answers, sizes, sureness = [], [], []
    with Edge(model, cloud=address, plan=plan, threads=1) as edge:
        chosen = edge.manifest.plan(plan)
        record = edge.manifest.width(chosen).exit
        for _, result in edge.stream(_frames(images), inflight=4):
            if result.where != chosen.place:
                sys.exit(f"error: {plan}: {result.where} answered, {result.reason}")
            logits = result.outputs["logits"]
            answers.append(int(logits.argmax()))
            sizes.append(result.sent_bytes)
            if chosen.exits and record is not None:
                sureness.append(judge(logits, record))
    found.answers[name], found.bytes[name] = np.array(answers), np.array(sizes)
    if sureness:
        found.confidence[name] = np.array([one.confidence for one in sureness])
        found.sure[name] = np.array([one.sure for one in sureness])
    told = {"recorded": name, "accuracy": found.right(name), "bytes": float(np.mean(sizes))}
    print(json.dumps(told), file=sys.stderr, flush=True)


def _frames(images: np.ndarray) -> Iterator[Frame]:
    for index, image in enumerate(images):
        yield Frame(image, index, time.monotonic(), str(index))
