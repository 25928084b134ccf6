"""What does a device lose when one of Ray's replicas is killed? And what does Ray's ingress cost?

python benchmarks/link/replicas.py --kills 6 --json FILE

Two replicas by `splitrt serve --ray` on this machine; needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
from blackhole import DEADLINE, LEAD, MODEL, ROOT, START, Device, Row, splitrt_server, wait
from failover import Kill, answered, judged_one
from PIL import Image

from splitrt.cloud import oip
from splitrt.core.manifest import Manifest
from splitrt.wire import fleet_pb2 as wire
from splitrt.wire.fleet_pb2_grpc import FleetStub

PATIENCE = 60.0  # seconds in which the other replica must have answered, and the first be back
TRAIL = 2.0  # seconds of frames after that
WARM, ASKED = 20, 300  # calls of a stock client on each way, before and while it counts
IDLE = 3.0  # seconds, to see what Ray uses without any call
INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Way:
    """One stock client, one call after the other.

    name: plain, `splitrt serve` itself; direct, a replica's own port; ingress, Ray's.  cpu_ms: of
    the servers, and Ray, for a call, beyond what they use without any.
    """

    name: str
    calls: int
    p50_ms: float
    p99_ms: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Found:
    """All kills under all devices, and both ways of a stock client.

    back_s: from each kill until a new replica was told.  late: frames that ended after their
    deadline.  worst_ms: the longest that a frame took.
    """

    kills: list[Kill]
    back_s: list[float]
    frames: int
    per_second: float
    cloud: int
    edge: int
    none: int
    late: int
    worst_ms: float
    accounted: bool
    ways: list[Way]


class Replicas:
    """`splitrt serve --ray`, until it is stopped."""

    def __init__(self, count: int, stock: int) -> None:
        words = ["-m", "splitrt.cli", "serve", str(MODEL), "--threads", "1", "--port", "0"]
        words += ["--ray", "--replicas", str(count), "--stock-port", str(stock)]
        command = [sys.executable, *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        alarm = threading.Timer(2 * START, self.process.kill)
        alarm.start()
        found = None
        while found is None and (line := self.process.stdout.readline()):
            found = re.search(r"fleet://(\S+)$", line.strip())
        alarm.cancel()
        if found is None:
            sys.exit("error: the replicas did not start")
        self.door = found[1]

    def told(self) -> list[wire.Replica]:
        """Those that live, by the door; the one with most devices first."""
        with grpc.insecure_channel(self.door) as channel:
            known = FleetStub(channel).Replicas(wire.Inquiry(), timeout=PATIENCE)
        return sorted(known.replicas, key=lambda one: -one.devices)

    def stop(self) -> int:
        """Let it drain and end. Its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START)


