"""The tail server beside its peers: throughput, latency and CPU under the same closed load.

python benchmarks/serving/run.py --work build/serving --install
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from program import Program
from record import recorded
from variant import CODED, PLANS, variants

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SHIPPED = ROOT / "models" / "cifar10-resnet"
PEERS = {"mosec": "mosec==0.9.8", "litserve": "litserve==0.2.19", "ray": "ray[serve]==2.60.0"}
MARK = "SERVING_RUN"  # an environment variable by which a server's processes are known
READY = 120.0  # seconds for a server to answer its first request
WARM = 1.5  # seconds of load before the window
ENVELOPE = 19  # bytes of an Answer around its tensor: the echo answers as many
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Contest:
    """One server under the load: which script, which tail, which payload."""

    server: str
    tail: str = "full"
    payload: str = PLANS[0]
    batch: int = 32  # of a peer, at most; splitrt finds its own below 32

    @property
    def way(self) -> str:
        return self.server if self.server in ("splitrt", "echo") else "http"


CONTESTS = {
    "splitrt": Contest("splitrt"),
    "mosec": Contest("mosec"),
    "mosec-16": Contest("mosec", batch=16),
    "litserve": Contest("litserve"),
    "ray": Contest("ray"),
    "splitrt-coded": Contest("splitrt", payload=CODED),
    "splitrt-empty": Contest("splitrt", "empty"),
    "mosec-empty": Contest("mosec", "empty"),
    "litserve-empty": Contest("litserve", "empty"),
    "ray-empty": Contest("ray", "empty"),
    "echo": Contest("echo", "empty"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One run of one contest by so many clients."""

    name: str
    clients: int
    answered: int
    rate: float  # answers a second
    p50_ms: float
    p99_ms: float
    server_us: float  # CPU of the server's whole tree, user and system, per answer
    server_cores: float  # that it kept busy
    client_cores: float


def install(work: Path) -> None:
    """A virtual environment for each peer, with the torch and numpy of the lock."""
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lock if line.startswith(("torch==", "numpy=="))]
    for name, package in PEERS.items():
        if not (work / name).exists():
            subprocess.run([sys.executable, "-m", "venv", work / name], check=True)
        subprocess.run([work / name / "bin/pip", "install", "-q", package, *pins], check=True)


def prepare(work: Path) -> None:
    """The tails, what is sent to them, and what they have to answer."""
    full, _ = variants(SHIPPED, work)
    body = np.random.default_rng(0).integers(0, 256, 512, np.uint8).tobytes()
    (work / PLANS[0]).write_bytes(body)
    (work / CODED).write_bytes(recorded(full, CODED))
    for tail in ("full", "empty"):
        os.environ["TAIL_FOLDER"] = str(work / tail)
        (work / f"{tail}.answer").write_bytes(Program()([body])[0])


