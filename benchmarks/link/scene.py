"""What a replay happens on: an uplink, its noise, a server, a table of plans."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from splitrt.core import forecast, links
from splitrt.core.manifest import Manifest
from splitrt.core.pareto import pareto
from splitrt.core.plan import Bin, Local, Option, alike
from splitrt.core.profile import Profile, head_ms

PERIOD = 0.1  # seconds between frames
SERVER = 0.012  # seconds, median
TIMER = 0.3  # seconds until TCP sends again what was lost, for the first time
MOST = 12  # plans
GOLDEN = (math.sqrt(5) - 1) / 2
HEADERS = 110  # bytes of message, gRPC, TCP and IP around a payload
ROOT = Path(__file__).parents[2]
MOVING = ("lte-poor", "lte-fair", "lte-good", "lte-best", "umts", "evdo")


@dataclass(frozen=True, slots=True)
class Table:
    """The plans of one model on one device, and what the device answers itself.

    own: the bins of the exit by which it does, where the options have bins.
    """

    name: str
    options: tuple[Option, ...]
    local: Local
    own: tuple[Bin, ...] = ()

    def here(self, sureness: float, option: Option | None = None) -> float:
        """Accuracy of the device's answer to a frame of which exits are surer than of that share.

        By the exit of the option's head, else by the device's own.
        """
        bins = option.bins if option else self.own
        return bins[within(bins, sureness)].exit if bins else self.local.accuracy

    def there(self, sureness: float, option: Option) -> float:
        """Accuracy of the server's answer to such a frame."""
        bins = option.bins
        return bins[within(bins, sureness)].sent if bins else option.accuracy


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One replay. deadline: seconds.  rtts, servers: seconds, one a frame.  lossy: see Uplink.

    sureness: the share of all frames of which the exits are less sure, one a frame.
    """

    name: str
    trace: links.Trace
    table: Table
    deadline: float
    rtts: np.ndarray
    servers: np.ndarray
    sureness: np.ndarray
    lossy: bool = True

    @property
    def frames(self) -> int:
        return len(self.rtts)


PI4 = Table(
    "pi4",
    (
        Option("raw-jpeg", 22_000, 0.004, 0.785, 0.05),
        Option("w12-q8", 7_400, 0.035, 0.775, 0.16),
        Option("w6-q8", 3_700, 0.033, 0.765, 0.15),
        Option("w3-q8", 1_850, 0.032, 0.750, 0.15),
        Option("w3-q4", 1_000, 0.032, 0.735, 0.15),
    ),
    Local(0.640),
)


def shipped(folder: Path = ROOT / "models" / "cifar10-resnet", device: str = "pi-4") -> Table:
    """The shipped model: its plans worth having, heads as the device's profile has them.

    The device answers by its best exit.
    """
    manifest, profile = Manifest.load(folder), Profile.load(device)
    options = []
    for plan in pareto(manifest.plans, keep=()):
        if plan.place == "cloud":
            head = head_ms(profile, manifest.width(plan).head_macs).high_ms / 1000
            made = forecast.option(manifest, plan, head, watts=0.0, uj_per_byte=0.0)
            options.append(replace(made, bytes=plan.bytes_p95 + HEADERS))
    best = alike(sorted(options, key=lambda option: option.accuracy)[-MOST:])
    record = max((width.exit for width in manifest.widths), key=lambda one: one.accuracy)
    own = tuple(map(Bin, record.shares, record.bins, record.bins))
    return Table(manifest.name, tuple(best), Local(record.accuracy), own)


def within(bins: tuple[Bin, ...], sureness: float) -> int:
    """The place of a frame's bin."""
    above = list(accumulate(one.share for one in bins))
    return min(bisect_right(above, sureness), len(bins) - 1)


def scene(trace: links.Trace, table: Table, *, deadline: float = 0.25, seed: int = 0) -> Scene:
    """A replay of the whole trace; round trips and server times vary as they do on LTE."""
    random = np.random.default_rng([seed, 7])
    frames = round(trace.seconds / PERIOD) - 20  # the last answers still have a link to cross
    late = (random.random(frames) < 0.02) * random.exponential(0.08, frames)
    rtts = trace.rtt * (1 + np.abs(random.normal(0, 0.12, frames))) + late
    servers = SERVER * np.exp(random.normal(0, 0.25, frames))
    sureness = np.arange(frames) * GOLDEN % 1  # spread evenly over any stretch: nobody is lucky
    return Scene(f"{trace.name}/{seed}", trace, table, deadline, rtts, servers, sureness)


def suite(
    table: Table, seeds: tuple[int, ...], *, names: tuple[str, ...] = MOVING, seconds: float = 300
) -> list[Scene]:
    """Every moving link with every seed, and one of them with an outage of 78 s."""
    made = [
        scene(links.generate(links.link(name), seconds, seed), table, seed=seed)
        for seed in seeds
        for name in names
    ]
    whole = links.generate(links.link("lte-good"), seconds, seeds[0] + 1000)
    third = seconds / 3
    return [*made, scene(links.broken(whole, third, third + 78), table, seed=seeds[0])]


class Uplink:
    """First in, first out: what is put in leaves at the trace's rate.

    lossy: what is under way in an outage is lost, and TCP sends it again when its timer says so,
    which doubles from `TIMER` (RFC 6298); else it waits in the network and leaves at once.
    """

    def __init__(self, trace: links.Trace, *, lossy: bool) -> None:
        self._carried = trace.carried().tolist()
        self._outages = _outages(trace) if lossy else []
        self.opened = self.free = 0.0  # seconds: the connection, the end of what was put in

    def put(self, ready: float, bytes: float) -> float:
        """When so many bytes that are ready then have crossed."""
        begin = max(ready, self.free)
        end = self._when(self._at(begin) + bytes)
        for lost, back in self._outages:
            if self.opened <= lost < end and begin < back:
                again = max(begin, _again(lost, back))
                rest = bytes - max(0.0, self._at(lost) - self._at(begin))
                begin, bytes, end = again, rest, self._when(self._at(again) + rest)
        self.free = end
        return end

    def reopen(self, now: float) -> None:
        """A new connection: what still waits in the old one is thrown away."""
        self.opened, self.free = now, min(self.free, now)

    def _at(self, seconds: float) -> float:
        """Bytes that could have crossed by then."""
        place = min(seconds / links.STEP, len(self._carried) - 1.0)
        whole = min(int(place), len(self._carried) - 2)
        before, after = self._carried[whole : whole + 2]
        return before + (place - whole) * (after - before)

    def _when(self, total: float) -> float:
        """Seconds after which so many bytes could have crossed; infinite if never."""
        place = bisect_left(self._carried, total)
        if place == len(self._carried):
            return math.inf
        if place == 0:
            return 0.0
        before, after = self._carried[place - 1 : place + 1]
        return links.STEP * (place - 1 + (total - before) / (after - before))


def _outages(trace: links.Trace) -> list[tuple[float, float]]:
    """(begin, end) of each that is long enough to count as one, in seconds."""
    down = np.concatenate([[False], trace.mbps <= links.LEAST, [False]])
    edges = np.flatnonzero(down[1:] != down[:-1]).reshape(-1, 2) * links.STEP
    return [(begin, end) for begin, end in edges.tolist() if end - begin >= links.OUTAGE]


def _again(lost: float, back: float) -> float:
    """When TCP tries for the first time after the link is back."""
    tries = math.ceil(math.log2((back - lost) / TIMER + 1))
    return lost + TIMER * (2**tries - 1)
