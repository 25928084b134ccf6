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
from splitrt.train import Frames, calibration_error, read, score

MODEL = Path(__file__).parent.parent / "models" / "cifar10-resnet"


def exit_alone(frames: Frames, threads: int) -> dict[str, float]:
    """The local exit on frames that did not calibrate it: accuracy, ECE, what it answers."""
    with Edge(MODEL, plan="exit", threads=threads) as edge:
        results = [edge(image) for image in frames.images]
        threshold = edge.manifest.exit.threshold
    confidence = np.array([result.confidence for result in results])
    right = np.array([r.outputs["logits"].argmax() for r in results]) == frames.labels
    sure = confidence >= threshold
    return {
        "accuracy": float(right.mean()),
        "ece": calibration_error(torch.tensor(confidence).float(), torch.tensor(right)),
        "sure_share": float(sure.mean()),
        "sure_accuracy": float(right[sure].mean()),
    }


def main() -> None:
    """Score both test sets and the exit; print a line each and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=Path("build/cifar10-score.json"))
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
            odd = frames[np.arange(1, len(frames), 2)]  # the even half calibrated the exit
            found["exit, odd half of jpeg_test"] = exit_alone(odd, options.threads)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.write_text(json.dumps(found, indent=1))
    print(json.dumps(found["exit, odd half of jpeg_test"]))


if __name__ == "__main__":
    main()
