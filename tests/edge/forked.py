"""Servers as processes that can be killed, forked from one that has loaded torch already."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

START = 120.0  # seconds for the first; the others take a tenth of one


class Killable:
    """A server of a language model in a process of its own; `kill` is SIGKILL."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "splitrt.cloud"])
        here, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(str(folder), port, there), daemon=True)
        self.process.start()
        there.close()
        self._ready, self._address = here, f"127.0.0.1:{port}" if port else ""

    @property
    def address(self) -> str:
        """host:port; waits for a port that was not given."""
        if not self._address:
            assert self._ready.poll(START), "the server did not start"
            self._address = self._ready.recv()
        return self._address

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def __enter__(self) -> Killable:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """At once, whatever it is doing."""
        self.process.kill()
        self.process.join()


def _serve(folder: str, port: int, ready: Connection) -> None:
    from splitrt.cloud import Server

    with Server(folder, port=port, threads=1) as server:
        ready.send(server.address)
        server.wait()
