"""Two machines with a router between them, as network namespaces: real TCP over a path that fails.

Needs root and `ip`. Nothing is touched outside the three namespaces, which go away at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType

DEVICE, SERVER = "10.77.1.1", "10.77.2.1"
ROUTER = ("10.77.1.2", "10.77.2.2")  # on the device's and on the server's side


class Path:
    """device – router – server. `hole` lets the router drop everything, both ways, silently."""

    def __init__(self) -> None:
        base = f"splitrt-{os.getpid()}"
        self.device, self.router, self.server = (f"{base}-{end}" for end in ("d", "r", "s"))

    def __enter__(self) -> Path:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def hole(self, on: bool) -> None:
        """A longer prefix than the router's own routes; SYNs vanish as well as data."""
        for address in (DEVICE, SERVER):
            word = "add" if on else "del"
            _ip("-n", self.router, "route", word, "blackhole", f"{address}/32")

    def within(self, name: str) -> list[str]:
        """What to put before a command so that it runs in there."""
        return ["ip", "netns", "exec", name]

    def _build(self) -> None:
        for name in (self.device, self.router, self.server):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for end, address, gate in (
            (self.device, DEVICE, ROUTER[0]),
            (self.server, SERVER, ROUTER[1]),
        ):
            side = end[-1]
            _ip(
                *("link", "add", "wire", "netns", end, "type", "veth"),
                *("peer", "name", f"to-{side}", "netns", self.router),
            )
            _ip("-n", end, "address", "add", f"{address}/24", "dev", "wire")
            _ip("-n", self.router, "address", "add", f"{gate}/24", "dev", f"to-{side}")
            _ip("-n", end, "link", "set", "wire", "up")
            _ip("-n", self.router, "link", "set", f"to-{side}", "up")
            _ip("-n", end, "route", "add", "default", "via", gate)
        forward = [*self.within(self.router), "sh", "-c"]
        _run([*forward, "echo 1 > /proc/sys/net/ipv4/ip_forward"])

    def _remove(self) -> None:
        for name in (self.device, self.router, self.server):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def possible() -> bool:
    """Whether this machine lets us make namespaces."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    try:
        with Path():
            return True
    except OSError:
        return False


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
