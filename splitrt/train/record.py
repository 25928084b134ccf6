"""What held-out frames say of a model: bytes and accuracy of each plan, exits, the filter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from splitrt.core.gate import measured, probabilities
from splitrt.core.jpeg import Jpeg
from splitrt.errors import ModelError
from splitrt.train import exits
from splitrt.train.bins import Bins
from splitrt.train.cut import Split
from splitrt.train.frames import Frames

if TYPE_CHECKING:
    from splitrt.train.export import Rungs

RECALL = 0.95  # of frames of interest that the filter lets pass
MEASURES = ("confidence", "margin", "entropy")
SHARES = np.arange(0.05, 1.0, 0.05)  # of the exit curve
LOSS = 0.005  # of accuracy that answering here, or a JPEG, may cost by default
QUALITIES = (60, 75, 85, 92, 95)  # of JPEG, tried in this order

Seen = dict[str, np.ndarray]


def record(
    manifest: dict[str, Any], split: Split, widths: list[Rungs], whole: nn.Module, held_out: Frames
) -> None:
    """Fill in the manifest; without labels the whole model's answer counts as right."""
    answers: dict[str, np.ndarray] = {}
    plans = {plan["name"]: plan for plan in manifest["plans"]}
    seen = [_seen(one, held_out) for one in widths]
    for one, found in zip(widths, seen, strict=True):
        for rung in ["f32", "f16", *one.device.scales]:
            if one.plan(rung) in plans:
                plan = plans[one.plan(rung)]
                _fill(plan, _sizes(one, rung, found))
                if split.classes is not None:
                    answers[plan["name"]] = _answers(split, one, rung, found)
        if "exit" in found:
            answers[one.plan("exit")] = found["exit"].argmax(1)
    truth = _whole(whole, held_out) if split.classes is not None else None
    if "jpeg" in plans:
        spec = manifest["codecs"]["jpeg"]
        spec["quality"], sizes, pictures = _jpeg(whole, held_out, truth)
        for plan in plans.values():
            if plan.get("codec") == "jpeg":
                _fill(plan, sizes)
                answers |= {plan["name"]: pictures} if truth is not None else {}
    for width, found in zip(manifest["widths"], seen, strict=True):
        if "filter" in found and held_out.interest is not None:
            width["filter"] = _filter(found["filter"][:, 0], held_out.interest)
    if truth is None:
        return
    right = truth if held_out.labels is None else held_out.labels
    for name, answer in answers.items():
        plans[name]["accuracy"] = round(float((answer == right).mean()), 4)
    plans["local"]["accuracy"] = plans[widths[-1].plan("f32")]["accuracy"]
    default = answers[manifest["default_plan"]]
    for width, found in zip(manifest["widths"], seen, strict=True):
        if "exit" in found:
            width["exit"] |= _exit(found["exit"], right, default, truth)
            _bin(width, plans, answers, found["exit"], right)


def _seen(one: Rungs, frames: Frames) -> Seen:
    """What the head gives for every frame, by output."""
    parts = [
        one.device(torch.from_numpy(np.ascontiguousarray(part.images)))
        for part in frames.batches(100)
    ]
    columns = map(torch.cat, zip(*parts, strict=True))
    return {n: c.numpy() for n, c in zip(one.device.names, columns, strict=True)}


def _sizes(one: Rungs, rung: str, seen: Seen) -> np.ndarray:
    codec = one.codec(rung)
    arrays = seen["features" if codec.bits > 8 else rung]
    return np.array([len(codec.encode(array)) for array in arrays])


def _answers(split: Split, one: Rungs, rung: str, seen: Seen) -> np.ndarray:
    if rung in one.device.scales:
        z = one.device.scales[rung].values(torch.from_numpy(seen[rung]))
    else:
        z = torch.from_numpy(seen["features"])
        z = z.half().float() if rung == "f16" else z
    return torch.cat([split.answer(part)[0].argmax(1) for part in z.split(100)]).numpy()


def _jpeg(
    whole: nn.Module, frames: Frames, truth: np.ndarray | None
) -> tuple[int, np.ndarray, np.ndarray]:
    """The lowest quality at which no more than LOSS of the answers are lost; sizes, answers."""
    right = truth if frames.labels is None else frames.labels
    for quality in QUALITIES:
        codec = Jpeg(quality, frames.images.shape[1:])
        files = [codec.encode(np.ascontiguousarray(image)) for image in frames.images]
        shape = frames.images.shape
        pixels = np.frombuffer(bytearray().join(map(codec.open, files)), np.uint8).reshape(shape)
        if truth is None:
            break
        answers = _whole(whole, Frames(pixels))
        if (answers == right).mean() >= (truth == right).mean() - LOSS:
            break
    sizes = np.array([len(file) for file in files])
    return quality, sizes, answers if truth is not None else np.empty(0)


