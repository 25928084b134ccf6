"""When is a server full, and what does it do past that? Fleets that ask for ever more."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from benchmarks.fleet.crowd import Crowd, Seen, took
from benchmarks.fleet.load import Load
from benchmarks.fleet.serve import Figures, Served
from benchmarks.fleet.tails import Ceiling

WAYS = {
    "steered": {"steered": True},
    "eager": {},
    "deaf": {"deaf": True},
}
WARM = 2.0  # seconds until a fleet's controllers know the server
FULL = 0.8  # of the capacity: from there on it is measured again after each fleet


@dataclass(frozen=True, slots=True)
class Series:
    """One model on some servers. cores: of each server.  fleets: devices and their way."""

    name: str
    folder: str
    plan: str
    cores: tuple[tuple[int, ...], ...]
    fleets: tuple[tuple[int, str], ...]
    options: tuple[str, ...] = ()
    ca: str | None = None
    tokens: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One fleet. Rates are a second; refused, kept, lost and the like are, too.

    ceiling: of the tails alone, on as many cores as there are servers.  capacity: closed loop, mean
    of before and after.  late: share of the answers that were computed in vain.  cpu_us: of the
    servers' processes, an answer; tail_us, front_us: of the thread that runs the tail, and of all
    others, an answer.  message_us: front_us for each frame that came, refused ones too.
    resident: MiB of all servers.  connections: open descriptors beyond those of an idle server.
    clients: cores that the busiest process of devices used.  load: of the machine, one minute.
    """

    series: str
    servers: int
    devices: int
    way: str
    asked: float
    ceiling: float
    capacity: float
    goodput: float
    of_capacity: float
    of_ceiling: float
    late: float
    p50_ms: float
    p99_ms: float
    kept: float
    sent: float
    busy: float
    expired: float
    broken: float
    lost: float
    whole: bool
    cpu_us: float
    tail_us: float
    front_us: float
    message_us: float
    cores: float
    resident: float
    connections: int
    clients: float
    load: float


def rows(series: Series, ceiling: Ceiling, crowd: Crowd, seconds: float) -> list[Row]:
    """Every fleet of a series on fresh servers."""
    found = []
    with ExitStack() as stack:
        servers = [
            stack.enter_context(Served(series.folder, cores=cores, options=series.options))
            for cores in series.cores
        ]
        addresses = tuple(server.address for server in servers)
        base = sum(server.figures().descriptors for server in servers)
        load = Load(
            series.folder, series.plan, addresses, 8, 0.0, seconds, warm=WARM, ca=series.ca,
            tokens=series.tokens,
        )  # fmt: skip
        before = crowd.capacity(load, seconds=3.0, depths=(48,))
        for devices, way in series.fleets:
            fleet = replace(load, devices=devices, **WAYS[way])
            seen, spent = measured(crowd, fleet, servers)
            after = before
            if devices * load.rate > FULL * before:
                after = crowd.capacity(load, seconds=3.0, depths=(48,))
            around = (before + after) / 2
            row = judged(series.name, way, fleet, seen, spent)
            found.append(
                replace(
                    row, capacity=around, ceiling=ceiling.tail * len(servers),
                    of_capacity=row.goodput / min(row.asked, around),
                    of_ceiling=row.goodput / (ceiling.tail * len(servers)),
                    connections=row.connections - base,
                )
            )  # fmt: skip
            before = after
            print(readable(found[-1]), flush=True)
    return found


def measured(
    crowd: Crowd, load: Load, servers: Sequence[Served]
) -> tuple[Seen, tuple[Figures, ...]]:
    """A fleet, and what all servers together had used at both ends of what counts."""
    figures: list[Figures] = []

    def watch(begun: Load) -> None:
        for moment in (begun.begin + begun.warm, begun.end):
            time.sleep(max(0.0, moment - time.monotonic()))
            figures.append(together([server.figures() for server in servers]))

    return crowd.drive(load, meanwhile=watch), tuple(figures)


def together(several: Sequence[Figures]) -> Figures:
    """The sum of several servers."""
    return Figures(
        cpu=sum(one.cpu for one in several),
        threads={number: cpu for one in several for number, cpu in one.threads.items()},
        resident=sum(one.resident for one in several),
        descriptors=sum(one.descriptors for one in several),
    )


def busiest(before: Figures, after: Figures, servers: int) -> float:
    """Seconds of the servers' tails: under load, of each server the thread that has most."""
    spent = [cpu - before.threads.get(number, 0.0) for number, cpu in after.threads.items()]
    return sum(sorted(spent)[-servers:])


def judged(name: str, way: str, load: Load, seen: Seen, spent: Sequence[Figures]) -> Row:
    """A fleet's row, without what else was measured beside it."""
    times = took(seen) or [float("nan")]
    cpu, tail = spent[1].cpu - spent[0].cpu, busiest(*spent, len(load.addresses))
    answered = max(1, seen.total("in_time") + seen.total("late"))
    a_second = {
        key: seen.total(key) / load.seconds
        for key in ("kept", "sent", "busy", "expired", "broken", "lost")
    }
    return Row(
        series=name,
        servers=len(load.addresses),
        devices=load.devices,
        way=way,
        asked=seen.total("frames") / load.seconds,
        ceiling=0.0,
        capacity=0.0,
        goodput=seen.total("in_time") / load.seconds,
        of_capacity=0.0,
        of_ceiling=0.0,
        late=seen.total("late") / answered,
        p50_ms=times[len(times) // 2],
        p99_ms=times[int(0.99 * (len(times) - 1))],
        **a_second,
        whole=all(count.whole for count in seen.counts),
        cpu_us=1e6 * cpu / answered,
        tail_us=1e6 * tail / answered,
        front_us=1e6 * (cpu - tail) / answered,
        message_us=1e6 * (cpu - tail) / max(1, seen.total("sent")),
        cores=cpu / load.seconds,
        resident=spent[1].resident / 2**20,
        connections=spent[0].descriptors,
        clients=max(seen.cores),
        load=os.getloadavg()[0],
    )


def readable(one: Row) -> str:
    return (
        f"{one.series:14} {one.servers} × {one.devices:3} {one.way:7} asked {one.asked:5.0f} of "
        f"{one.capacity:5.0f} (tail alone {one.ceiling:5.0f}): in time {one.goodput:6.1f} = "
        f"{one.of_capacity:.2f} · {one.of_ceiling:.2f}, late {100 * one.late:4.1f} %, "
        f"p50 {one.p50_ms:4.0f} p99 {one.p99_ms:4.0f} ms, kept {one.kept:5.0f} "
        f"busy {one.busy:4.0f} expired {one.expired:5.0f} lost {one.lost:3.0f}"
        f"{'' if one.whole else ' NOT ALL ACCOUNTED FOR'}; CPU {one.tail_us:4.0f} + "
        f"{one.front_us:4.0f} µs ({one.message_us:3.0f} a message), "
        f"{one.cores:.2f} cores, {one.resident:4.0f} MiB, {one.connections} connections, "
        f"clients {one.clients:.2f}, load {one.load:.1f}"
    )
