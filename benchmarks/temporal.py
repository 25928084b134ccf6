"""Bytes a frame of a static camera's video costs, with and without differences.

python benchmarks/temporal.py --video FILE      # needs OpenCV: pip install '.[apps]'
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from splitrt import Camera, Edge, Frame
from splitrt.cloud import Server

MODEL = Path(__file__).parent.parent / "models" / "cifar10-resnet"
SIDE = 32  # pixels of a crop: the model's own size


def frames(options: argparse.Namespace, view: str) -> Iterator[Frame]:
    """The video's frames: whole (resized by the device), or a crop out of the middle.

    noise: standard deviation of what is added to every pixel, since a compressed video has lost
    the noise that its camera had.
    """
    random = np.random.default_rng(0)
    with Camera(str(options.video)) as camera:
        for frame in itertools.islice(camera, options.limit):
            image = frame.image if view == "whole" else middle(frame.image)
            if options.noise:
                noisy = image + random.normal(0, options.noise, image.shape)
                image = noisy.clip(0, 255).round().astype(np.uint8)
            yield Frame(image, frame.index, time.monotonic(), frame.name)


def middle(image: np.ndarray) -> np.ndarray:
    top, left = (image.shape[0] - SIDE) // 2, (image.shape[1] - SIDE) // 2
    return np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE])


def run(address: str, options: argparse.Namespace, view: str, plan: str) -> dict[str, object]:
    """One frame at a time both ways; the answers are compared bit for bit."""
    sizes, answers, codec_ms = {}, {}, {}
    for name, temporal in (("keyframes", False), ("temporal", options.every)):
        with Edge(MODEL, cloud=address, plan=plan, temporal=temporal, threads=1) as edge:
            results = [result for _, result in edge.stream(frames(options, view), inflight=1)]
        assert all(result.where == "cloud" for result in results)
        sizes[name] = [result.sent_bytes for result in results]
        answers[name] = [result.outputs["logits"].tobytes() for result in results]
        codec_ms[name] = float(np.median([result.timings.codec for result in results]))
    return {
        "view": view,
        "plan": plan,
        "noise": options.noise,
        "frames": len(answers["temporal"]),
        "same_answers": answers["temporal"] == answers["keyframes"],
        "keyframes_mean": float(np.mean(sizes["keyframes"])),
        "temporal_mean": float(np.mean(sizes["temporal"])),
        "temporal_p50": float(np.median(sizes["temporal"])),
        "temporal_p95": float(np.percentile(sizes["temporal"], 95)),
        "keyframes_codec_ms": codec_ms["keyframes"],
        "temporal_codec_ms": codec_ms["temporal"],
    }


def main() -> None:
    """A line of JSON for each view and rung."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--every", type=int, default=30, help="a keyframe every so many frames")
    parser.add_argument("--noise", type=float, default=0.0, help="grey levels added to each pixel")
    parser.add_argument("--limit", type=int, help="only so many frames")
    parser.add_argument("--plan", nargs="+", default=["w16-q4", "w32-r125", "w32-r58"])
    parser.add_argument("--json", type=Path, help="write the lines there, too")
    options = parser.parse_args()
    found = []
    with Server(MODEL, port=0, threads=1) as server:
        for view, plan in itertools.product(("whole", "crop"), options.plan):
            found.append(run(server.address, options, view, plan))
            print(json.dumps(found[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
