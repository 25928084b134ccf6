"""TPI-LLM's own example as it is, but that the tokens' times are kept.

python benchmarks/star/with_tpi.py DIR --rank 0 ...    # what follows DIR is its run_multihost.py's
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import transformers


class Stamped:
    """In place of transformers' TextStreamer: the prompt is put first, then token after token."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._stamps: list[float] = []
        self._ids: list[int] = []

    def put(self, value: Any) -> None:
        self._stamps.append(time.perf_counter())
        self._ids.append(int(value.reshape(-1)[-1]))

    def end(self) -> None:
        pairs = zip(self._stamps, self._stamps[1:], strict=False)
        told = {"ids": self._ids[1:], "ms": [1000 * (b - a) for a, b in pairs]}
        print(json.dumps(told), flush=True)


def main() -> None:
    examples = Path(sys.argv[1]) / "examples"
    sys.path.insert(0, str(examples))
    sys.argv = [str(examples / "run_multihost.py"), *sys.argv[2:]]
    transformers.TextStreamer = Stamped
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
