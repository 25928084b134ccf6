"""What each plan of a model directory costs and is worth, measured on pictures over loopback.

The one file of `train` that runs both halves: a real server, a real device, the real wire.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from splitrt.cloud import Server
from splitrt.cloud.program import load_program
from splitrt.core.manifest import Manifest, verified
from splitrt.core.result import Result
from splitrt.edge.capture import Frame
from splitrt.edge.edge import Edge
from splitrt.errors import ModelError, SplitrtError
from splitrt.train.frames import Frames

QUALITIES = {"JPEG": (10, 20, 40, 60, 80), "WEBP": (5, 20, 40, 60, 80)}
TIMED = 100  # frames that go one by one, for the milliseconds
PATIENCE = 30.0  # seconds a frame may take while scoring


@dataclass(frozen=True, slots=True)
class PlanScore:
    """One plan on all frames; milliseconds are medians of frames that went one by one."""

    name: str
    where: str
    accuracy: float
    bytes_mean: float
    bytes_p95: float
    head_ms: float
    total_ms: float
    share_edge: float
    lost: int


@dataclass(frozen=True, slots=True)
class BaselineScore:
    """Whole pictures sent as JPEG or WebP, answered by the whole model."""

    codec: str
    quality: int
    accuracy: float
    bytes_mean: float
    scan_bytes_mean: float | None  # a JPEG without its headers


@dataclass(frozen=True, slots=True)
class Score:
    """Everything that one run of `score` found; accuracies are agreement if there are no labels."""

    model: str
    frames: int
    labelled: bool
    whole: float
    whole_ms: float
    plans: list[PlanScore]
    baselines: list[BaselineScore]

    def __str__(self) -> str:
        lines = [f"{'whole':12} {self.whole:7.2%}"]
        lines += [
            f"{one.name:12} {one.accuracy:7.2%} {one.bytes_mean:10,.0f} B {one.total_ms:8.1f} ms"
            for one in self.plans
        ]
        lines += [
            f"{line.codec} {line.quality:<7} {line.accuracy:7.2%} {line.bytes_mean:10,.0f} B"
            for line in self.baselines
        ]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """The object that `splitrt score --json` prints."""
        whole = {"accuracy": self.whole, "total_ms": self.whole_ms}
        return {**asdict(self), "whole": whole}


def score(
    folder: str | Path,
    frames: Frames,
    *,
    plans: list[str] | None = None,
    baselines: bool = True,
    threads: int = 1,
) -> Score:
    """Score a model directory on frames of its own size.

    Without labels the whole model's answer counts as right. `threads` is for each half.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    whole = Whole(folder, manifest)
    answers = whole(frames.images)
    right = answers if frames.labels is None else frames.labels
    names = [plan.name for plan in manifest.plans]
    unknown = set(plans or []) - {*names, "auto"}
    if unknown:
        raise SplitrtError(f"no plan {min(unknown)!r}\nhelp: the plans are {', '.join(names)}")
    if plans is None:
        gated = manifest.exit is not None and manifest.exit.threshold is not None
        plans = [*names, "auto"] if gated else names
    with Server(folder, port=0, threads=threads) as server:
        scores = [_plan(folder, server, plan, frames, right, threads) for plan in plans]
    return Score(
        model=manifest.name,
        frames=len(frames),
        labelled=frames.labels is not None,
        whole=_share(answers == right),
        whole_ms=whole.milliseconds(frames),
        plans=scores,
        baselines=list(_baselines(whole, frames, right)) if baselines else [],
    )


class Whole:
    """The uncut model of a model directory: classes of pictures."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        if "whole.pt2" not in manifest.files:
            raise ModelError(f"{folder} has no whole.pt2 to compare with\nhelp: export it again")
        if manifest.input.kind != "pixels" or len(manifest.outputs[0].shape) != 1:
            raise ModelError("score needs a model that takes pictures and answers with classes")
        self.module = load_program(verified(folder, manifest, "whole.pt2")).module()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] -> int64 [N]."""
        with torch.inference_mode():
            parts = [
                self.module(torch.from_numpy(np.ascontiguousarray(images[i : i + 200])))[0]
                for i in range(0, len(images), 200)
            ]
        return torch.cat(parts).argmax(1).numpy()

    def milliseconds(self, frames: Frames) -> float:
        """Median over single pictures."""
        times = []
        for image in frames.images[:TIMED]:
            started = time.perf_counter()
            self(image[None])
            times.append(1000 * (time.perf_counter() - started))
        return statistics.median(times)


def _plan(
    folder: Path, server: Server, plan: str, frames: Frames, right: np.ndarray, threads: int
) -> PlanScore:
    pinned = None if plan == "auto" else plan
    with Edge(
        folder, cloud=server.address, plan=pinned, deadline=PATIENCE, threads=threads
    ) as edge:
        results = [result for _, result in edge.stream(_capture(frames))]
        timed = [edge(image) for image in frames.images[:TIMED]]
    told = [result.where is not None and result.reason is None for result in results]
    sent = np.array([result.sent_bytes for result in results])
    hits = [
        kept and _class(result) == wanted
        for kept, result, wanted in zip(told, results, right, strict=True)
    ]
    wheres = {result.where for result in results if result.where}
    return PlanScore(
        name=plan,
        where="+".join(sorted(wheres)),
        accuracy=_share(np.array(hits)),
        bytes_mean=round(float(sent.mean()), 1),
        bytes_p95=float(np.percentile(sent, 95)),
        head_ms=statistics.median(result.timings.head for result in timed),
        total_ms=statistics.median(result.timings.total for result in timed),
        share_edge=_share(np.array([result.where == "edge" for result in results])),
        lost=len(told) - sum(told),
    )


def _capture(frames: Frames) -> Iterator[Frame]:
    for index, image in enumerate(frames.images):
        yield Frame(image=image, index=index, captured=time.monotonic(), name=str(index))


def _class(result: Result) -> int:
    return int(next(iter(result.outputs.values())).argmax())


def _baselines(whole: Whole, frames: Frames, right: np.ndarray) -> Iterator[BaselineScore]:
    for codec, qualities in QUALITIES.items():
        for quality in qualities:
            files = [_encoded(image, codec, quality) for image in frames.images]
            images = np.stack([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in files])
            scans = [len(f) - f.index(b"\xff\xda") for f in files] if codec == "JPEG" else None
            yield BaselineScore(
                codec=codec.lower(),
                quality=quality,
                accuracy=_share(whole(images) == right),
                bytes_mean=round(statistics.fmean(map(len, files)), 1),
                scan_bytes_mean=round(statistics.fmean(scans), 1) if scans else None,
            )


def _encoded(image: np.ndarray, codec: str, quality: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, codec, quality=quality)
    return out.getvalue()


def _share(hits: np.ndarray) -> float:
    return round(float(np.mean(hits)), 4)
