"""The processes of one row of the table: started, asked, watched for their memory, ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from router import INTERFACE

PATIENCE = 300.0  # seconds for one answer
EVERY = 0.05  # seconds between looks at memory


class Failed(Exception):
    """A process of the row ended, or was silent; the last words of all of them."""


class Crew:
    """Processes of one thread each. The first that is started leads: it is asked, and answers."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []
        self._peaks: dict[int, int] = {}
        self._over = threading.Event()
        self._logs: dict[int, Any] = {}  # what each says on stderr
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Crew:
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._watcher.join()
        for process in self._running:
            process.kill() if kind else process.terminate()
        for process in self._running:
            try:
                process.communicate(timeout=20)
            except (subprocess.TimeoutExpired, ValueError):
                process.kill()
                process.wait()
        for log in self._logs.values():
            log.close()

    def start(
        self,
        command: Sequence[object],
        *,
        within: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> subprocess.Popen[str]:
        """One more. within: words before the command, of `Net.within`."""
        threads = {f"{one}_NUM_THREADS": "1" for one in ("OMP", "MKL", "OPENBLAS")}
        log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the crew
        process = subprocess.Popen(
            [*within, *(str(word) for word in command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **threads, **(environment or {})},
            cwd=folder,
        )
        self._running.append(process)
        self._logs[process.pid] = log
        return process

    def python(self, *words: object, within: Sequence[str] = ()) -> Any:
        """One more, of this Python."""
        # gloo would choose by the host's name, which is nobody's in a namespace.
        environment = {"GLOO_SOCKET_IFNAME": INTERFACE if within else "lo"}
        return self.start([sys.executable, *words], within=within, environment=environment)

    def heard(self, process: subprocess.Popen[str]) -> str:
        """Its next line, without its end; Failed if there is none in time."""
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        assert process.stdout is not None
        line = process.stdout.readline()
        timer.cancel()
        if not line:
            raise Failed(self.words())
        return line.rstrip("\n")

    def asked(self, **wanted: object) -> Any:
        """What the leader answers, JSON for JSON."""
        leader = self._running[0]
        assert leader.stdin is not None
        try:
            leader.stdin.write(json.dumps(wanted) + "\n")
            leader.stdin.flush()
        except BrokenPipeError as error:
            raise Failed(self.words()) from error
        return json.loads(self.heard(leader))

    def words(self) -> str:
        """The end of what the leader said on stderr, or another if it said nothing."""
        for log in self._logs.values():
            log.seek(0)
            if said := log.read()[-1500:].strip():
                return said
        return "a process ended without a word"

    @property
    def peak(self) -> int:
        """Bytes: the largest that any of them, or of theirs, has been."""
        self._look()
        return max(self._peaks.values(), default=0)

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self._look()

    def _look(self) -> None:
        for process in tuple(self._running):
            for pid in family(process.pid):
                self._peaks[pid] = max(peak(pid), self._peaks.get(pid, 0))


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = " ".join((task / "children").read_text() for task in tasks)
    except OSError:  # it has ended
        return [pid]
    return [pid, *(one for child in children.split() for one in family(int(child)))]


def peak(pid: int) -> int:
    """Bytes of memory that it had at most; mapped files count as far as they were read."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def free(host: str = "127.0.0.1") -> int:
    """A port that nobody has."""
    import socket

    with socket.create_server((host, 0)) as one:
        return int(one.getsockname()[1])
