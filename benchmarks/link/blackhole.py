"""How long a device is without its server after a black hole behind the first hop.

python benchmarks/link/blackhole.py --seconds 5 20 60 --json FILE

Beside it, through the same hole, a plain gRPC channel with default options.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import grpc
import namespaces

from splitrt import Edge, Frame, Pictures
from splitrt.relay import Relay

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "models" / "cifar10-resnet"
RATE, DEADLINE = 10, 0.25  # frames a second; seconds a frame may take
RTT = 0.04  # seconds, of the relay
LEAD, TRAIL = 20, 30  # answers before the hole, frames after the way is open again
START = 120.0  # seconds for everything to start
ECHO = "/echo/Echo"
CODES = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Row:
    """One frame of a device: its number, time.monotonic() of capture and end, who answered."""

    index: int
    captured: float
    ended: float
    where: str


@dataclass(frozen=True, slots=True)
class Found:
    """One device in one hole.

    recovered_s: from the link's return to the first answer of the server; None: not in time.
    late: frames that ended after their deadline.  accounted: each ended once, none is missing.
    """

    path: str
    device: str
    hole_s: float
    recovered_s: float | None
    waited_s: float
    frames: int
    cloud: int
    late: int
    latest_ms: float
    accounted: bool


class Device:
    """A process that sends frames and says how each ended, until it is told to stop."""

    def __init__(self, kind: str, address: str, prefix: list[str], fps: float = RATE) -> None:
        self.kind, self.rows = kind, []
        words = [sys.executable, __file__, "--device", kind, "--at", address, "--fps", str(fps)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*prefix, *words], **pipes)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.rows.append(Row(**json.loads(line)))

    def answered(self, since: float) -> list[Row]:
        """Frames that the server has answered since then."""
        return [row for row in tuple(self.rows) if row.where == "cloud" and row.ended > since]

    def stop(self) -> None:
        """Let it end its last frames."""
        self.process.stdin.close()
        self.process.wait(START)
        self._reader.join()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def main() -> None:
    """Every hole on every path that this machine has; a line each, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0, 20.0, 60.0])
    parser.add_argument("--path", choices=["relay", "namespaces"], action="append")
    parser.add_argument("--patience", type=float, default=90.0, help="seconds after the return")
    parser.add_argument("--json", type=Path, help="write the findings there, too")
    parser.add_argument("--device", choices=["splitrt", "plain", "echo"], help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    parser.add_argument("--fps", type=float, default=RATE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up
    if options.device:
        if options.device == "splitrt":
            frames(options.at, options.fps)
        else:
            {"plain": calls, "echo": echo}[options.device](options.at)
        return
    found = []
    for path in options.path or ["relay", "namespaces"]:
        if path == "namespaces" and not namespaces.possible():
            print("namespaces: not here (they need root and `ip`)", flush=True)
            continue
        for hole in options.seconds:
            found += {"relay": by_relay, "namespaces": by_namespaces}[path](hole, options.patience)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")


def by_relay(hole: float, patience: float) -> list[Found]:
    """The relay forgets what was open in the hole: an old connection never works again."""
    with ExitStack() as stack:
        relays = [
            stack.enter_context(Relay(stack.enter_context(serving), rtt=RTT))
            for serving in (splitrt_server([]), echo_server([]))
        ]

        def set_hole(on: bool) -> None:
            for relay in relays:
                relay.hole = on

        addresses = [relay.address for relay in relays]
        return measured("relay", addresses, [], set_hole, (hole, patience))


def by_namespaces(hole: float, patience: float) -> list[Found]:
    """A router drops everything: TCP sends again, ever more slowly, as on a real path."""
    with namespaces.Path() as path, ExitStack() as stack:
        inside = path.within(path.server)
        addresses = [
            stack.enter_context(serving)
            for serving in (
                splitrt_server(inside, namespaces.SERVER),
                echo_server(inside, namespaces.SERVER),
            )
        ]
        device = path.within(path.device)
        return measured("namespaces", addresses, device, path.hole, (hole, patience))


def measured(
    path: str,
    addresses: list[str],
    prefix: list[str],
    set_hole: Callable[[bool], None],
    times: tuple[float, float],
) -> list[Found]:
    """Both devices at once through one hole. times: seconds of the hole, and of patience."""
    hole, patience = times
    devices = [
        Device(kind, address, prefix)
        for kind, address in zip(("splitrt", "plain"), addresses, strict=True)
    ]
    try:
        if not wait(lambda: all(len(one.answered(0.0)) >= LEAD for one in devices), START):
            sys.exit(f"error: no answers by way of {path} before any hole")
        shut = time.monotonic()
        set_hole(True)
        time.sleep(hole)
        set_hole(False)
        opened = time.monotonic()
        wait(lambda: all(one.answered(opened) for one in devices), patience)
        waited = time.monotonic() - opened
        time.sleep(TRAIL / RATE)
        for one in devices:
            one.stop()
    finally:
        for one in devices:
            one.kill()
    found = [judged(path, one, (shut, opened), waited) for one in devices]
    for one in found:
        print(readable(one), flush=True)
    return found


def judged(path: str, device: Device, hole: tuple[float, float], waited: float) -> Found:
    shut, opened = hole
    answers = device.answered(opened)
    after = [row for row in device.rows if row.ended > shut]
    took = [row.ended - row.captured for row in after]
    return Found(
        path=path,
        device=device.kind,
        hole_s=round(opened - shut, 2),
        recovered_s=round(answers[0].ended - opened, 3) if answers else None,
        waited_s=round(waited, 1),
        frames=len(device.rows),
        cloud=len(device.answered(0.0)),
        late=sum(seconds > DEADLINE for seconds in took),
        latest_ms=round(1000 * max(took), 1),
        accounted=[row.index for row in device.rows] == list(range(len(device.rows))),
    )


def readable(one: Found) -> str:
    back = f"after {one.recovered_s:6.2f} s" if one.recovered_s is not None else "not"
    limit = "" if one.recovered_s is not None else f" within {one.waited_s:.0f} s"
    return (
        f"{one.path:10} hole {one.hole_s:5.1f} s  {one.device:8} back {back}{limit}, "
        f"{one.late} late (latest {one.latest_ms:,.0f} ms), {one.frames} frames, "
        f"{'each ended once' if one.accounted else 'NOT ALL ACCOUNTED FOR'}"
    )


def frames(address: str, fps: float) -> None:
    """The device of splitrt: photographs that its gate sends on, as a stream."""
    over = stopped()
    with Edge(MODEL, cloud=address, deadline=DEADLINE, threads=1) as edge:
        shots = list(Pictures(ROOT / "splitrt" / "pictures"))
        wait(lambda: any(edge(one.image).where == "cloud" for one in shots), START)
        sent = [one for one in shots if edge(one.image).sent_bytes] or shots

        def source() -> Iterator[Frame]:
            for index, now in paced(over, fps):
                yield replace(sent[index % len(sent)], index=index, captured=now)

        for frame, result in edge.stream(source()):
            ended = frame.captured + result.timings.total / 1000
            say(Row(frame.index, frame.captured, ended, result.where or "none"))


def calls(address: str) -> None:
    """The device of a program that knows nothing of links: calls with a deadline, one channel."""
    with grpc.insecure_channel(address) as channel:
        echo = channel.unary_unary(ECHO)
        with ThreadPoolExecutor(8) as pool:

            def call(index: int, captured: float) -> Row:
                try:
                    echo(b"x" * 300, timeout=DEADLINE)
                except grpc.RpcError as error:
                    if error.code() not in CODES:
                        raise
                    return Row(index, captured, time.monotonic(), "none")
                return Row(index, captured, time.monotonic(), "cloud")

            waiting = []
            for index, now in paced(stopped()):
                waiting.append(pool.submit(call, index, now))
                while waiting and waiting[0].done():
                    say(waiting.pop(0).result())
            for one in waiting:
                say(one.result())


def echo(address: str) -> None:
    """The server of the plain channel."""
    server = grpc.server(ThreadPoolExecutor(8))
    handler = grpc.unary_unary_rpc_method_handler(lambda request, _: request[:8])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("echo", {"Echo": handler}),)
    )
    port = server.add_insecure_port(f"{address}:0")
    server.start()
    print(f"echo at {address}:{port}", flush=True)
    stopped().wait()
    server.stop(0).wait()


