"""The similarity filter on a video: threshold chosen on one half, judged on the other.

python benchmarks/similar.py --video FILE      # needs OpenCV: pip install '.[apps]'
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from splitrt import Camera, Edge, Frame, Similar
from splitrt.cloud import Server
from splitrt.train import similar

MODEL = Path(__file__).parent.parent / "models" / "cifar10-resnet"
PLAN = "w32-r125"


def images(options: argparse.Namespace) -> list[np.ndarray]:
    """The video's frames, uint8 [H, W, 3]."""
    with Camera(str(options.video)) as camera:
        return [frame.image for frame in itertools.islice(camera, options.limit)]


def frames(shown: list[np.ndarray], first: int) -> Iterator[Frame]:
    for index, image in enumerate(shown[first:], first):
        yield Frame(image, index, time.monotonic(), f"frame-{index}")


def judged(
    address: str, shown: list[np.ndarray], truth: np.ndarray, first: int, rule: Similar
) -> dict[str, object]:
    """The real stream over the frames from `first` on, one at a time.

    A re-used answer is right if the truth of the frame it came from is the truth of this one.
    """
    asked, right, took = first, [], []
    with Edge(MODEL, cloud=address, plan=PLAN, similar=rule, threads=1) as edge:
        for frame, result in edge.stream(frames(shown, first), inflight=1):
            if result.plan == "similar":
                right.append(truth[asked] == truth[frame.index])
                took.append(result.timings.gate)
            else:
                asked = frame.index
    return {
        "threshold": rule.threshold,
        "interval": rule.interval,
        "reused_share": len(right) / (len(shown) - first),
        "agreement": float(np.mean(right)) if right else None,
        "reused_ms_p50": float(np.median(took)) if took else None,
    }


def main() -> None:
    """JSON: the rule chosen on the first half, and what the second half says of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--answers", type=Path, help=".npy, one for each frame; else the model's")
    parser.add_argument("--wrong", type=float, default=0.01, help="of the re-used answers")
    parser.add_argument("--interval", type=int, default=30)
    parser.add_argument("--limit", type=int, help="only so many frames")
    parser.add_argument("--json", type=Path, help="write the lines there, too")
    options = parser.parse_args()
    shown = images(options)
    with Server(MODEL, port=0, threads=1) as server:
        if options.answers is None:
            with Edge(MODEL, cloud=server.address, plan=PLAN, threads=1) as edge:
                truth = np.array([edge(image).outputs["logits"].argmax() for image in shown])
        else:
            truth = np.load(options.answers)[: len(shown)]
        half = len(shown) // 2
        rule = similar(shown[:half], truth[:half], interval=options.interval, wrong=options.wrong)
        changes = float((truth[1:] != truth[:-1]).mean())
        found = [
            {"frames": len(shown), "truth_changes_share": changes},
            {"chosen_on_first_half": rule.model_dump()},
            {"second_half": judged(server.address, shown, truth, half, rule)},
        ]
        for threshold in (0.5, 1, 2, 4, 8, 16, 32):
            fixed = Similar(threshold=threshold, interval=options.interval)
            found.append(judged(server.address, shown, truth, half, fixed))
    print(*map(json.dumps, found), sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
