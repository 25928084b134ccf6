"""The first thing a newcomer runs: a server and a device, two processes, real pictures."""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from splitrt.cloud.program import load_program
from splitrt.core.manifest import Manifest, verified
from splitrt.edge.capture import Pictures, fit
from splitrt.edge.source import source as opened
from splitrt.errors import SplitrtError
from splitrt.served import served, shipped

HERE = Path(__file__).parent
ROUNDS = 6  # times that each picture goes by each plan
FRAMES = 40  # of a video or a camera
MEANING = {
    "auto": "sure answers stay, others go as {default}",
    "local": "no server: head and tail here",
    "exit": "{head} and a small classifier here",
    "f32": "{head}, sent exactly",
    "f16": "{head}, half floats",
    "jpeg": "the picture itself",
    "rate": "{head}, codes trained for few bytes",
    "bits": "{head}, {bits}-bit codes",
}


@dataclass(frozen=True, slots=True)
class PlanReport:
    """One plan over all pictures.

    agreement: share answered as the whole model answers.  accuracy: on test pictures, from the
    model's own record.
    """

    name: str
    where: str
    agreement: float
    bytes_mean: float
    p50_ms: float
    p99_ms: float
    frames: int
    meaning: str
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What the demo found."""

    model: str
    pictures: int
    raw_bytes: float
    default: str
    accuracy: float | None  # of the default plan, from the manifest
    own: bool  # the photographs that come with splitrt
    plans: list[PlanReport]

    @property
    def summary(self) -> str:
        """What the table says, in a few sentences."""
        plan = next(plan for plan in self.plans if plan.name == self.default)
        right = "" if self.accuracy is None else f"; {self.accuracy:.1%} of test pictures are right"
        strange = ", most of which show none of its classes" if self.own else ""
        return (
            f"By {plan.name} a picture crosses in {plan.bytes_mean:,.0f} bytes instead of "
            f"{self.raw_bytes:,.0f}{right}.\n"
            f"Agreement is with the whole model on these pictures{strange}.\n"
            "Percentages in the last column are of the whole model's operations.\n"
            "Every frame ended as a result that says where it was made. "
            "Next: splitrt cuts, split, score (README.md)."
        )

    def as_dict(self) -> dict[str, object]:
        """The object that `splitrt demo --json` prints."""
        return {**asdict(self), "plans": [asdict(plan) for plan in self.plans]}


def run(source: str | None, *, quiet: bool = False) -> Report:
    """Start both processes, send the pictures by every plan, compare with the whole model."""
    folder = shipped()
    manifest = Manifest.load(folder)
    gated = manifest.exit is not None and manifest.exit.threshold is not None
    plans = [*(["auto"] if gated else []), *(plan.name for plan in manifest.plans)]
    with served(folder) as address, _pictures(source or str(HERE / "pictures")) as pictures:
        whole = _whole_answers(folder, manifest, pictures)  # while the server loads
        there = address()
        if not quiet:
            print(f"server: {there}, a process of its own; device: another", flush=True)
        lines = _device(folder, there, pictures, plans)
    reports = [_report(plan, lines, whole, manifest) for plan in plans]
    return Report(
        model=manifest.name,
        pictures=len(whole),
        raw_bytes=float(np.prod(manifest.input.shape)),
        default=manifest.default_plan,
        accuracy=manifest.plan(manifest.default_plan).accuracy,
        own=source is None,
        plans=reports,
    )


@contextlib.contextmanager
def _pictures(source: str) -> Iterator[str]:
    """The source itself, or a folder with a few frames of a video or a camera.

    Every plan and the whole model are to see the same frames.
    """
    frames = opened(source)
    if isinstance(frames, Pictures):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder, frames:
        for frame in itertools.islice(frames, FRAMES):
            Image.fromarray(frame.image).save(Path(folder) / f"frame-{frame.index:04d}.png")
        yield folder


def _device(folder: Path, address: str, source: str, plans: list[str]) -> list[dict]:
    """What the device's process said of every frame."""
    command = [sys.executable, "-m", "splitrt.cli", "edge", str(folder), "--source", source]
    command += ["--cloud", address, "--inflight", "1", "--threads", "1", "--json"]
    command += ["--repeat", str(ROUNDS)]
    for plan in plans:
        command += ["--plan", plan]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SplitrtError(f"the device stopped: {done.stderr.strip()[-500:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


@torch.inference_mode()
def _whole_answers(folder: Path, manifest: Manifest, source: str) -> dict[str, str]:
    """The whole model's class for each picture, by the picture's name."""
    whole = load_program(verified(folder, manifest, "whole.pt2")).module()
    height, width, _ = manifest.input.shape
    answers = {}
    for frame in opened(source):
        picture = torch.from_numpy(fit(frame.image, height, width).copy())[None]
        best = int(whole(picture)[0].argmax())
        answers[frame.name] = manifest.labels[best] if manifest.labels else str(best)
    return answers


def _report(plan: str, lines: list[dict], whole: dict[str, str], manifest: Manifest) -> PlanReport:
    mine = [line for line in lines if line["plan"] == plan]
    times = [line["ms"] for line in mine]
    wheres = sorted({line["where"] or "none" for line in mine})
    return PlanReport(
        name=plan,
        where=" + ".join(wheres),
        agreement=statistics.fmean(line["answer"] == whole[line["frame"]] for line in mine),
        bytes_mean=statistics.fmean(line["sent_bytes"] for line in mine),
        p50_ms=float(np.percentile(times, 50)),
        p99_ms=float(np.percentile(times, 99)),
        frames=len(mine),
        meaning=_meaning(plan, manifest),
        accuracy=None if plan == "auto" else manifest.plan(plan).accuracy,
    )


def _meaning(name: str, manifest: Manifest) -> str:
    """What a plan does, in a few words."""
    if name == "auto":
        return MEANING["auto"].format(default=manifest.default_plan)
    plan = manifest.plan(name)
    macs = manifest.width(plan).head_macs
    share = macs / manifest.cut.whole_macs if manifest.cut.whole_macs else 0.0
    if plan.codec is None:
        key = "exit" if plan.exits else "local"
    elif plan.codec in MEANING:
        key = plan.codec
    elif plan.codec == "jpeg":
        key = "jpeg"
    else:
        key = "rate" if plan.codec.startswith("r") else "bits"
    bits = manifest.codecs[plan.codec].bits if plan.codec else 0
    return MEANING[key].format(head=f"head of {share:.0%}", bits=bits)