def main() -> None:
    """Ask as a stock client, both ways; then kill replicas while devices send frames."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the findings there, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up
    stock, devices, gone = free(), [], []
    replicas = Replicas(2, stock)
    try:
        with splitrt_server([]) as plain:
            used = replicas.process.pid
            ways = [
                asked(name, address, pid)
                for name, address, pid in [
                    ("plain", plain, listener(plain)),
                    ("direct", replicas.told()[0].address, used),
                    ("ingress", f"127.0.0.1:{stock}", used),
                ]
                * 2
            ]
        address = f"fleet://{replicas.door}"
        devices += [Device("splitrt", address, []) for _ in range(options.devices)]
        gone = [killed(devices, replicas) for _ in range(options.kills)]
        for one in devices:
            one.stop()
    finally:
        for one in devices:
            one.kill()
        status = replicas.stop()
    found = judged(devices, gone, ways)
    print(readable(found))
    if options.json:
        options.json.write_text(json.dumps(asdict(found), indent=2) + "\n")
    sys.exit(status)


def killed(devices: list[Device], replicas: Replicas) -> tuple[float, float]:
    """Kill the replica that most devices use. When, and seconds until Ray had put one in its place.

    The next kill comes when devices use the new one, or after PATIENCE: so it is told of.
    """
    if not answered(devices, time.monotonic(), LEAD, START):
        sys.exit("error: no answers before a kill")
    used = replicas.told()[0].address
    at = time.monotonic()
    os.kill(listener(used), signal.SIGKILL)
    if not answered(devices, at + DEADLINE, 1, PATIENCE):
        sys.exit(f"error: nobody answered for {PATIENCE:.0f} s after a kill")
    if not wait(lambda: len({one.address for one in replicas.told()} - {used}) == 2, PATIENCE):
        sys.exit(f"error: no new replica for {PATIENCE:.0f} s")
    took = time.monotonic() - at
    time.sleep(TRAIL)
    return at, round(took, 2)


def asked(name: str, address: str, pid: int) -> Way:
    """A stock client that asks one call after the other. pid: who began the servers."""
    before, began = cpu(pid), time.monotonic()
    time.sleep(IDLE)
    idle = (cpu(pid) - before) / (time.monotonic() - began)
    request, took = infer_request(), []
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(INFER)
        for number in range(WARM + ASKED):
            if number == WARM:
                before, began = cpu(pid), time.monotonic()
            sent = time.monotonic()
            infer(request, timeout=PATIENCE)
            took.append(1000 * (time.monotonic() - sent))
        spent = cpu(pid) - before - idle * (time.monotonic() - began)
    p50, p99 = np.percentile(took[WARM:], (50, 99))
    cpu_ms = round(1000 * spent / ASKED, 2)
    return Way(name, ASKED, round(float(p50), 2), round(float(p99), 2), cpu_ms)


def infer_request() -> bytes:
    """One picture, as a stock client writes it."""
    made = oip.message("ModelInferRequest")(model_name=Manifest.load(MODEL).name)
    picture = Image.open(ROOT / "splitrt" / "pictures" / "cat.jpg").resize((32, 32))
    picture.save(file := io.BytesIO(), "JPEG", quality=90)
    raw = file.getvalue()
    made.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    made.raw_input_contents.append(len(raw).to_bytes(4, "little") + raw)
    return made.SerializeToString()


def cpu(pid: int) -> float:
    """Seconds that a process, and all that it began, have used."""
    known = {int(one.parent.name): stat(one) for one in Path("/proc").glob("[0-9]*/stat")}
    ours = {pid}
    while more := {one for one, (parent, _) in known.items() if parent in ours} - ours:
        ours |= more
    return sum(known[one][1] for one in ours if one in known)


def stat(path: Path) -> tuple[int, float]:
    """A process's parent, and the seconds of CPU that it has used."""
    try:
        fields = path.read_text().rsplit(")", 1)[1].split()
    except OSError:  # it has ended
        return 0, 0.0
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def listener(address: str) -> int:
    """The process that listens there."""
    port = int(address.rsplit(":", 1)[1])
    tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    listening = [row[9] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) in {f"socket:[{inode}]" for inode in listening}:
                return int(link.parts[2])
        except OSError:  # it has ended
            continue
    sys.exit(f"error: nobody listens at {address}")


def free() -> int:
    """A port that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def judged(devices: list[Device], gone: list[tuple[float, float]], ways: list[Way]) -> Found:
    rows: list[Row] = [row for one in devices for row in one.rows]
    took = [row.ended - row.captured for row in rows]
    span = max(row.ended for row in rows) - min(row.captured for row in rows)
    return Found(
        kills=[
            judged_one(number, device.rows, at)
            for number, device in enumerate(devices)
            for at, _ in gone
        ],
        back_s=[back for _, back in gone],
        frames=len(rows),
        per_second=round(len(rows) / span, 1),
        **{where: sum(row.where == where for row in rows) for where in ("cloud", "edge", "none")},
        late=sum(seconds > DEADLINE for seconds in took),
        worst_ms=round(1000 * max(took), 1),
        accounted=all(
            [row.index for row in one.rows] == list(range(len(one.rows))) for one in devices
        ),
        ways=ways,
    )


def readable(one: Found) -> str:
    ways = [
        f"{way.name:8} p50 {way.p50_ms:6.2f} ms  p99 {way.p99_ms:6.2f} ms  "
        f"CPU {way.cpu_ms:5.2f} ms a call"
        for way in one.ways
    ]
    without = sorted(kill.without_s for kill in one.kills)
    kills = (
        f"{len(one.back_s)} kills: the other replica's first answer after {without[0]:.2f} to "
        f"{without[-1]:.2f} s, a new replica after {min(one.back_s):.1f} to {max(one.back_s):.1f} s"
        f"; {one.frames} frames at {one.per_second}/s: {one.cloud} by replicas, {one.edge} by the "
        f"device, {one.none} by nobody, {one.late} late (worst {one.worst_ms:,.0f} ms), "
        f"{'each ended once' if one.accounted else 'NOT ALL ACCOUNTED FOR'}"
    )
    return "\n".join([*ways, kills])


if __name__ == "__main__":
    main()