def splitrt_server(prefix: list[str], host: str = "127.0.0.1"):
    words = ["-m", "splitrt.cli", "serve", str(MODEL), "--threads", "1"]
    return serving([*prefix, sys.executable, *words, "--host", host, "--port", "0"])


def echo_server(prefix: list[str], host: str = "127.0.0.1"):
    return serving([*prefix, sys.executable, __file__, "--device", "echo", "--at", host])


@contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """A server in a process of its own; the address that it prints."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    alarm = threading.Timer(START, process.kill)
    alarm.start()
    try:
        found = re.search(r" at (\S+)$", process.stdout.readline().strip())
        alarm.cancel()
        if found is None:
            sys.exit(f"error: {' '.join(command)} did not start")
        yield found[1]
    finally:
        alarm.cancel()
        process.terminate()
        process.wait()


def paced(over: threading.Event, fps: float = RATE) -> Iterator[tuple[int, float]]:
    """(number, time.monotonic()) so many times a second, until it is over."""
    begun = time.monotonic()
    for index in itertools.count():
        if over.wait(max(0.0, begun + index / fps - time.monotonic())):
            return
        yield index, time.monotonic()


def stopped() -> threading.Event:
    """Set when whoever started this process closes its stdin."""
    over = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=watch, daemon=True).start()
    return over


def say(row: Row) -> None:
    print(json.dumps(asdict(row)), flush=True)


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it became true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


if __name__ == "__main__":
    main()
