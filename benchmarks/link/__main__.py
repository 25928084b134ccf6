"""How much of the clairvoyant gain over the device alone does the controller capture?

python -m benchmarks.link [--table pi4|shipped] [--trace FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.link.oracle import oracle
from benchmarks.link.policies import Bandit, Controlled, Neurosurgeon, Policy, Static
from benchmarks.link.replay import replay
from benchmarks.link.scene import PI4, Scene, scene, shipped, suite
from splitrt.core import links
from splitrt.core.control import Rules

REPORTED = (1, 2, 3)  # seeds; constants were chosen on others
RULES = Rules()
ABLATIONS: dict[str, Callable[[Scene], Policy]] = {
    "without probing": lambda one: Controlled(one, rules=replace(RULES, probes=0.0)),
    "without risk": lambda one: Controlled(one, rules=replace(RULES, spread=1e-3), risk=False),
    "without censoring": lambda one: Controlled(one, rules=replace(RULES, patience=math.inf)),
    "without DOWN": lambda one: Controlled(one, rules=replace(RULES, silence=math.inf)),
}
POLICIES: dict[str, Callable[[Scene], Policy]] = {
    "controller": Controlled,
    **ABLATIONS,
    "neurosurgeon": Neurosurgeon,
    "bandit": Bandit,
}
UNHEDGED = "not hedged"


def rows(one: Scene) -> dict[str, dict[str, float]]:
    """Every policy's outcome and its captured share, by name; the oracle's accuracy too."""
    best, local = oracle(one), one.table.local.accuracy
    found = {name: replay(one, make(one)) for name, make in POLICIES.items()}
    found[UNHEDGED] = replay(one, Controlled(one, hedged=False), hedged=False)
    for option in one.table.options:
        found[f"always {option.name}"] = replay(one, Static(one, option))
    share = {name: (out.accuracy - local) / (best - local) for name, out in found.items()}
    told = {name: {"captured": share[name], **asdict(out)} for name, out in found.items()}
    static = max((name for name in told if name.startswith("always ")), key=share.__getitem__)
    return {**told, "best static": told[static], "oracle": {"captured": 1.0, "accuracy": best}}


def main() -> None:
    """A table of mean and least captured share; all outcomes as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", choices=("pi4", "shipped"), default="pi4")
    parser.add_argument("--trace", type=Path, help="two columns, seconds and Mbit/s")
    parser.add_argument("--rtt", type=float, default=0.07, help="seconds, of the trace")
    parser.add_argument("--deadline", type=float, default=0.25, help="seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(REPORTED))
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--buffered", action="store_true", help="outages lose nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = PI4 if options.table == "pi4" else shipped()
    if options.trace is not None:
        scenes = [scene(links.read(options.trace, options.rtt), table)]
    else:
        scenes = suite(table, tuple(options.seeds), seconds=options.seconds)
    lossy = not options.buffered
    scenes = [replace(one, deadline=options.deadline, lossy=lossy) for one in scenes]
    found = {one.name: rows(one) for one in scenes}
    names = list(next(iter(found.values())))
    print(f"{table.name}: {len(scenes)} scenes, deadline {1000 * options.deadline:.0f} ms")
    print(f"{'':24}{'mean':>7}{'least':>7}{'sent':>7}{'hit':>7}{'probes':>8}{'kB/s':>7}")
    for name in names:
        these = [found[one][name] for one in found]
        shares = [row["captured"] for row in these]
        line = f"{name:24}{sum(shares) / len(shares):7.3f}{min(shares):7.3f}"
        if "sent" in these[0]:
            mean = {key: sum(row[key] for row in these) / len(these) for key in these[0]}
            line += f"{mean['sent']:7.3f}{mean['hit']:7.3f}{mean['probes']:8.4f}"
            line += f"{mean['bytes'] / 1000:7.1f}"
        print(line)
    for one, row in found.items():
        share, static = row["controller"]["captured"], row["best static"]["captured"]
        best = row["oracle"]["accuracy"]
        print(f"{one:24}{share:7.3f}  best static {static:7.3f}  oracle's accuracy {best:.4f}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
