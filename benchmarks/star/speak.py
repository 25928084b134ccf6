"""What every process that is measured in Python says: answers to lines of JSON, timed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

Answer = Callable[[list[int], int], Iterator[int]]


def speak(answer: Answer, more: Callable[[], dict[str, Any]] = dict) -> None:
    """Until stdin ends: for {"ids", "most"} the new tokens, and when each was there.

    answer: a fresh text, greedily; stops do not count.  more: what else is to be told.
    """
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        ids, stamps = [], [time.perf_counter()]
        for token in answer(wanted["ids"], wanted["most"]):
            stamps.append(time.perf_counter())
            ids.append(int(token))
        each = [1000 * (b - a) for a, b in pairwise(stamps)]
        print(json.dumps({"ids": ids, "ms": each, **more()}), flush=True)