@contextlib.contextmanager
def serving(contest: Contest, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The server in its own processes on its own cores; its address and mark."""
    work, port, mark = options.work, free_port(), uuid.uuid4().hex
    here = contest.server in ("splitrt", "echo")
    python = sys.executable if here else str(work / contest.server / "bin/python")
    size = (work / f"{contest.tail}.answer").stat().st_size
    command = [python, str(HERE / f"with_{contest.server}.py"), "--port", str(port)]
    command += ["--size", str(size + ENVELOPE)] if contest.server == "echo" else []
    environment = {
        **os.environ,
        MARK: mark,
        "TAIL_FOLDER": str(work / contest.tail),
        "RAY_FOLDER": str(work / "ray-logs"),
        "WAIT_MS": str(options.wait_ms),
        "MAX_BATCH": str(contest.batch),
        "OMP_NUM_THREADS": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    }
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: options.server_cores]))
    with (work / f"{contest.server}.server.log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", cores, *command], env=environment, stdout=log, stderr=log
        )
        try:
            yield f"127.0.0.1:{port}", mark
        finally:
            end(process, mark)


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """SIGTERM to the first process, then SIGKILL to what it left behind."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> list[int]:
    """The processes that were started with that mark, and theirs."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            continue  # it ended, or is somebody else's
    return found


def cpu_seconds(mark: str) -> dict[int, float]:
    """User and system time so far of each process with that mark."""
    found = {}
    for pid in marked(mark):
        with contextlib.suppress(FileNotFoundError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[pid] = (int(fields[11]) + int(fields[12])) / TICKS
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def clients(
    contest: Contest,
    address: str,
    count: int,
    span: tuple[float, float],
    options: argparse.Namespace,
    stderr: int | None = None,
) -> list[subprocess.Popen[str]]:
    """Client processes on the cores that the server has not, at most one a core."""
    work = options.work
    command = [sys.executable, str(HERE / "load.py"), "--way", contest.way, "--address", address]
    command += ["--body", str(work / contest.payload), "--folder", str(work / contest.tail)]
    command += ["--plan", str(PLANS.index(contest.payload))]
    if contest.payload == PLANS[0]:
        command += ["--expected", str(work / f"{contest.tail}.answer")]
    command += ["--start", str(span[0]), "--end", str(span[1])]
    free = sorted(os.sched_getaffinity(0))[options.server_cores :]
    command = ["taskset", "-c", ",".join(map(str, free)), *command]
    processes = min(count, len(free))
    shares = [count // processes + (i < count % processes) for i in range(processes)]
    return [
        subprocess.Popen(
            [*command, "--clients", str(share)], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        for share in shares
    ]


def outcomes(processes: Sequence[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """What the clients saw; RuntimeError if one of them failed."""
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("a client failed; its words are above")
    return [json.loads(line) for line in printed]


def ready(contest: Contest, address: str, options: argparse.Namespace) -> None:
    """Until it answers; RuntimeError if it takes too long."""
    until = time.monotonic() + READY
    while time.monotonic() < until:
        host, port = address.split(":")
        try:
            socket.create_connection((host, int(port)), 1).close()
            now = time.monotonic()
            outcomes(clients(contest, address, 1, (now, now + 2), options, subprocess.DEVNULL))
            return
        except (OSError, RuntimeError):
            time.sleep(0.5)
    raise RuntimeError(f"{contest.server} did not answer\nhelp: see its .server.log in --work")


def measure(name: str, count: int, address: str, mark: str, options: argparse.Namespace) -> Row:
    """One window of load."""
    start = time.monotonic() + WARM + 2.0  # two seconds for the clients to start
    span = start, start + options.seconds
    running = clients(CONTESTS[name], address, count, span, options)
    time.sleep(max(0.0, start - time.monotonic()))
    before = cpu_seconds(mark)
    time.sleep(max(0.0, span[1] - time.monotonic()))
    spent = sum(now - before.get(pid, 0.0) for pid, now in cpu_seconds(mark).items())
    seen = outcomes(running)
    seconds = np.array(list(itertools.chain.from_iterable(one["seconds"] for one in seen)))
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000
    return Row(
        name=name,
        clients=count,
        answered=len(seconds),
        rate=round(len(seconds) / options.seconds, 1),
        p50_ms=round(float(p50), 3),
        p99_ms=round(float(p99), 3),
        server_us=round(1e6 * spent / len(seconds), 1),
        server_cores=round(spent / options.seconds, 2),
        client_cores=round(sum(one["cpu"] for one in seen) / options.seconds, 2),
    )


def medians(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line a contest and number of clients: the median of its runs."""
    lines = []
    for name, count in sorted({(row.name, row.clients) for row in rows}, key=lambda key: key[1]):
        alike = [row for row in rows if (row.name, row.clients) == (name, count)]
        line: dict[str, Any] = {"name": name, "clients": count, "runs": len(alike)}
        for key in ("rate", "p50_ms", "p99_ms", "server_us", "server_cores", "client_cores"):
            line[key] = statistics.median(getattr(row, key) for row in alike)
        lines.append(line)
    return sorted(lines, key=lambda line: (line["clients"], list(CONTESTS).index(line["name"])))


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The medians for a reader."""
    titles = ("clients", "server", "answers/s", "p50 ms", "p99 ms", "CPU µs", "cores", "clients'")
    text = ["{:>7}  {:15} {:>9} {:>8} {:>8} {:>8} {:>6} {:>8}".format(*titles)]
    for line in lines:
        text.append(
            f"{line['clients']:>7}  {line['name']:15} {line['rate']:>9.0f} {line['p50_ms']:>8.2f} "
            f"{line['p99_ms']:>8.2f} {line['server_us']:>8.0f} {line['server_cores']:>6.2f} "
            f"{line['client_cores']:>8.2f}"
        )
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="environments, tails and logs")
    parser.add_argument("--install", action="store_true", help="the peers, each by itself")
    parser.add_argument("--only", nargs="+", choices=CONTESTS, default=list(CONTESTS))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each window")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--wait-ms", type=float, default=2.0, help="the peers' wait for a batch")
    parser.add_argument("--server-cores", type=int, default=2, help="the clients get the others")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.install:
        install(options.work)
    prepare(options.work)
    rows: list[Row] = []
    for turn in range(options.runs):
        first = turn * len(options.only) // options.runs
        for name in options.only[first:] + options.only[:first]:
            with serving(CONTESTS[name], options) as (address, mark):
                ready(CONTESTS[name], address, options)
                for count in options.clients:
                    rows.append(measure(name, count, address, mark, options))
                    print(rows[-1], flush=True)
    print(table(medians(rows)))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
