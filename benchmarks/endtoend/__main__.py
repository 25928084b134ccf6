"""Local, JPEG, a fixed split or the controller: which answers best on which link and device?

python -m benchmarks.endtoend replay [--data jpeg_test.npz] [--json FILE]
python -m benchmarks.endtoend real --data jpeg_test.npz [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.endtoend import real
from benchmarks.endtoend.record import records
from benchmarks.endtoend.rows import LINKS, Row, alone, lines, played, reductions
from benchmarks.endtoend.table import DEVICES, Table, camera, shipped

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "cifar10-resnet"
PICTURES = 3000  # that are recorded at least
FRAMES = 10  # a second


def main() -> None:
    """Replay all of it, or try a little of it for real."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=("replay", "real"))
    parser.add_argument("--data", type=Path, help="labelled pictures; without: only made-up plans")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "endtoend", help="cache")
    parser.add_argument("--seconds", type=float, help="of each link: 300 replayed, 100 for real")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", nargs="+", choices=DEVICES, default=list(DEVICES))
    parser.add_argument("--link", nargs="+", help="all links if replayed, two for real")
    parser.add_argument("--workers", type=int, default=1, help="processes that replay")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = replayed(options) if options.way == "replay" else tried(options)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def replayed(options: argparse.Namespace) -> dict[str, object]:
    """Every table, device, link and policy; a table a device on stdout."""
    seconds, names = options.seconds or 300.0, options.link or LINKS
    told: dict[str, object] = {"rows": [], "alone": {}}
    for device in options.device:
        for table in tables(options, device, seconds):
            rows = [row for some in across(options, table, device, names, seconds) for row in some]
            print(f"\n{table.name} on {table.device.name}", *lines(rows), sep="\n", flush=True)
            told["rows"] += [row.as_dict() for row in rows]
            single = {
                name: alone(table, name, seconds=seconds, seed=options.seed) for name in names
            }
            print(*reductions(single), sep="\n", flush=True)
            told["alone"][f"{table.name} {device}"] = single
    return told


def tables(options: argparse.Namespace, device: str, seconds: float) -> list[Table]:
    """The shipped model's, if there are pictures for it, and the made-up one."""
    if options.data is None:
        return [camera(device)]
    kept = records(MODEL, options.data, options.build, limit=recorded(seconds))
    return [shipped(MODEL, device, kept), camera(device)]


def recorded(seconds: float) -> int:
    """Pictures for so many seconds; one cache for all that is shorter."""
    return max(PICTURES, round(FRAMES * seconds))


def across(
    options: argparse.Namespace, table: Table, device: str, names: list[str], seconds: float
) -> list[list[Row]]:
    """The rows of each link."""
    one = partial(played, table, device, seconds=seconds, seed=options.seed)
    if options.workers < 2:
        return [one(name) for name in names]
    with ProcessPoolExecutor(options.workers) as pool:
        return list(pool.map(one, names))


def tried(options: argparse.Namespace) -> list[dict[str, object]]:
    """A few policies through a relay, beside their replay."""
    if options.data is None:
        raise SystemExit("error: real needs pictures\nhelp: --data jpeg_test.npz")
    seconds = options.seconds or 100.0
    kept = records(MODEL, options.data, options.build, limit=recorded(seconds))
    table = shipped(MODEL, options.device[0], kept)
    found = []
    for name in options.link or real.LINKS:
        found += real.compared(MODEL, options.data, table, name, seconds, options.seed)
    return found


if __name__ == "__main__":
    main()
