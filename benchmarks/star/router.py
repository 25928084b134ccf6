"""Devices on a network of their own: namespaces, and a router that delays every packet.

python benchmarks/star/router.py --devices 4 --delay 0.001 --mbps 300    # is what `Net` starts

Real TCP of the kernel, whatever the program: nothing has to know of it. Needs root, `ip` and tun.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field

TUNSETIFF, TUN, PLAIN = 0x400454CA, 0x0001, 0x1000  # <linux/if_tun.h>
MTU = 9000  # bytes: jumbo frames, so that a row of 2,048 numbers is one packet
PACKET = 1 << 16
INTERFACE = "eth0"  # each device's, in its own namespace


class Net:
    """So many devices at 10.78.0.1 on, each with one link of `mbps` to a switch.

    delay: seconds from any device to any other, beside what the bytes take.

        with Net(3, delay=0.001) as net:
            subprocess.run([*net.within(1), "ping", "-c1", net.address(0)])
    """

    def __init__(self, devices: int, *, delay: float, mbps: float = 300.0) -> None:
        self.names = [f"star-{os.getpid()}-{number}" for number in range(devices)]
        self._said = ["--delay", str(delay), "--mbps", str(mbps), "--names", *self.names]
        self._router: subprocess.Popen[str] | None = None

    def __enter__(self) -> Net:
        if os.geteuid() or shutil.which("ip") is None or not os.path.exists("/dev/net/tun"):
            raise SystemExit("links with a delay need root, `ip`, /dev/net/tun\nhelp: --delays 0")
        try:
            for name in self.names:
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            command = [sys.executable, __file__, *self._said]
            self._router = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert self._router.stdout is not None
            if self._router.stdout.readline() != "ready\n":
                raise SystemExit("the router does not start; its words are above")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._router is not None:
            self._router.terminate()
            self._router.communicate()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def within(self, device: int) -> list[str]:
        """What to put before a command so that it runs on that device."""
        return ["ip", "netns", "exec", self.names[device]]

    def address(self, device: int) -> str:
        """A device's IP address."""
        return place(device)


@dataclass(slots=True)
class Link:
    """A device's: when its last byte will have gone up, and come down."""

    file: int
    up: float = 0.0
    down: float = 0.0
    flying: deque[tuple[float, bytes]] = field(default_factory=deque)  # to it: landing, packet


def place(device: int) -> str:
    return f"10.78.0.{device + 1}"


def opened(name: str, number: int) -> Link:
    """A tun device, moved into that namespace."""
    file, device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK), f"star{os.getpid()}n{number}"
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", device.encode()[:15], TUN | PLAIN))
    _ip("link", "set", device[:15], "netns", name)
    _ip("-n", name, "link", "set", device[:15], "name", INTERFACE)
    _ip("-n", name, "address", "add", f"{place(number)}/24", "dev", INTERFACE)
    _ip("-n", name, "link", "set", INTERFACE, "mtu", str(MTU), "up")
    return Link(file)


def route(links: list[Link], delay: float, mbps: float) -> None:
    """Carry packets for ever. A packet crosses both links at once, as through a good switch."""
    files, rate = {link.file: link for link in links}, mbps * 125_000
    places = {bytes(map(int, place(i).split("."))): link for i, link in enumerate(links)}
    clock = time.monotonic
    while True:
        due = min((link.flying[0][0] for link in links if link.flying), default=None)
        wait = None if due is None else max(0.0, due - clock())
        for file in select.select(files, (), (), wait)[0]:
            link = files[file]
            for packet in _read(file):
                to = places.get(packet[16:20])
                if packet[0] >> 4 != 4 or to is None:
                    continue  # IPv6's neighbours, multicast
                gone = max(clock(), link.up, to.down) + len(packet) / rate
                link.up = to.down = gone
                to.flying.append((gone + delay, packet))
        now = clock()
        for link in links:
            while link.flying and link.flying[0][0] <= now:
                os.write(link.file, link.flying.popleft()[1])


def _read(file: int) -> list[bytes]:
    """All packets that are there."""
    found = []
    while True:
        try:
            found.append(os.read(file, PACKET))
        except BlockingIOError:
            return found


THERE = """
import socket, sys
with socket.create_server((sys.argv[1], 50709)) as door:
    print("up", flush=True)
    line, _ = door.accept()
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while said := line.recv(8192, socket.MSG_WAITALL):
        line.sendall(said)
"""
BACK = """
import socket, statistics, sys, time
line, found = socket.create_connection((sys.argv[1], 50709)), []
line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for _ in range(100):
    start = time.perf_counter()
    line.sendall(bytes(8192))
    line.recv(8192, socket.MSG_WAITALL)
    found.append(1000 * (time.perf_counter() - start))
print(statistics.median(found))
"""


def tried(delay: float) -> float:
    """Median ms of 8 KiB there and back over such links: what the router itself takes shows."""
    with Net(2, delay=delay) as net:
        sides = [
            [*net.within(device), sys.executable, "-c", side, net.address(0)]
            for device, side in enumerate((THERE, BACK))
        ]
        with subprocess.Popen(sides[0], stdout=subprocess.PIPE, text=True) as there:
            assert there.stdout is not None
            there.stdout.readline()
            return float(subprocess.run(sides[1], capture_output=True, text=True).stdout)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ip {' '.join(words)}: {done.stderr.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", required=True, help="namespaces, one a device")
    parser.add_argument("--delay", type=float, required=True, help="seconds one way")
    parser.add_argument("--mbps", type=float, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    links = [opened(name, number) for number, name in enumerate(options.names)]
    print("ready", flush=True)
    route(links, options.delay, options.mbps)


if __name__ == "__main__":
    main()