def _fill(plan: dict[str, Any], sizes: np.ndarray) -> None:
    plan["bytes_mean"] = round(float(sizes.mean()), 1)
    plan["bytes_p50"] = int(np.percentile(sizes, 50))
    plan["bytes_p95"] = int(np.percentile(sizes, 95))


def _whole(whole: nn.Module, frames: Frames) -> np.ndarray:
    parts = [whole(torch.from_numpy(np.ascontiguousarray(p.images))) for p in frames.batches(100)]
    return torch.cat([outputs[0].argmax(1) for outputs in parts]).numpy()


def _exit(
    logits: np.ndarray, right: np.ndarray, default: np.ndarray, whole: np.ndarray
) -> dict[str, Any]:
    """Temperature, then the measure and threshold that keep most here within LOSS of the whole."""
    with torch.enable_grad():
        found = exits.calibrate(torch.from_numpy(logits).float(), torch.from_numpy(right))
    shares = probabilities(logits, found.temperature)
    hits, sent = shares.argmax(1) == right, default == right
    curves = {name: curve(measured(shares, name), hits, sent) for name in MEASURES}
    floor = min(float((whole == right).mean()) - LOSS, float(sent.mean()))

    def reached(steps: list[dict[str, float]]) -> float:
        return max((step["share"] for step in steps if step["accuracy"] >= floor), default=0.0)

    measure = max(MEASURES, key=lambda name: reached(curves[name]))
    steps = curves[measure]
    chosen = [step for step in steps if step["accuracy"] >= floor]
    told: dict[str, Any] = {
        "temperature": round(found.temperature, 4),
        "measure": measure,
        "accuracy": round(found.accuracy, 4),
        "ece": round(found.ece, 4),
        "steps": steps,
    }
    if chosen:
        best = max(chosen, key=lambda step: step["share"])
        told |= {name: best[name] for name in ("threshold", "share", "sure_accuracy")}
    return told


def _bin(
    width: dict[str, Any],
    plans: dict[str, dict[str, Any]],
    answers: dict[str, np.ndarray],
    logits: np.ndarray,
    right: np.ndarray,
) -> None:
    """Accuracy by the exit's confidence, of the exit and of the cloud's plans it stands in for."""
    shares = probabilities(logits, width["exit"]["temperature"])
    bins, hits = Bins.of(shares.max(1)), shares.argmax(1) == right
    if bins is None:
        return
    width["exit"] |= {
        "edges": bins.edges.round(6).tolist(),
        "shares": bins.shares.round(4).tolist(),
        "bins": bins.exit(hits).round(4).tolist(),
    }
    for name, answer in answers.items():
        if plans[name]["place"] == "cloud" and plans[name]["width"] == width["name"]:
            plans[name]["bins"] = bins.plan(answer == right, hits).round(4).tolist()


def curve(sure: np.ndarray, hits: np.ndarray, sent: np.ndarray) -> list[dict[str, float]]:
    """The exit curve: for each share answered here, the threshold and what the mix is worth.

    sure: how sure the exit is [N].  hits, sent: where the exit and the cloud are right, bool [N].
    """
    steps = []
    for share in SHARES:
        threshold = min(math.floor(1e6 * np.quantile(sure, 1 - share)) / 1e6, 1.0)
        here = sure >= threshold
        steps.append(
            {
                "threshold": threshold,
                "share": round(float(here.mean()), 4),
                "sure_accuracy": round(float(hits[here].mean()), 4),
                "accuracy": round(float(np.where(here, hits, sent).mean()), 4),
            }
        )
    return steps


def _filter(scores: np.ndarray, interest: np.ndarray) -> dict[str, Any]:
    """The threshold that lets RECALL of the frames of interest pass."""
    if not interest.any() or interest.all():
        raise ModelError(
            "held-out frames are all of interest or all empty\nhelp: a filter needs both kinds"
        )
    threshold = float(np.quantile(scores[interest], 1 - RECALL, method="lower"))
    return {
        "threshold": round(threshold - 1e-4, 4),
        "recall": round(float((scores[interest] >= threshold).mean()), 4),
        "dropped": round(float((scores[~interest] < threshold).mean()), 4),
    }
