"""The README's table: the shipped model on CIFAR-10, every plan beside JPEG and WebP.

python benchmarks/cifar10.py --data DIR      # DIR: jpeg_test.npz, clean_test_1017.npz
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from splitrt import Edge
from splitrt.train import Frames, calibration_error, draw, read, score

ANIMALS = [2, 3, 4, 5, 6, 7]
MODEL = Path(__file__).parent.parent / "models" / "cifar10-resnet"


def exits_alone(frames: Frames, threads: int) -> dict[str, dict[str, float]]:
    """Each local exit on frames that did not calibrate it: accuracy and calibration error."""
    found = {}
    with Edge(MODEL, threads=threads) as edge:
        for plan in [plan.name for plan in edge.manifest.plans if plan.exits]:
            edge.plan = plan
            results = [edge(image) for image in frames.images]
            confidence = torch.tensor([result.confidence for result in results])
            right = np.array([r.outputs["logits"].argmax() for r in results]) == frames.labels
            error = calibration_error(confidence, torch.tensor(right))
            found[plan] = {"accuracy": float(right.mean()), "ece": error}
    return found


def filter_alone(frames: Frames, threads: int) -> dict[str, float]:
    """The emptiness filter on frames that did not set its threshold: animals are of interest."""
    animal = np.isin(frames.labels, ANIMALS)
    with Edge(MODEL, filter=True, threads=threads) as edge:
        empty = np.array([edge(image).plan == "empty" for image in frames.images])
    return {"recall": float(1 - empty[animal].mean()), "dropped": float(empty[~animal].mean())}


def main() -> None:
    """Score both test sets and the exit; print a line each and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=Path("build/cifar10-score.json"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, object] = {}
    for name in ("clean_test_1017", "jpeg_test"):
        frames = read(options.data / f"{name}.npz", height=32, width=32, limit=options.limit)
        table = score(MODEL, frames, threads=options.threads)
        found[name] = table.as_dict()
        print(name, json.dumps(found[name], indent=1), flush=True)
        if name == "jpeg_test":
            odd = frames[np.arange(1, len(frames), 2)]  # the even half calibrated the exits
            found["exits, odd half of jpeg_test"] = exits_alone(odd, options.threads)
            found["filter, odd half of jpeg_test"] = filter_alone(odd, options.threads)
            draw(table, options.json.with_suffix(".png"))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1))
    for name in ("exits, odd half of jpeg_test", "filter, odd half of jpeg_test"):
        print(name, json.dumps(found[name]))


if __name__ == "__main__":
    main()
