"""Which device holds which shards: as fast as the slowest allows, within the memory of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from splitrt.core.shards import MOST, Shards
from splitrt.errors import ModelError, SplitrtError

LEAST, LARGEST = 1e-9, 1e18  # of a cost and a speed, in any unit
UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))

Price = Callable[[int, int, int], float]  # of shards a to b on a device; math.inf: not possible


@dataclass(frozen=True, slots=True)
class Able:
    """A device: work a second, in the unit of the costs; bytes of shards it has room for.

    room: None where weights stream through a window, or memory is no question.
    """

    name: str
    speed: float
    room: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """What one device is to do. share: of all work.  seconds: of its shards, a token.

    shards: none for a spare.  size: their bytes.  room: bytes that it has for them; None: any.
    """

    name: str
    shards: range
    share: float
    seconds: float
    size: int
    room: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Who holds what, the hub first. beside: seconds a token of the hub alone, after all layers.

        print(plan(costs, sizes, [Able("hub", 2e9), Able("pi-1", 1e9, 400 << 20)]))

    Seconds are those of computing; sums over the network come on top.
    """

    devices: tuple[Held, ...]
    beside: float = 0.0

    @property
    def shards(self) -> tuple[range, ...]:
        """Of each device; empty for a spare."""
        return tuple(one.shards for one in self.devices)

    @property
    def seconds(self) -> float:
        """Of a token: the slowest device's shards, then what the hub does alone."""
        return max(one.seconds for one in self.devices) + self.beside

    def __str__(self) -> str:
        table = [("device", "shards", "work", "compute", "memory")]
        for one in self.devices:
            room = "" if one.room is None else f" of {_bytes(one.room)}"
            row = (f"{one.share:.0%}", f"{1000 * one.seconds:.1f} ms", f"{_bytes(one.size)}{room}")
            table.append((one.name, _told(one.shards), *(row if one.shards else ("-", "-", "-"))))
        sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, sizes)).rstrip() for row in table]
        slowest = max(self.devices, key=lambda one: one.seconds)
        alone = f", {1000 * self.beside:.1f} ms of the hub alone" if self.beside else ""
        lines.append(f"{1000 * self.seconds:.1f} ms a token: {slowest.name} is the slowest{alone}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """For programs. Milliseconds a token, bytes; shards by their numbers."""
        return {
            "ms": round(1000 * self.seconds, 3),
            "hub_alone_ms": round(1000 * self.beside, 3),
            "devices": [
                {
                    "name": one.name,
                    "shards": list(one.shards),
                    "share": round(one.share, 4),
                    "compute_ms": round(1000 * one.seconds, 3),
                    "bytes": one.size,
                    "room_bytes": one.room,
                }
                for one in self.devices
            ],
        }


def plan(
    costs: Sequence[float], sizes: Sequence[int], devices: Sequence[Able], *, beside: float = 0.0
) -> Plan:
    """The division of `allot`, with what it means for each device; the hub first.

    beside: seconds a token that the hub computes alone after all layers, as the LM head.
    """
    ranges = allot(
        costs,
        [one.speed for one in devices],
        sizes=sizes,
        rooms=[one.room for one in devices],
        names=[one.name for one in devices],
    )
    found = []
    for one, shards in zip(devices, ranges, strict=True):
        work = math.fsum(costs[i] for i in shards)
        size = sum(sizes[i] for i in shards)
        share = work / math.fsum(costs)
        found.append(Held(one.name, shards, share, work / one.speed, size, one.room))
    return Plan(tuple(found), beside)


def allot(
    costs: Sequence[float],
    speeds: Sequence[float],
    *,
    extra: float = 0.0,
    sizes: Sequence[int],
    rooms: Sequence[int | None],
    names: Sequence[str] | None = None,
) -> list[range]:
    """The shards of each device, in the order of both: the hub has one at least, others may none.

    costs: work of each shard.  speeds: work a second, the hub's first.  extra: seconds that the
    hub is busy with something else while shards are computed; not the LM head, for which all
    devices wait however shards are divided.  sizes: bytes of each shard.  rooms: bytes that each
    device may take; None: any.  names: for what is said of a lack.

    The slowest device's seconds are the fewest that can be, and of all such divisions the sum of
    squared seconds is the least. ModelError if the shards do not fit; it says what is missing.
    """
    _sound(costs, speeds, extra, sizes, rooms)
    work, bytes_ = [0.0, *accumulate(costs)], [0, *accumulate(sizes)]
    shape = len(speeds), len(costs)

    def seconds(device: int, a: int, b: int) -> float:
        room = rooms[device]
        if room is not None and bytes_[b] - bytes_[a] > room:
            return math.inf
        return (work[b] - work[a]) / speeds[device] + (0.0 if device else extra)

    def square(device: int, a: int, b: int) -> float:
        share = seconds(device, a, b) / slowest
        return share * share if share <= 1 else math.inf

    slowest, _ = _best(*shape, seconds, max)
    if slowest == math.inf:
        raise ModelError(_lack(bytes_, rooms, names))
    return _best(*shape, square, float.__add__)[1]


def works(manifest: Shards) -> list[int]:
    """Multiply-adds of each shard for one token, K/V aside: the numbers in its matrices."""
    shape = manifest.shape
    head = shape.layers * shape.hidden * 2 * shape.head  # q and o, or k and v
    column = shape.layers * shape.hidden * 3  # gate, up, down
    return [(one.asking + one.heads) * head + one.inner * column for one in manifest.devices]


def _best(
    devices: int, shards: int, price: Price, joined: Callable[[float, float], float]
) -> tuple[float, list[range]]:
    """The cheapest division into ranges, by dynamic programming over the ends of ranges.

    joined: of the price of the devices before, and of one more; it never falls with either. Of
    equally cheap ones that in which later devices have less.
    """
    prices = [math.inf, *(float(price(0, 0, b)) for b in range(1, shards + 1))]
    starts: list[list[int]] = []
    for device in range(1, devices):
        begins = [0] * (shards + 1)
        before, prices = prices, [math.inf] * (shards + 1)
        for b in range(1, shards + 1):
            for a in range(b, 0, -1):
                if before[a] < prices[b]:
                    found = joined(before[a], float(price(device, a, b)))
                    if found < prices[b]:
                        prices[b], begins[b] = found, a
        starts.append(begins)
    ranges, end = [], shards
    for begins in reversed(starts):
        ranges.append(range(begins[end], end))
        end = begins[end]
    return prices[shards], [range(end), *reversed(ranges)]


def _lack(bytes_: Sequence[int], rooms: Sequence[int | None], names: Sequence[str] | None) -> str:
    """What is said where shards do not fit: the fewest bytes that would have to be added."""

    def missing(device: int, a: int, b: int) -> float:
        room = rooms[device]
        return 0.0 if room is None else float(max(0, bytes_[b] - bytes_[a] - room))

    least, ranges = _best(len(rooms), len(bytes_) - 1, missing, float.__add__)
    told = names or ["hub", *(f"device {i}" for i in range(1, len(rooms)))]
    lacking = [
        f"{told[i]} lacks {_bytes(lack)} of {_bytes(bytes_[one.stop] - bytes_[one.start])}"
        for i, one in enumerate(ranges)
        if (lack := int(missing(i, one.start, one.stop)))
    ]
    return (
        f"{len(bytes_) - 1} shards of {_bytes(bytes_[-1])} do not fit into {len(rooms)} devices: "
        f"{_bytes(int(least))} missing at least; then {', '.join(lacking)}\n"
        "help: give more memory, add a device, stream weights (--window), or split into more "
        "shards or with --weights int4"
    )


def _sound(
    costs: Sequence[float],
    speeds: Sequence[float],
    extra: float,
    sizes: Sequence[int],
    rooms: Sequence[int | None],
) -> None:
    for name, numbers, other in (("shards", costs, sizes), ("devices", speeds, rooms)):
        if not 1 <= len(numbers) <= MOST or len(numbers) != len(other):
            raise SplitrtError(
                f"{len(numbers)} {name}, memory of {len(other)}\nhelp: 1 to {MOST}, as many of both"
            )
    for name, found, sound in (
        ("cost", costs, [LEAST <= one <= LARGEST for one in costs]),
        ("speed", speeds, [LEAST <= one <= LARGEST for one in speeds]),
        ("extra", [extra], [0 <= extra <= LARGEST]),
        ("size", sizes, [0 <= one <= LARGEST for one in sizes]),
        ("room", rooms, [one is None or 0 <= one <= LARGEST for one in rooms]),
    ):
        if not all(sound):
            wrong = found[sound.index(False)]
            raise SplitrtError(f"{name} {wrong}\nhelp: a number above 0, below {LARGEST:g}")


def _told(shards: range) -> str:
    if not shards:
        return "spare"
    return f"{shards[0]}" if len(shards) == 1 else f"{shards[0]}-{shards[-1]}"


def _bytes(size: int) -> str:
    unit, name = next((one for one in UNITS if size >= one[0]), UNITS[-1])
    return f"{size / unit:.3g} {name}"
