"""Milliseconds of one sum over n devices: every way of splitrt's star, beside gloo.

python benchmarks/star/reduce.py [--json FILE]

(extras: `pip install -e '.[train]'`, for gloo.) Each device is a process of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from splitrt.relay import Relay
from splitrt.star import Hub, Spoke, Terms, measure

HIDDEN, MOST = 4096, 16


def device(options: argparse.Namespace) -> None:
    """One device of a star; the hub prints its medians."""
    agreed = Terms(devices=options.devices, hidden=HIDDEN, rows=MOST, timeout=60)
    if options.device == 0:
        with Hub("127.0.0.1:0", agreed) as hub:
            print(hub.address, flush=True)
            hub.gather()
            found = {rows: measure(hub, rows=rows, rounds=options.rounds) for rows in options.rows}
            told = [
                {"way": str(way), "rows": rows, "ms": 1000 * seconds}
                for rows, times in found.items()
                for way, seconds in times.items()
            ]
            print(json.dumps(told), flush=True)
        return
    spoke = Spoke(
        options.hub, agreed, device=options.device, listen=options.listen, told=options.told
    )
    with spoke:
        for rows in options.rows:
            measure(spoke, rows=rows, rounds=options.rounds)


def gloo(options: argparse.Namespace) -> None:
    """One process of torch.distributed; rank 0 prints its medians."""
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    host = f"tcp://127.0.0.1:{options.port}"
    distributed.init_process_group(
        "gloo", init_method=host, rank=options.device, world_size=options.devices
    )
    told = []
    for rows in options.rows:
        part, seconds = torch.ones(rows, HIDDEN), []
        for turn in range(options.rounds + 1):
            start = time.perf_counter()
            distributed.all_reduce(part)
            if turn:
                seconds.append(time.perf_counter() - start)
            part.fill_(1)
        told.append({"way": "gloo", "rows": rows, "ms": 1000 * statistics.median(seconds)})
    if options.device == 0:
        print(json.dumps(told), flush=True)
    distributed.destroy_process_group()


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def started(options: argparse.Namespace, *more: object) -> subprocess.Popen[str]:
    rows = ",".join(map(str, options.rows))
    command = [sys.executable, __file__, "--rounds", options.rounds, "--rows", rows, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(one) for one in command], stdout=subprocess.PIPE, text=True, env=environment
    )


def star(options: argparse.Namespace, devices: int, delay: float) -> list[dict]:
    """All ways among so many processes; delay: seconds one way, through relays."""
    with ExitStack() as stack:

        def reached(address: str) -> str:
            relay = Relay(address, rtt=2 * delay, queue=64 << 20)
            return stack.enter_context(relay).address if delay else address

        hub = started(options, "--role", "device", "--device", 0, "--devices", devices)
        running = [stack.enter_context(hub)]
        address = reached(hub.stdout.readline().strip())
        for number in range(1, devices):
            listen = f"127.0.0.1:{free()}"
            one = ["--role", "device", "--device", number, "--devices", devices, "--hub", address]
            one += ["--listen", listen, "--told", reached(listen)]
            running.append(stack.enter_context(started(options, *one)))
        return ended(running)


def beside(options: argparse.Namespace, devices: int) -> list[dict]:
    """The same sums by gloo."""
    port = free()
    common = ["--role", "gloo", "--devices", devices, "--port", port]
    with ExitStack() as stack:
        running = [
            stack.enter_context(started(options, *common, "--device", number))
            for number in range(devices)
        ]
        return ended(running)


def ended(running: list[subprocess.Popen[str]]) -> list[dict]:
    said = running[0].communicate(timeout=600)[0]
    for process in running:
        if process.wait(60):
            raise SystemExit(f"a device ended with {process.returncode}")
    return json.loads(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the lines there, too")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--rows", default="1,16", type=lambda text: [*map(int, text.split(","))])
    parser.add_argument("--delays", default="0,1,5", help="milliseconds one way")
    parser.add_argument("--counts", default="2,4,8", help="devices")
    for name in ("role", "hub", "listen", "told"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("device", "devices", "port"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role is not None:
        (device if options.role == "device" else gloo)(options)
        return
    found = []
    for delay in map(float, options.delays.split(",")):
        for devices in map(int, options.counts.split(",")):
            lines = star(options, devices, delay / 1000)
            lines += [] if delay else beside(options, devices)
            for line in lines:
                line |= {"delay_ms": delay, "devices": devices, "ms": round(line["ms"], 3)}
                found.append(line)
                print(json.dumps(line), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
