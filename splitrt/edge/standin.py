"""In the server's stead where the model has no exit: its whole tail, here, while there is time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from splitrt.core.manifest import TAIL, Manifest, Plan
from splitrt.core.memory import available
from splitrt.core.side import unpack
from splitrt.edge.flight import Flight
from splitrt.edge.head import FADE, Head, LocalTail

logger = logging.getLogger(__name__)

ROOM = 6  # times the file's size that must be free: loading takes 5, of which 3 stay


class Standin:
    """The local tail, ready.  plan: by which it answers.  whole: seconds of head and tail."""

    def __init__(self, head: Head, tail: LocalTail, plan: Plan) -> None:
        self.head, self.tail, self.plan = head, tail, plan
        self._first = tail.seconds

    @property
    def whole(self) -> float:
        """Seconds from the picture to the answer."""
        return self.head.seconds + self.tail.seconds

    def seconds(self, flight: Flight) -> float:
        """What it still takes for a frame; its own head, too, where none or another one ran."""
        return self.whole if flight.features is None else self.tail.seconds

    def answer(self, flight: Flight, until: float) -> None:
        """Leave an answer in the flight, if there is none and still time; else why not.

        until: time.monotonic() of its deadline.
        """
        if flight.prepared is None or flight.local is not None or flight.why is not None:
            return
        needed, began = self.seconds(flight), time.monotonic()
        if began + needed >= until:
            flight.why = f"no time for the local tail, {1000 * needed:.0f} ms"
            # What is never tried is never measured again.
            self.tail.seconds = max(self._first, FADE * self.tail.seconds)
            return
        features = flight.features
        if features is None:
            features = self.head(flight.prepared, ["features"])["features"]
        flight.local = self.tail(features, unpack(self.tail.sides, flight.beside.side))
        flight.ran = time.monotonic() - began


def kept(
    folder: Path,
    manifest: Manifest,
    heads: Mapping[str, Head],
    *,
    deadline: float | None,
    threads: int | None,
) -> Standin | None:
    """None where an exit stands in or there is no tail.onnx; and, with a warning, on a weak device.

    That is one that has less than ROOM times its size free, or on which head and tail alone take
    longer than the deadline, in seconds.
    """
    plan, file = manifest.local_plan, folder / TAIL
    if plan is None or any(width.exit for width in manifest.widths) or not file.is_file():
        return None
    needed, free = ROOM * file.stat().st_size, available()
    if needed > free:
        sizes = f"would take {needed >> 20} MiB, {free >> 20} are free"
        logger.warning("nobody stands in for the server: %s %s", file, sizes)
        return None
    tail = LocalTail(folder, manifest, threads=threads)
    found = Standin(heads[manifest.width(plan).name], tail, plan)
    if deadline is not None and found.whole >= deadline:
        times = f"{1000 * found.whole:.0f} ms, the deadline is {1000 * deadline:.0f}"
        logger.warning("nobody stands in for the server: head and tail take %s", times)
        return None
    return found
