"""What each plan of a model directory costs and is worth, measured on pictures over loopback.

The one file of `train` that runs both halves: a real server, a real device, the real wire.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from splitrt.cloud import Server
from splitrt.cloud.program import load_program
from splitrt.core.manifest import Manifest, verified
from splitrt.core.pareto import Cost, dominated
from splitrt.core.result import Result
from splitrt.edge.capture import Frame
from splitrt.edge.edge import Edge
from splitrt.errors import ModelError, SplitrtError
from splitrt.train.curve import Answers, ExitCurve, Mix, exit_curve
from splitrt.train.devices import HeadCost, head_costs, heavy
from splitrt.train.frames import Frames

QUALITIES = {"JPEG": (10, 20, 40, 60, 80), "WEBP": (1, 5, 20, 40, 60)}
TIMED = 100  # frames that go one by one, for the milliseconds


@dataclass(frozen=True, slots=True)
class PlanScore:
    """One plan on all frames; milliseconds are medians of frames that went one by one.

    dominated: another cloud plan is nowhere worse and somewhere better (bytes, accuracy, MACs).
    """

    name: str
    where: str
    accuracy: float
    bytes_mean: float
    bytes_p95: float
    head_ms: float
    total_ms: float
    share_edge: float
    lost: int
    head_macs: int | None = None
    dominated: bool = False


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
    whole_macs: int = 0
    exit_curve: ExitCurve | None = None  # where the exit and the default plan were scored
    heads: list[HeadCost] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{'whole':12} {self.whole:7.2%}"]
        lines += [
            f"{one.name:12} {one.accuracy:7.2%} {one.bytes_mean:10,.0f} B {one.total_ms:8.1f} ms"
            f"{'  dominated' if one.dominated else ''}"
            for one in self.plans
        ]
        lines += [
            f"{line.codec} {line.quality:<7} {line.accuracy:7.2%} {line.bytes_mean:10,.0f} B"
            for line in self.baselines
        ]
        if self.exit_curve is not None:
            lines += [
                f"{mix.share:4.0%} by exit {mix.accuracy:7.2%} {mix.bytes_mean:10,.0f} B"
                for mix in self.mixes
            ]
            lines += [] if self.exit_curve.within else [self.exit_curve.lost]
        return "\n".join([*lines, *(f"warning: {line}" for line in self.warnings)])

    @property
    def mixes(self) -> list[Mix]:
        """The quoted points of the exit curve by share, with the last within one point."""
        if self.exit_curve is None:
            return []
        within = [self.exit_curve.within] if self.exit_curve.within else []
        return sorted({*self.exit_curve.points, *within}, key=lambda mix: mix.share)

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
        found = {plan: _plan(folder, server, plan, frames, right, threads) for plan in plans}
    accuracy = _share(answers == right)
    return Score(
        model=manifest.name,
        frames=len(frames),
        labelled=frames.labels is not None,
        whole=accuracy,
        whole_ms=whole.milliseconds(frames),
        plans=_ranked([one for one, _ in found.values()], manifest),
        baselines=list(_baselines(whole, frames, right)) if baselines else [],
        whole_macs=manifest.cut.whole_macs,
        exit_curve=_curve({plan: seen for plan, (_, seen) in found.items()}, manifest, accuracy),
        heads=head_costs(manifest),
        warnings=heavy(manifest),
    )


def _ranked(scores: list[PlanScore], manifest: Manifest) -> list[PlanScore]:
    """The same plans with their heads' MACs, and the dominated among the cloud's marked."""
    known = {plan.name: plan for plan in manifest.plans if plan.place == "cloud"}
    cloud = {
        one.name: replace(one, head_macs=known[one.name].head_macs or 0)
        for one in scores
        if one.name in known
    }
    costs = [Cost(one.bytes_mean, one.accuracy, one.head_macs or 0) for one in cloud.values()]
    beaten = dict(zip(cloud, dominated(costs), strict=True))
    return [
        replace(cloud[one.name], dominated=beaten[one.name]) if one.name in cloud else one
        for one in scores
    ]


def _curve(seen: dict[str, Answers], manifest: Manifest, whole: float) -> ExitCurve | None:
    plan = manifest.default_plan
    local = manifest.exit_plan(manifest.width(manifest.plan(plan)))
    if local is None or not {local.name, plan} <= set(seen) or manifest.plan(plan).codec is None:
        return None
    return exit_curve(seen[local.name], seen[plan], plan=plan, whole=whole)


class Whole:
    """The uncut model of a model directory: classes of pictures."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        if "whole.pt2" not in manifest.files:
            raise ModelError(f"{folder} has no whole.pt2 to compare with\nhelp: export it again")
        classes = len(manifest.outputs[0].shape) == 1 and not manifest.side
        if manifest.input.kind != "pixels" or not classes:
            raise ModelError(
                "score counts classes, and this model does not answer pictures alone with classes\n"
                "help: `splitrt check` compares the halves with the whole model"
            )
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
) -> tuple[PlanScore, Answers]:
    pinned = None if plan == "auto" else plan
    with Edge(folder, cloud=server.address, plan=pinned, threads=threads, standin=False) as edge:
        results = [result for _, result in edge.stream(_capture(frames))]
        timed = [edge(image) for image in frames.images[:TIMED]]
    told = [result.where is not None and result.reason is None for result in results]
    sent = np.array([result.sent_bytes for result in results])
    hits = np.array(
        [
            kept and _class(result) == wanted
            for kept, result, wanted in zip(told, results, right, strict=True)
        ]
    )
    sure = [result.confidence for result in results]
    confidence = None if None in sure else np.array(sure, float)
    wheres = {result.where for result in results if result.where}
    one = PlanScore(
        name=plan,
        where="+".join(sorted(wheres)),
        accuracy=_share(hits),
        bytes_mean=round(float(sent.mean()), 1),
        bytes_p95=float(np.percentile(sent, 95)),
        head_ms=statistics.median(result.timings.head for result in timed),
        total_ms=statistics.median(result.timings.total for result in timed),
        share_edge=_share(np.array([result.where == "edge" for result in results])),
        lost=len(told) - sum(told),
    )
    return one, Answers(hits, sent, confidence)


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
    best = {"optimize": True} if codec == "JPEG" else {"method": 6}  # the smallest files
    Image.fromarray(image).save(out, codec, quality=quality, **best)
    return out.getvalue()


def _share(hits: np.ndarray) -> float:
    return round(float(np.mean(hits)), 4)
