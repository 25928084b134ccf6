"""Who listens to a camera: each with a queue of its own, and none can hold the camera up."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from splitrt.daemon.seen import Seen

WAITING = 64  # frames' ends that a listener may be behind


@dataclass(slots=True, eq=False)
class Listener:
    """missed: ends that came while its queue was full."""

    waiting: queue.Queue[Seen] = field(default_factory=lambda: queue.Queue(WAITING))
    missed: int = 0


class Audience:
    """The listeners of each camera."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, list[Listener]] = {}
        self.missed = 0  # by all of them, ever

    @property
    def size(self) -> int:
        """Listeners now."""
        with self._lock:
            return sum(map(len, self._listeners.values()))

    @contextlib.contextmanager
    def listen(self, camera: str) -> Iterator[Listener]:
        """What that camera sees from now on."""
        listener = Listener()
        with self._lock:
            self._listeners.setdefault(camera, []).append(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners[camera].remove(listener)

    def tell(self, seen: Seen) -> None:
        """Hand it to all who listen; who is too slow misses it, and is told so."""
        with self._lock:
            listeners = tuple(self._listeners.get(seen.camera, ()))
        for listener in listeners:
            try:
                listener.waiting.put_nowait(seen)
            except queue.Full:
                listener.missed += 1
                self.missed += 1
