"""How much of a core does a device use, at ten frames a second and with nothing to do?

python benchmarks/link/idle.py --seconds 20 --json FILE
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import onnxruntime
from blackhole import MODEL, RATE, ROOT, serving

from splitrt import Edge, Pictures

SETTLE = 3.0  # seconds that are not counted: connections, the last of the start
DEADLINE = 0.25


@dataclass(frozen=True, slots=True)
class Found:
    """CPU seconds of a process in a hundred seconds; head: median and p95 milliseconds."""

    what: str
    percent: float
    head_ms: float | None = None
    head_p95_ms: float | None = None


class Spinning(onnxruntime.SessionOptions):
    """Sessions whose threads wait for work as ONNX Runtime has them by default."""

    def add_session_config_entry(self, key: str, value: str) -> None:
        if not key.endswith("allow_spinning"):
            super().add_session_config_entry(key, value)


def main() -> None:
    """A line for each process; all of it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="write the findings there, too")
    parser.add_argument("--device", choices=["splitrt", "spinning", "idle"], help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "idle":
        waiting(options.at, options.seconds)
        return
    if options.device:
        frames(options.device, options.seconds)
        return
    rate = f"head and exit, {RATE} frames a second, "
    found = [
        ran(rate + "splitrt's sessions", "splitrt", options.seconds),
        ran(rate + "default spinning", "spinning", options.seconds),
    ]
    words = ["-m", "splitrt.cli", "serve", str(MODEL), "--threads", "1", "--port", "0"]
    with serving([sys.executable, *words]) as address:
        server = children()[0]
        before = spent(server)
        time.sleep(options.seconds)
        alone = 100 * (spent(server) - before) / options.seconds
        found.append(Found("server, nobody connected", round(alone, 2)))
        before, begun = spent(server), time.monotonic()
        found.append(ran("device, connected, no frames", "idle", options.seconds, address))
        both = 100 * (spent(server) - before) / (time.monotonic() - begun)
        found.append(Found("server, one device connected, no frames", round(both, 2)))
    for one in found:
        print(readable(one), flush=True)
    print(f"spinning: {found[1].percent / found[0].percent:.1f} times as much")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")


def ran(what: str, device: str, seconds: float, address: str = "") -> Found:
    """One device in a process of its own."""
    words = [sys.executable, __file__, "--device", device, "--seconds", str(seconds)]
    done = subprocess.run([*words, "--at", address], check=True, stdout=subprocess.PIPE, text=True)
    return Found(what, **json.loads(done.stdout))


def frames(kind: str, seconds: float) -> None:
    """The same photographs to the head and its exit, on a fixed beat."""
    if kind == "spinning":
        onnxruntime.SessionOptions = Spinning
    with Edge(MODEL, plan=smallest()) as edge:
        images = [one.image for one in Pictures(ROOT / "splitrt" / "pictures")]
        begun, before, heads = time.monotonic(), 0.0, []
        for index in range(int((SETTLE + seconds) * RATE)):
            time.sleep(max(0.0, begun + index / RATE - time.monotonic()))
            if index == int(SETTLE * RATE):
                begun_counting, before = time.monotonic(), time.process_time()
            heads.append(edge(images[index % len(images)]).timings.head)
        percent = 100 * (time.process_time() - before) / (time.monotonic() - begun_counting)
    heads = sorted(heads[int(SETTLE * RATE) :])
    say(percent, head_ms=heads[len(heads) // 2], head_p95_ms=heads[int(0.95 * len(heads))])


def waiting(address: str, seconds: float) -> None:
    """A device with its controller and its link, and no camera."""
    with Edge(MODEL, cloud=address, deadline=DEADLINE):
        time.sleep(SETTLE)
        before = time.process_time()
        time.sleep(seconds)
        say(100 * (time.process_time() - before) / seconds)


def smallest() -> str:
    """The exit of the widest head."""
    with Edge(MODEL) as edge:
        return edge.plan


def say(percent: float, **more: float) -> None:
    told = {"percent": percent, **more}
    print(json.dumps({name: round(value, 3) for name, value in told.items()}))


def children() -> list[int]:
    """Processes that this one has started and that are still there."""
    return [int(one) for one in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def spent(process: int) -> float:
    """CPU seconds of a process, all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def readable(one: Found) -> str:
    head = (
        "" if one.head_ms is None else f"  (head {one.head_ms:.2f}, p95 {one.head_p95_ms:.2f} ms)"
    )
    return f"{one.what:58} {one.percent:6.2f} % of a core{head}"


if __name__ == "__main__":
    main()
