"""A server as a process of its own, so that what an attack costs it can be seen from outside."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from splitrt.core.language import Language, is_language
from splitrt.core.manifest import Manifest
from tests.attacks import frames, sayings
from tests.conftest import ROOT

POOL = 8  # threads by which gRPC's own pool may have grown; a leak would be 200
REST = 0.3  # seconds
PATIENCE = 30.0  # seconds until everything is back at its base


@dataclass(frozen=True, slots=True)
class State:
    """What a server holds: memory in bytes, the rest in pieces.

    waiting: frames in the queue; of a language model's server sessions.
    """

    tally: dict[str, int]
    waiting: int
    inflight: int
    threads: int
    descriptors: int
    memory: int

    def back(self, base: State) -> bool:
        """Whether gauges, threads and descriptors are at most what they were."""
        gauges = self.waiting == self.inflight == 0
        threads = self.threads <= base.threads + POOL
        return gauges and threads and self.descriptors <= base.descriptors

    def moved(self, base: State) -> dict[str, int]:
        """The counters that moved, and by how many."""
        names = self.tally.keys() | base.tally.keys()
        steps = {name: self.tally.get(name, 0) - base.tally.get(name, 0) for name in names}
        return {name: step for name, step in steps.items() if step}


class Victim:
    """The server of a model directory as a process, and a channel to it."""

    def __init__(self, folder: Path) -> None:
        self.manifest: Any = (Language if is_language(folder) else Manifest).load(folder)
        command = [sys.executable, "-m", "tests.attacks.victim", str(folder)]
        paths = os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths},
        )
        self.address = self._line()
        self.channel = grpc.insecure_channel(self.address)

    def close(self) -> None:
        self.channel.close()
        self.process.communicate("", 30)
        assert self.process.returncode == 0

    def look(self) -> State:
        """How the process stands now."""
        assert self.process.stdin is not None and self.process.poll() is None
        self.process.stdin.write("look\n")
        self.process.stdin.flush()
        told = json.loads(self._line())
        proc = Path(f"/proc/{self.process.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return State(
            **told,
            threads=len(list((proc / "task").iterdir())),
            descriptors=len(list((proc / "fd").iterdir())),
            memory=pages * resource.getpagesize(),
        )

    def settled(self, base: State, moved: Mapping[str, int] | None) -> State:
        """How it stands when all is back at its base and the counters moved as told (None: any).

        An AssertionError if that never happens.
        """
        until = time.monotonic() + PATIENCE
        while True:
            state = self.look()
            if state.back(base) and moved in (None, state.moved(base)):
                return state
            assert time.monotonic() < until, f"{state}\nis not back at\n{base}\nwith {moved}"
            time.sleep(0.01)

    def rested(self, base: State) -> State:
        """How it stands when all is back at its base and no counter has moved for REST seconds.

        A call may be counted after it was answered.
        """
        state = self.settled(base, None)
        while True:
            time.sleep(REST)
            before, state = state, self.settled(base, None)
            if state.tally == before.tally:
                return state

    def known_good(self) -> list[bytes]:
        """The logits of a unary and of a streamed frame, or what a language model says."""
        if isinstance(self.manifest, Language):
            return sayings.good(self.channel, self.manifest)
        raw = frames.good(self.manifest)
        unary = frames.infer(self.channel, raw)
        welcome, answer = frames.stream(self.channel, frames.streamed(raw))
        assert welcome.HasField("welcome"), welcome
        names = {unary.status, answer.answer.status}
        assert names == {frames.wire.OK}, (unary.detail, answer.answer.detail)
        return [output.data for one in (unary, answer.answer) for output in one.outputs]

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def main(folder: str) -> None:
    """Serve, and answer each line on stdin with counters and gauges; its end ends the server."""
    from splitrt.cloud import Room, Server

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = Room(kv_tokens=4096, ttl=0.5)
    with Server(folder, port=0, threads=1, room=room) as server:
        print(server.address, flush=True)
        for _ in sys.stdin:
            waiting = server.scheduler.sessions if server.language else server.batcher.waiting
            gauges = {"waiting": waiting, "inflight": server.inflight}
            print(json.dumps({"tally": dict(server.tally), **gauges}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
