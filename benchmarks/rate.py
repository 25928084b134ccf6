"""What a rate-trained rung was trained to cost, and what it costs on the wire.

python benchmarks/rate.py --data DIR --work build/cifar10      # the recipe's state is there
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from splitrt import Edge
from splitrt.train import cut, read

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "models"))
import cifar10  # noqa: E402  (the recipe is a script beside this folder)

MODEL = ROOT / "models" / "cifar10-resnet"


def trained(work: Path) -> torch.nn.Module:
    """The student as it was when training ended, its priors with it."""
    split = cut(cifar10.network(), after="stage3.1", student=cifar10.STUDENT, shape=(1, 3, 32, 32))
    state = load_file(work / "student.features.safetensors")
    part = "bottleneck."
    own = {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}
    split.slim.load_state_dict(own)
    return split.eval()


@torch.no_grad()
def main() -> None:
    """A line for each width and rung: bytes by the trained prior, bytes of the payload."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/cifar10"))
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="write the lines there, too")
    options = parser.parse_args()
    found = []
    torch.set_num_threads(1)
    frames = read(options.data / "jpeg_test.npz", height=32, width=32, limit=options.limit)
    split = trained(options.work)
    x = split.pixels(torch.from_numpy(np.ascontiguousarray(frames.images)))
    with Edge(MODEL, threads=1) as edge:
        records = {plan.name: plan.bytes_mean for plan in edge.manifest.plans}
    for width, codes in enumerate(cifar10.STUDENT.codes):
        z = split.project(split.trunk(x, width), width)
        for rung, rate in split.slim.rates[width].items():
            bits = rate(z)[1].item()
            wire = records.get(f"w{codes}-{rung}")
            line = {"plan": f"w{codes}-{rung}", "trained": round(bits / 8, 1), "wire": wire}
            found.append(line)
            print(json.dumps(line), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
