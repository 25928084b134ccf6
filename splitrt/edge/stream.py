"""Many frames: the head of the next overlaps the link of the last; each ends once, in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from splitrt.core.result import Result
from splitrt.edge.capture import Frame
from splitrt.errors import ModelMismatch, PacketError, SplitrtError

if TYPE_CHECKING:
    from splitrt.edge.edge import Edge, Flight

LEAVING = 40  # times 50 ms: how long a source that blocks is waited for

Started = tuple[Frame, "Flight | PacketError"] | BaseException | None


def stream(edge: Edge, source: Iterable[Frame], inflight: int) -> Iterator[tuple[Frame, Result]]:
    """(frame, result) in order of capture, exactly one for each frame of the source."""
    if inflight < 1:
        raise SplitrtError(f"inflight = {inflight}\nhelp: at least 1")
    started: queue.Queue[Started] = queue.Queue(maxsize=inflight)
    stop = threading.Event()
    arguments = (edge, source, started, stop)
    worker = threading.Thread(target=_launch_all, args=arguments, name="head", daemon=True)
    worker.start()
    try:
        while (item := started.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0], _landed(edge, *item)
    finally:
        stop.set()
        for _ in range(LEAVING):
            _drain(started)  # it may be waiting to put
            worker.join(0.05)
            if not worker.is_alive():
                break


def _landed(edge: Edge, frame: Frame, flight: Flight | PacketError) -> Result:
    if isinstance(flight, PacketError):
        return edge.failed(frame.captured, flight)
    result, error = edge.land(flight)
    if isinstance(error, ModelMismatch):
        raise error
    return result


def _launch_all(
    edge: Edge, source: Iterable[Frame], started: queue.Queue[Started], stop: threading.Event
) -> None:
    try:
        for frame in source:
            if stop.is_set():
                return
            try:
                started.put((frame, edge.launch(frame.image, frame.captured)))
            except PacketError as error:
                started.put((frame, error))
    except BaseException as error:  # whatever the source or the head raised is the consumer's
        started.put(error)
    else:
        started.put(None)


def _drain(started: queue.Queue[Started]) -> None:
    while True:
        try:
            started.get_nowait()
        except queue.Empty:
            return
