"""What several widths in one head cost: accuracy against widths trained alone, memory, switching.

    python benchmarks/widths.py --data DIR --joint DIR --alone DIR DIR DIR

The model directories come from models/cifar10.py: --joint with --every, each of --alone with
--alone WIDTH, all with the same --student-epochs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from splitrt import Edge
from splitrt.train import read, score

RUNGS = ("r24", "r58", "r125", "q4")
SWITCHES = 2000


def tax(joint: Path, alone: list[Path], data: Path, limit: int | None) -> list[dict]:
    """A row for each width and rung: the joint model's accuracy and bytes, and the lone one's."""
    frames = read(data / "jpeg_test.npz", height=32, width=32, limit=limit)
    rows = []
    for folder in alone:
        with Edge(folder) as edge:
            codes = edge.manifest.widths[0].shape[0]
        ours = score(folder, frames, plans=list(RUNGS), baselines=False)
        names = [f"w{codes}-{rung}" for rung in RUNGS]
        shared = score(joint, frames, plans=names, baselines=False)
        for rung, one, other in zip(RUNGS, shared.plans, ours.plans, strict=True):
            rows.append(
                {
                    "width": f"w{codes}",
                    "rung": rung,
                    "joint": one.accuracy,
                    "joint_bytes": one.bytes_mean,
                    "alone": other.accuracy,
                    "alone_bytes": other.bytes_mean,
                    "tax": round(other.accuracy - one.accuracy, 4),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def memory(folder: Path) -> int:
    """Peak resident KiB of a process that opens the folder and answers one picture."""
    code = (  # not getrusage: after a fork its peak is the parent's, if that was higher
        "import sys, numpy as np; from splitrt import Edge\n"
        "with Edge(sys.argv[1], threads=1) as edge:\n"
        "    edge(np.zeros((32, 32, 3), np.uint8))\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "print(next(line.split()[1] for line in lines if line.startswith('VmHWM')))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)]
    return int(statistics.median(int(run.stdout) for run in runs))


def switching(folder: Path) -> dict[str, float]:
    """Milliseconds of setting another width, and of a head before and after a switch."""
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    with Edge(folder, threads=1) as edge:
        exits = [plan.name for plan in edge.manifest.plans if plan.exits]
        times, heads = [], {name: [] for name in exits}
        for turn in range(SWITCHES):
            name = exits[turn % len(exits)]
            started = time.perf_counter()
            edge.plan = name
            times.append(1000 * (time.perf_counter() - started))
            heads[name].append(edge(image).timings.head)
    medians = {f"head of {name}": statistics.median(found) for name, found in heads.items()}
    return {"switch": statistics.median(times), "switch p99": np.percentile(times, 99), **medians}


def main() -> None:
    """Print and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--joint", type=Path, required=True)
    parser.add_argument("--alone", type=Path, nargs="*", default=[])
    parser.add_argument("--json", type=Path, default=Path("build/widths.json"))
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, object] = {"switching, ms": switching(options.joint)}
    found["peak memory, KiB"] = {
        str(folder.name): memory(folder) for folder in (options.joint, *options.alone)
    }
    print(json.dumps(found, indent=1), flush=True)
    found["tax"] = tax(options.joint, options.alone, options.data, options.limit)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
