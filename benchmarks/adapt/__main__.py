"""Does the exit get better on pictures of a bad day, for how many bytes, and at what risk?

python -m benchmarks.adapt --data DIR [--json FILE]   # DIR: clean_test_1017.npz, jpeg_test.npz
python -m benchmarks.adapt --data DIR --tune          # the kinds by which constants were chosen
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.adapt.corrupt import SEVERITIES, STRENGTHS, TUNING, corrupted
from benchmarks.adapt.stream import Bench
from splitrt.train import Frames, read

COLUMNS = (
    "stream_before",
    "stream_after",
    "before",
    "after",
    "forced",
    "tail",
    "tail_and",
    "teacher",
    "picture",
    "picture_and",
    "clean_before",
    "clean_after",
    "clean_tail",
    "clean_tail_and",
)
UNSURE = ("before", "after", "tail", "tail_and", "teacher", "picture", "picture_and")  # fmt: skip


def main() -> None:
    """A line a kind and severity, mean rows, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=Path("build/adapt.json"))
    parser.add_argument("--tune", action="store_true", help="other kinds, pictures of the training")
    parser.add_argument("--limit", type=int, default=4000, help="pictures of the large file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    kinds = [("clean", 0)]
    kinds += [
        (kind, hard) for hard in SEVERITIES for kind in (TUNING if options.tune else STRENGTHS)
    ]
    job = partial(row, options.data, options.tune, options.limit, options.seed)
    found = []
    with ProcessPoolExecutor(options.workers) as pool:
        for one in pool.map(job, kinds):
            found.append(one)
            print(line(one), flush=True)
    for hard in SEVERITIES:
        print(line(mean([one for one in found if one["severity"] == hard], f"mean {hard}")))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")


def frames(data: Path, tune: bool, limit: int) -> tuple[Frames, np.ndarray]:
    """Pictures in a shuffled order, and which of them are lossless."""
    names = ("clean_train_8068",) if tune else ("clean_test_1017", "jpeg_test")
    parts = [read(data / f"{name}.npz", height=32, width=32, limit=limit) for name in names]
    order = np.random.default_rng(5).permutation(sum(len(part) for part in parts))
    images = np.concatenate([part.images for part in parts])[order]
    labels = np.concatenate([part.labels for part in parts])[order]
    return Frames(images, labels), order < len(parts[0])


def row(data: Path, tune: bool, limit: int, seed: int, kind: tuple[str, int]) -> dict[str, object]:
    """One stream: its first half adapts, its second and clean pictures judge."""
    (name, hard), bench = kind, Bench()
    shown, lossless = frames(data, tune, limit)
    half = len(shown.images) // 2
    clean = bench.seen(shown.images)
    seen = clean if name == "clean" else bench.seen(corrupted(shown.images, name, hard, seed))
    first, second = slice(0, half), slice(half, None)
    found = bench.run(seen[first], seen[second], clean[second], seed=seed)
    answers = found.pop("answers")
    whys = found.pop("whys")
    scored = {
        "stream_before": (seen.logits[first], first),
        "stream_after": (answers["online"], first),
        "before": (seen.logits[second], second),
        "after": (answers["apart"], second),
        "forced": (answers["forced"], second),
        **{name: (answers[name], second) for name in UNSURE[2:]},
        "clean_before": (clean.logits[second], second),
        "clean_after": (answers["clean"], second),
        "clean_tail": (answers["clean_tail"], second),
        "clean_tail_and": (answers["clean_tail_and"], second),
    }
    unsure = ~bench.sure(answers["apart"])
    told: dict[str, object] = {"kind": name, "severity": hard, "frames": half}
    for column, (logits, rows) in scored.items():
        right = logits.argmax(1) == shown.labels[rows]
        told[column] = float(right.mean())
        told[f"{column}_lossless"] = float(right[lossless[rows]].mean())
        if column in UNSURE:
            told[f"{column}_unsure"] = float(right[unsure].mean())
    for column in ("before", "after"):
        sure = bench.sure(scored[column][0])
        right = scored[column][0].argmax(1) == shown.labels[second]
        told[f"{column}_sure"] = float(sure.mean())
        told[f"{column}_sure_right"] = float(right[sure].mean()) if sure.any() else None
    told["share_sent"] = found["uploads"] / half
    told["whys"] = {why: whys.count(why) for why in sorted(set(whys))}
    return {**told, **found, "tally": asdict(found["tally"])}


def mean(rows: list[dict[str, object]], name: str) -> dict[str, object]:
    """Of every number."""
    numbers = [key for key, value in rows[0].items() if isinstance(value, (int, float))]
    means = {key: float(np.mean([one[key] for one in rows])) for key in numbers}
    tally = {key: float(np.mean([one["tally"][key] for one in rows])) for key in rows[0]["tally"]}
    return {**means, "kind": name, "severity": "", "tally": tally}


def line(row: dict[str, object]) -> str:
    """Percentages by COLUMNS, and by UNSURE of frames of which the adapted exit is unsure; bytes.

    Bytes are up and down; the last are revisions sent, refused, too near, reverted.
    """
    parts = [f"{100 * row[column]:5.1f}" for column in COLUMNS]
    unsure = [f"{100 * row[f'{column}_unsure']:.1f}" for column in UNSURE]
    sure = [
        f"{100 * row[f'{when}_sure']:.0f}@{100 * (row[f'{when}_sure_right'] or 0):.1f}"
        for when in ("before", "after")
    ]
    tally = "/".join(f"{row['tally'][key]:.3g}" for key in ("sent", "refused", "near", "reverted"))
    return (
        f"{row['kind']:>15} {row['severity']!s:1} {' '.join(parts)} unsure {' '.join(unsure)} "
        f"sure {' '.join(sure)} "
        f"used {100 * row['used_apart']:.0f} {100 * row['used_clean']:.0f} "
        f"sent {100 * row['share_sent']:.1f} up {row['up']:.0f} down {row['down']:.0f} {tally}"
    )


if __name__ == "__main__":
    main()
