r"""A detector over two machines' halves: boxes kept, bytes, latency, frames dropped.

python -m benchmarks.detection.make --to build/person      # first, once: half an hour or more
python -m benchmarks.detection --model build/person [--data DIR] [--json FILE]

Needs OpenCV and torch: pip install '.[apps,train]'. What is found is compared with what the whole
detector finds on the very picture that came, and on COCO128's val2017 with what people drew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.detection.data import HALF, Picture, coco, video
from benchmarks.detection.make import DATA, PERSON, whole
from benchmarks.detection.ways import Whole, linked, packed, ranked, streamed, sure
from splitrt import Boxes, Edge, Manifest, Result, found
from splitrt.cloud import Server
from splitrt.train import precision

PLANS = ("f32", "q8", "q4")
FILES = [("jpeg", q) for q in (10, 30, 60, 90)]
FILES += [("webp", q) for q in (1, 10, 30, 60)]
LENGTH = 1394  # of the video
LINK = "lte-fair"
STREAMS = {
    "all sent": {},
    "filter": {"filter": True},
    "temporal": {"temporal": 30},
    "similar 2": {"similar": 2.0},
    "filter, temporal": {"filter": True, "temporal": 30},
}

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Bench:
    """What every part of it needs."""

    folder: Path
    server: str
    manifest: Manifest  # that reads boxes down to a low score
    user: Manifest  # that reads those a user sees
    whole: Whole

    def edge(self, plan: str, *, cloud: str | None = None, **options: object) -> Edge:
        cloud = cloud or self.server
        return Edge(self.folder, cloud=cloud, plan=plan, threads=1, standin=False, **options)


def kept(bench: Bench, data: str, pictures: Sequence[Picture]) -> list[Row]:
    """Boxes and bytes by every way."""
    reference = [bench.whole(picture) for picture in pictures]
    rows = [_row(bench, data, "whole", pictures, reference, reference, None)]
    for plan in PLANS:
        with bench.edge(plan) as edge:
            results = [edge(picture.image) for picture in pictures]
        boxes = _found(bench, results, pictures)
        sizes = [result.sent_bytes for result in results]
        rows.append(_row(bench, data, plan, pictures, boxes, reference, sizes))
    for kind, quality in FILES:
        files = [packed(picture, kind, quality) for picture in pictures]
        boxes = [bench.whole(p, seen) for p, (_, seen) in zip(pictures, files, strict=True)]
        sizes = [size for size, _ in files]
        rows.append(_row(bench, data, f"{kind} {quality}", pictures, boxes, reference, sizes))
    return rows


def _found(bench: Bench, results: Sequence[Result], pictures: Sequence[Picture]) -> list[Boxes]:
    pairs = zip(results, pictures, strict=True)
    return [found(bench.manifest, result, picture.size) for result, picture in pairs]


def _row(
    bench: Bench,
    data: str,
    way: str,
    pictures: Sequence[Picture],
    boxes: Sequence[Boxes],
    reference: Sequence[Boxes],
    sizes: Sequence[int] | None,
) -> Row:
    wanted = [sure(one, bench.user) for one in reference]
    row: Row = {"data": data, "way": way, "pictures": len(pictures)}
    if sizes is not None:
        row |= {"bytes_mean": float(np.mean(sizes)), "bytes_p95": float(np.percentile(sizes, 95))}
    row |= _precisions("whole", boxes, wanted, None)
    row |= _precisions("whole_person", boxes, wanted, PERSON)
    if all(picture.truth is not None for picture in pictures):
        row |= _precisions("truth", boxes, [picture.truth for picture in pictures], None)
    return row


def _precisions(
    name: str, boxes: Sequence[Boxes], wanted: Sequence[Boxes], label: int | None
) -> Row:
    return {
        f"{name}_ap50": precision(boxes, wanted, overlaps=[0.5], label=label),
        f"{name}_ap": precision(boxes, wanted, label=label),
    }


def latency(bench: Bench, pictures: Sequence[Picture]) -> list[Row]:
    """Milliseconds a frame on loopback and over a thin link; the first frames warm up."""
    rows = []
    for link in ("loopback", LINK):
        for plan in (*PLANS, "jpeg", *(("local",) if link == "loopback" else ())):
            rows.append(_timed(bench, link, plan, pictures))
    return rows


def _timed(bench: Bench, link: str, plan: str, pictures: Sequence[Picture]) -> Row:
    def run(address: str) -> list[Result]:
        with bench.edge(plan, cloud=address) as edge:
            return streamed(edge, pictures)[10:]

    if link == "loopback":
        results = run(bench.server)
    else:
        with linked(bench.server, link) as address:
            results = run(address)
    answered = [result for result in results if result.where is not None]
    totals = [result.timings.total for result in answered]
    return {
        "link": link,
        "plan": plan,
        "frames": len(results),
        "answered": len(answered),
        "p50_ms": float(np.median(totals)),
        "p95_ms": float(np.percentile(totals, 95)),
        "head_p50_ms": float(np.median([result.timings.head for result in answered])),
        "tail_p50_ms": float(np.median([result.timings.tail for result in answered])),
        "bytes_mean": float(np.mean([result.sent_bytes for result in answered])),
    }


def streams(bench: Bench, pictures: Sequence[Picture], plan: str = "q4") -> list[Row]:
    """The video in full: what filter, differences and re-used answers save, and what they lose."""
    wanted = [sure(bench.whole(picture), bench.user) for picture in pictures]
    there = np.array([(boxes.label == PERSON).any() for boxes in wanted])
    rows = []
    for name, options in STREAMS.items():
        with bench.edge(plan, **options) as edge:
            results = streamed(edge, pictures)
        boxes = _found(bench, results, pictures)
        told = np.array([(sure(one, bench.user).label == PERSON).any() for one in boxes])
        dropped = np.array([result.plan == "empty" for result in results])
        rows.append(
            {
                "stream": name,
                "plan": plan,
                "frames": len(results),
                "with_person": int(there.sum()),
                "dropped_share": float(dropped.mean()),
                "dropped_of_empty": float(dropped[~there].mean()),
                "dropped_of_person": float(dropped[there].mean()),
                "reused_share": float(np.mean([r.plan == "similar" for r in results])),
                "frame_recall": float(told[there].mean()),
                "false_alarms": float(told[~there].mean()),
                "bytes_a_frame": float(np.mean([result.sent_bytes for result in results])),
                **_precisions("whole_person", boxes, wanted, PERSON),
            }
        )
    return rows


def main() -> None:
    """JSON lines, a part after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("build/person"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--every", type=int, default=4, help="of the video's frames, for boxes")
    parser.add_argument("--timed", type=int, default=160, help="frames for latencies")
    parser.add_argument("--json", type=Path, help="write all of it there, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    user = Manifest.load(options.model)
    clip = list(video(options.data, range(HALF, LENGTH)))
    parts: dict[str, Callable[[Bench], list[Row]]] = {
        "video": lambda bench: kept(bench, "video", clip[:: options.every]),
        "coco": lambda bench: kept(bench, "val2017", coco(options.data, "val2017")),
        "streams": lambda bench: streams(bench, clip),
        "latency": lambda bench: latency(bench, clip[: options.timed]),
    }
    results = {}
    with Server(options.model, port=0, threads=1) as server:
        low = ranked(user)
        bench = Bench(options.model, server.address, low, user, Whole(whole(options.data), low))
        for name, part in parts.items():
            results[name] = part(bench)
            for row in results[name]:
                print(json.dumps(row), flush=True)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
