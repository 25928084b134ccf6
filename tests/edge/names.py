"""A resolver for tests: names that end in .test stand for what the test says."""

from __future__ import annotations

import socket
import threading
from typing import Any


class Names:
    """In the place of `socket.getaddrinfo`. A name that is not in `table` is unknown.

    asked: how often each was asked for.  free: while it is clear, the resolver hangs.
    """

    def __init__(self, monkeypatch: Any, **table: list[str]) -> None:
        self.table = {f"{name}.test": addresses for name, addresses in table.items()}
        self.asked: dict[str, int] = {}
        self.free = threading.Event()
        self.free.set()
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: Any, port: Any, *rest: Any, **more: Any) -> list[Any]:
        if not str(host).endswith(".test"):
            return self._real(host, port, *rest, **more)
        self.asked[host] = self.asked.get(host, 0) + 1
        self.free.wait(30)
        if host not in self.table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for one in self.table[host] for found in self._real(one, port, *rest, **more)]
