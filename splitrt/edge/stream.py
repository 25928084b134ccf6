"""Many frames: the head of the next overlaps the link of the last; each ends once, in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from splitrt.core.result import Result
from splitrt.edge.capture import Frame
from splitrt.edge.still import Still
from splitrt.errors import ModelMismatch, PacketError, SplitrtError

if TYPE_CHECKING:
    from splitrt.edge.edge import Edge
    from splitrt.edge.flight import Flight

LEAVING = 2.0  # seconds that a source which blocks is waited for

Started: TypeAlias = "tuple[Frame, Flight | Result | PacketError] | BaseException | None"


def stream(edge: Edge, source: Iterable[Frame], inflight: int) -> Iterator[tuple[Frame, Result]]:
    """(frame, result) in order of capture, exactly one for each frame of the source.

    At most `inflight` frames are between capture and result.
    """
    if inflight < 1:
        raise SplitrtError(f"inflight = {inflight}\nhelp: at least 1")
    started: queue.SimpleQueue[Started] = queue.SimpleQueue()
    places, stop = threading.Semaphore(inflight), threading.Event()
    still = None if edge.similar is None else Still(edge.similar)
    worker = threading.Thread(
        target=_launch_all,
        args=(edge, source, started, places, stop, still),
        name="head",
        daemon=True,
    )
    worker.start()
    try:
        while (item := started.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            landed = _landed(edge, *item)
            if still is not None and not isinstance(item[1], Result):
                still.landed(item[0], landed)
            places.release()
            yield item[0], landed
    finally:
        stop.set()
        places.release()
        worker.join(LEAVING)


def _landed(edge: Edge, frame: Frame, flight: Flight | Result | PacketError) -> Result:
    if isinstance(flight, Result):  # like one before: its end is when its turn comes
        return edge.repeated(frame.captured, flight)
    if isinstance(flight, PacketError):
        return edge.failed(frame.captured, flight)
    result, error = edge.land(flight)
    if isinstance(error, ModelMismatch):
        raise error
    return result


def _launch_all(
    edge: Edge,
    source: Iterable[Frame],
    started: queue.SimpleQueue[Started],
    places: threading.Semaphore,
    stop: threading.Event,
    still: Still | None,
) -> None:
    frames = iter(source)
    try:
        while places.acquire() and not stop.is_set():
            frame = next(frames, None)
            if frame is None:
                break
            like = None if still is None else still.like(frame)
            if like is not None:
                started.put((frame, like))
                continue
            try:
                started.put((frame, edge.launch(frame.image, frame.captured, frame.side)))
            except PacketError as error:
                started.put((frame, error))
        started.put(None)
    except BaseException as error:  # whatever the source or the head raised is the consumer's
        started.put(error)
