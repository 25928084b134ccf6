"""The hub of a star, which the benchmark asks; its spokes are `splitrt star --join`.

python benchmarks/star/hub.py DIR --devices N --listen HOST:PORT [--window N] [--memory MB]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from speak import speak

from splitrt.star import Room, Star

KINDS = ("compute", "reduce", "wait", "load")
COMING = 280.0  # seconds for all spokes: they fetch their shards


def answer(star: Star, ids: list[int], most: int) -> Iterator[int]:
    """A fresh text."""
    star.truncate(0)
    for token in star.answer(ids, most=most):
        yield token.id


def told(star: Star) -> dict[str, Any]:
    """The hub's milliseconds a step since the model was divided; how sums go; who holds what."""
    devices = star.figures()
    shares = {kind: getattr(devices[0], kind) for kind in KINDS}
    held = [list(one.shards) for one in devices]
    return {"shares": shares, "way": str(star.way), "held": held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--listen", required=True, help="HOST:PORT")
    parser.add_argument("--window", type=int, help="blocks of weights that are loaded at once")
    parser.add_argument("--memory", type=float, help="MB that the hub gives")
    options = parser.parse_args()
    memory = None if options.memory is None else int(1e6 * options.memory)
    room = Room(window=options.window, memory=memory)
    with Star(options.folder, listen=options.listen, drafts=0, room=room) as star:
        print(star.address, flush=True)
        came = star.gather(options.devices - 1, timeout=COMING)
        if len(came) < options.devices - 1:
            raise SystemExit(f"{len(came)} spokes of {options.devices - 1} came")
        speak(partial(answer, star), partial(told, star))


if __name__ == "__main__":
    main()
