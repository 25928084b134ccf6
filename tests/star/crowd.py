"""A hub's end of a division, spokes of toy layers in this process, and a hub that watches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from splitrt.core.shards import Shards
from splitrt.star import Hub, Seal, Way, settle
from splitrt.star.call import PATIENCE, agreed
from splitrt.star.guest import Guest
from splitrt.star.point import Point
from splitrt.star.roster import Roster
from splitrt.star.run import Spent, lead
from tests.star.toy import LONG, Toy, until

NOTICED = 10.0  # seconds in which a loss must be noticed on any machine; the promise is 2
CALM = 20.0  # seconds of patience where nobody is to be lost
LOCAL = "127.0.0.1:0"


@contextmanager
def points(address: str, stores: Path, names: Sequence[str], **more: Any) -> Iterator[list[Point]]:
    found: list[Point] = []
    try:
        for name in names:
            given = {"join": address, "layers": Toy, **more}
            found.append(Point(**given, store=stores / name, name=name))
        yield found
    finally:
        for one in found:
            one.close()


class Sums:
    """The hub's end of one division."""

    def __init__(
        self,
        roster: Roster,
        star: Shards,
        epoch: int,
        division: dict[Guest, list[int]],
        ways: Sequence[Way] = (Way(),),
        seal: Seal | None = None,
    ) -> None:
        held = [len(shards) for shards in division.values()]
        parts = [len(star.devices) - sum(held), *held]
        terms = agreed(star, parts=parts, rows=4, epoch=epoch, timeout=LONG)
        self.hub = Hub(LOCAL, terms, seal=seal)
        port = int(self.hub.address.rpartition(":")[2])
        try:
            roster.hold(epoch, division, port=port, rows=4, longest=64, ways=ways, timeout=LONG)
            self.hub.gather(LONG)
            settle(self.hub, ways)
        except BaseException:
            self.hub.close()
            raise

    def __enter__(self) -> Callable[..., np.ndarray]:
        return self.step

    def __exit__(self, *_: object) -> None:
        self.hub.close()

    def step(self, own: list[int], slow: float = 0.0) -> np.ndarray:
        """What the star makes of two rows; each half of a layer takes `slow` seconds here."""
        rows = np.linspace(-1, 1, 2 * self.hub.terms.hidden, dtype=np.float32).reshape(2, -1)
        return lead(self.hub, Weights(own, slow), rows, 0, Spent())


class Weights:
    """What the hub's own shards add; four layers, as the tests' star has."""

    layers, longest, loading = 4, 64, 0.0

    def __init__(self, shards: list[int], slow: float) -> None:
        self._slow = slow
        self._layers = Toy.of(shards)

    def attend(self, layer: int, rows: np.ndarray, n: int, alone: bool) -> np.ndarray:
        time.sleep(self._slow)
        return self._layers(rows)

    def feed(self, layer: int, rows: np.ndarray) -> np.ndarray:
        time.sleep(self._slow)
        return self._layers(rows)


def grown(hidden: int) -> np.ndarray:
    """What three shards make of the rows: each sum adds 6 hundredths, eight times."""
    rows = np.linspace(-1, 1, 2 * hidden, dtype=np.float32).reshape(2, -1)
    return rows * 1.06**8


class Watched:
    """A hub that computes in all its threads, and writes down who is lost and when."""

    def __init__(self, folder: Path, star: Shards, patience: float = PATIENCE) -> None:
        self.news: list[tuple[Guest, str, float]] = []
        self.roster = Roster(folder, star, LOCAL, patience=patience, gone=self._gone)
        self._over = threading.Event()
        self._busy = [threading.Thread(target=self._compute) for _ in range(2)]

    def __enter__(self) -> Watched:
        for one in self._busy:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for one in self._busy:
            one.join()
        self.roster.close()

    def noticed(self, guest: Guest, since: float) -> float:
        """Seconds from then until the loss of that guest was told."""
        until(lambda: any(one[0] is guest for one in self.news), f"{guest} is no loss", NOTICED)
        assert not guest.alive and guest not in self.roster.guests
        return next(at for one, _, at in self.news if one is guest) - since

    def why(self, guest: Guest) -> str:
        return next(why for one, why, _ in self.news if one is guest)

    def _gone(self, guest: Guest, why: str) -> None:
        self.news.append((guest, why, time.monotonic()))

    def _compute(self) -> None:
        matrix = np.ones((300, 300), np.float32)
        while not self._over.is_set():
            sum(range(1000))  # holds the interpreter
            matrix @ matrix  # does not
