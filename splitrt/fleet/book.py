"""Which replicas there are, and where: each says every second that it lives, and hears of all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

NAMESPACE = "splitrt"
BEAT = 1.0  # seconds
EVERYWHERE = ("0.0.0.0", "::", "[::]")
LOST = 3.5  # seconds without a beat, after which a replica is told no more


class Book:
    """Entries by replica, as messages on the wire. Lives in an actor; a fresh one is soon full."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, tuple[float, bytes]] = {}
        self._renewed = 0.0

    def beat(self, name: str, entry: bytes) -> tuple[list[bytes], float]:
        """That replica lives. All that do; when files were to be taken up anew, by time.time()."""
        self._entries[name] = self._clock(), entry
        return self.read(), self._renewed

    def leave(self, name: str) -> None:
        """That replica takes nobody any more."""
        self._entries.pop(name, None)

    def read(self) -> list[bytes]:
        """The entries of all that live."""
        now = self._clock()
        kept = {name: one for name, one in self._entries.items() if now - one[0] < LOST}
        self._entries = kept
        return [entry for _, entry in kept.values()]

    def renew(self) -> None:
        """Let every replica take up changed files."""
        self._renewed = time.time()


def opened(name: str) -> Any:
    """The actor of that name, which outlives whoever made it and is started again by Ray."""
    import ray

    actor = ray.remote(Book).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=2,
    )
    return actor.remote()


def ended(name: str) -> None:
    """End the actor of that name, whoever made it."""
    import ray

    with contextlib.suppress(ValueError):  # there is none
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def here(host: str) -> str:
    """The host, or the address that the cluster knows this machine by if it stands for all."""
    import ray

    if host not in EVERYWHERE:
        return host
    address = ray.util.get_node_ip_address()
    return f"[{address}]" if ":" in address else address
