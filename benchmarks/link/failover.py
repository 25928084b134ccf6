"""What does a device lose when its server is killed, or updated, and another one is there?

python benchmarks/link/failover.py --kills 6 --json FILE
python benchmarks/link/failover.py --rolling --kills 8 --fps 60 --json FILE
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from blackhole import DEADLINE, LEAD, MODEL, RATE, START, Device, Row, wait

PATIENCE = 30.0  # seconds in which the other server must have answered
TRAIL = 2.0  # seconds of frames after that


@dataclass(frozen=True, slots=True)
class Kill:
    """One server killed under one device.

    cloud, edge, none: frames captured from 0.25 s before the kill until the other server's first
    answer, by who answered.  without_s: from the kill to that answer.
    """

    device: int
    cloud: int
    edge: int
    none: int
    without_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """All kills under all devices. late: frames that ended after their deadline."""

    kills: list[Kill]
    frames: int
    cloud: int
    edge: int
    none: int
    late: int
    latest_ms: float
    accounted: bool


class Killable:
    """`splitrt serve` on a port that stays its own."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        words = ["-m", "splitrt.cli", "serve", str(MODEL), "--threads", "1", "--port"]
        command = [sys.executable, *words, str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        alarm = threading.Timer(START, self.process.kill)
        alarm.start()
        found = re.search(r":(\d+)$", self.process.stdout.readline().strip())
        alarm.cancel()
        if found is None:
            sys.exit("error: the server did not start")
        self.port = int(found[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """SIGTERM, as an update does it."""
        self.process.terminate()
        if self.process.wait(START):
            sys.exit(f"error: a server ended with status {self.process.returncode}")


def main() -> None:
    """The server that answers goes, later comes back, and it is the other one's turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--rolling", action="store_true", help="SIGTERM in the place of SIGKILL")
    parser.add_argument("--fps", type=float, default=RATE, help="of each device")
    parser.add_argument("--json", type=Path, help="write the findings there, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up
    servers, devices, kills = [Killable(), Killable()], [], []
    addresses = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    try:
        devices += [Device("splitrt", addresses, [], options.fps) for _ in range(options.devices)]
        for number in range(options.kills):
            if not answered(devices, time.monotonic(), LEAD, START):
                sys.exit("error: no answers before a kill")
            kills.append(time.monotonic())
            server = servers[number % 2]
            server.end() if options.rolling else server.kill()
            if not answered(devices, kills[-1] + DEADLINE, 1, PATIENCE):
                sys.exit(f"error: nobody answered for {PATIENCE:.0f} s after a kill")
            time.sleep(TRAIL)
            servers[number % 2].start()
        for one in devices:
            one.stop()
    finally:
        for one in [*devices, *servers]:
            one.kill()
    found = judged(devices, kills)
    print(readable(found, "restarts" if options.rolling else "kills"))
    if options.json:
        options.json.write_text(json.dumps(asdict(found), indent=2) + "\n")


def answered(devices: list[Device], since: float, count: int, seconds: float) -> bool:
    """Whether each has so many answers in time."""
    return wait(lambda: all(len(one.answered(since)) >= count for one in devices), seconds)


def judged(devices: list[Device], kills: list[float]) -> Found:
    rows = [row for one in devices for row in one.rows]
    took = [row.ended - row.captured for row in rows]
    return Found(
        kills=[
            judged_one(number, device.rows, killed)
            for number, device in enumerate(devices)
            for killed in kills
        ],
        frames=len(rows),
        **{where: sum(row.where == where for row in rows) for where in ("cloud", "edge", "none")},
        late=sum(seconds > DEADLINE for seconds in took),
        latest_ms=round(1000 * max(took), 1),
        accounted=all(
            [row.index for row in one.rows] == list(range(len(one.rows))) for one in devices
        ),
    )


def judged_one(number: int, rows: list[Row], killed: float) -> Kill:
    back = next(row for row in rows if row.where == "cloud" and row.captured > killed)
    hit = [row for row in rows if killed - DEADLINE < row.captured < back.captured]
    wheres = [row.where for row in hit if row.ended > killed]
    return Kill(
        device=number,
        **{where: wheres.count(where) for where in ("cloud", "edge", "none")},
        without_s=round(back.ended - killed, 3),
    )


def readable(one: Found, what: str) -> str:
    without = sorted(kill.without_s for kill in one.kills)
    here = sorted(kill.edge for kill in one.kills)
    lost = sum(kill.none for kill in one.kills)
    return (
        f"{len(without)} {what}: the other server's first answer after {without[0]:.2f} to "
        f"{without[-1]:.2f} s (median {without[len(without) // 2]:.2f}); {here[0]} to {here[-1]} "
        f"frames each time answered by the device, {lost} by nobody; of all {one.edge} by the "
        f"device, {one.none} by nobody; {one.late} of {one.frames} "
        f"frames late (latest {one.latest_ms:,.0f} ms), "
        f"{'each ended once' if one.accounted else 'NOT ALL ACCOUNTED FOR'}"
    )


if __name__ == "__main__":
    main()
