"""What a thousand and a million devices need, reckoned from what one server core was seen to do.

python -m benchmarks.fleet.scale [--rate 10] [--devices 1000 1000000] [--spare 0.6]

Nothing is run: formulas, and the medians of `python -m benchmarks.fleet` in `Measured`. Prints the
tables of scale.md, writes nothing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

DAY = 24.0  # hours


@dataclass(frozen=True, slots=True)
class Measured:
    """One server on one core of the machine of METHODOLOGY.md, the shipped model, w32-r125.

    goodput: answers in time a second where more is asked than it can do.  base, each: MiB of an
    idle server, KiB more for each connected device.  idle_us: CPU a second of a device that only
    pings.  plain_ms, tls_ms: CPU of a connection, to its Welcome.  frame, answer: bytes of the
    messages.  around: bytes that gRPC, TCP and IP add to each (taken from `endtoend`, not seen
    here).  position: bytes of a chat's session.  asks: a second, of eight drafts each, of 60 chats.
    """

    goodput: float = 855.0
    base: float = 436.0
    each: float = 52.0
    idle_us: float = 175.0
    plain_ms: float = 2.55
    tls_ms: float = 4.06
    frame: int = 99
    answer: int = 67
    around: int = 94
    position: int = 4244
    asks: float = 920.0


SEEN = Measured()
AUTO = 0.25  # of the frames that the exit is not sure of: README's table has 22 to 25 %
ASKED = 0.17  # Asks a token, of the shipped story model (README)
ATTEMPT = 1.0  # seconds that a device waits for its Welcome, edge/link.py
PING, PINGS = 5, 0.5  # bytes of a ping or pong; pings a second of a device that sends nothing else
SPEAKS = 5.0  # tokens a second that somebody reads


@dataclass(frozen=True, slots=True)
class Need:
    """What a fleet needs. cores: of servers.  up, down: Mbit/s.  mib: of all servers.

    core_hours: a day, as provided; busy_hours: those that are computed in.
    """

    devices: int
    sent: float
    cores: int
    by: str
    connections: int
    up: float
    down: float
    mib: float
    core_hours: float
    busy_hours: float


def need(devices: int, rate: float, share: float, spare: float, seen: Measured = SEEN) -> Need:
    """Of devices that capture `rate` frames a second and send a share of them.

    spare: the part of a core's goodput and time that is planned with.
    """
    sent = devices * rate * share
    frames, idle = sent / seen.goodput, devices * seen.idle_us / 1e6
    busy = max(frames, idle) if not sent else frames
    several = {"frames": frames / spare, "connections": idle / spare}
    by = max(several, key=lambda one: several[one])
    cores = max(1, math.ceil(several[by]))
    pings = 0.0 if sent else devices * PINGS * (PING + seen.around)
    return Need(
        devices=devices,
        sent=sent,
        cores=cores,
        by=by,
        connections=math.ceil(devices / cores),
        up=8e-6 * (sent * (seen.frame + seen.around) + pings),
        down=8e-6 * (sent * (seen.answer + seen.around) + pings),
        mib=cores * seen.base + devices * seen.each / 1024,
        core_hours=DAY * cores,
        busy_hours=DAY * busy,
    )


def storm(devices: int, cores: int, each_ms: float) -> float:
    """Seconds of CPU that each core needs when all devices connect at once."""
    return devices / cores * each_ms / 1000


def most(each_ms: float) -> int:
    """Devices of a core that have their Welcome within one attempt, if all come at once."""
    return int(ATTEMPT * 1000 / each_ms)


def chats(count: int, positions: int, seen: Measured = SEEN) -> tuple[float, int]:
    """GiB of sessions that hold so many positions each, and cores for chats that are read."""
    steps = 256 * math.ceil(positions / 256)
    memory = count * steps * seen.position / 2**30
    return memory, math.ceil(count * SPEAKS * ASKED / seen.asks)


def fleets(devices: Sequence[int], rate: float, spare: float) -> list[str]:
    """A line for each fleet and way of sending."""
    lines = [
        "| devices, frames that are sent | frames/s | cores (what decides) | connections a core "
        "| up / down, Mbit/s | memory of all | core-hours a day, provided / busy |",
        "|---|---|---|---|---|---|---|",
    ]
    for count in devices:
        for share, name in ((1.0, "all"), (AUTO, "one in four (`auto`)"), (0.0, "none, connected")):
            one = need(count, rate, share, spare)
            lines.append(
                f"| {count:,}, {name} | {one.sent:,.0f} | {one.cores:,} ({one.by}) "
                f"| {one.connections:,} | {one.up:,.1f} / {one.down:,.1f} "
                f"| {one.mib / 1024:,.1f} GiB | {one.core_hours:,.0f} / {one.busy_hours:,.0f} |"
            )
    return lines


def storms(devices: Sequence[int], rate: float, spare: float, seen: Measured = SEEN) -> list[str]:
    """A line for each fleet: everybody connects at once."""
    lines = [
        "| devices on cores | plain: CPU s a core | TLS: CPU s a core | within one attempt (1 s) |",
        "|---|---|---|---|",
    ]
    for count in devices:
        for share in (1.0, AUTO):
            cores = need(count, rate, share, spare).cores
            plain, tls = (storm(count, cores, one) for one in (seen.plain_ms, seen.tls_ms))
            fits = "yes" if tls <= ATTEMPT else "plain only" if plain <= ATTEMPT else "no"
            lines.append(f"| {count:,} on {cores:,} | {plain:.2f} | {tls:.2f} | {fits} |")
    return lines


def talking(counts: Sequence[int]) -> list[str]:
    """A line for each number of chats."""
    lines = [
        "| chats at once | 256 positions each | 1,024 positions each | cores at 5 tokens/s each |",
        "|---|---|---|---|",
    ]
    for count in counts:
        (short, cores), (long, _) = chats(count, 256), chats(count, 1024)
        lines.append(f"| {count:,} | {short:,.1f} GiB | {long:,.1f} GiB | {cores:,} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=10.0, help="frames a second of a device")
    parser.add_argument("--devices", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--spare", type=float, default=0.6, help="of a core that is planned with")
    options = parser.parse_args()
    print("\n".join(fleets(options.devices, options.rate, options.spare)) + "\n")
    print("\n".join(storms(options.devices, options.rate, options.spare)) + "\n")
    print("\n".join(talking(options.devices)))


if __name__ == "__main__":
    main()
