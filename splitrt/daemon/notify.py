"""What systemd is told: ready, reloading, stopping, alive (sd_notify's protocol)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notify:
    """Sends to $NOTIFY_SOCKET, if there is one. every: seconds between signs of life, if any."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._path = environ.get("NOTIFY_SOCKET", "")
        self.every: float | None = None
        pid = environ.get("WATCHDOG_PID", str(os.getpid()))
        told = environ.get("WATCHDOG_USEC", "")
        if self._path and told.isdecimal() and int(told) and pid == str(os.getpid()):
            self.every = int(told) / 2e6  # twice in the time allowed

    def ready(self, status: str) -> None:
        """Started, or done with reloading."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload begins."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end begins."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Keeps the watchdog quiet."""
        self._send("WATCHDOG=1")

    def _send(self, *words: str) -> None:
        if not self._path:
            return
        address = f"\0{self._path[1:]}" if self._path.startswith("@") else self._path
        with (
            contextlib.suppress(OSError),  # a service runs without its supervisor, too
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as plug,
        ):
            plug.sendto("\n".join(words).encode(), address)
