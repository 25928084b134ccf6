"""What a spoke does in one epoch: fetch its shards, load them, say so, and follow the hub."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from splitrt.core.shards import TURNS, Shards
from splitrt.errors import PacketError, SplitrtError
from splitrt.star.call import ROWS, agreed
from splitrt.star.meet import Spoke
from splitrt.star.pace import WAYS, settle
from splitrt.star.reduce import Way
from splitrt.star.run import Layers, Spent, follow
from splitrt.star.seal import Seal
from splitrt.star.store import Source, Store
from splitrt.wire import star_pb2 as wire

logger = logging.getLogger(__name__)
WHY = 500  # characters of what went wrong
COMING = 60.0  # seconds for all devices to join the sums
LAYERED = ("attention-", "feed-", "bare-attention-", "bare-feed.")  # files' beginnings
LAYERED = ("attention-", "feed-", "bare-attention-", "bare-feed.")  # files' beginnings
NAMED = {str(way): way for way in WAYS}


class Held(Layers, Protocol):
    """Layers that can be given other shards, and be let go."""

    def hold(self, held: Sequence[int]) -> None:
        """From now on these; what is loaded of them already stays."""

    def close(self) -> None:
        """Lets go of all of them."""


Loader = Callable[[Path, Shards, Sequence[int], int], Held]  # folder, manifest, shards, longest


@dataclass(frozen=True, slots=True)
class Task:
    """A Hold that can be done."""

    epoch: int
    shards: tuple[int, ...]
    device: int
    parts: tuple[int, ...]
    port: int
    rows: int
    longest: int
    ways: tuple[Way, ...]

    @classmethod
    def of(cls, said: wire.Hold, manifest: Shards) -> Task:
        """As it came; PacketError if it makes no sense for that model."""
        most, shards = len(manifest.devices), tuple(said.shards)
        parts = tuple(said.parts)
        ways = tuple(NAMED[one] for one in said.ways if one in NAMED)
        sound = (
            said.epoch > 0
            and 0 < len(set(shards)) == len(shards)
            and max(shards, default=0) < most
            and 0 < said.device < said.devices == len(parts) <= most
            and 0 < min(parts) <= sum(parts) == most
            and parts[said.device] == len(shards)
            and 0 < said.port < 1 << 16
            and 0 < said.rows <= ROWS
            and 2 <= said.longest <= manifest.longest
            and 0 < len(ways) == len(said.ways) <= len(NAMED)
        )
        if not sound:
            told = " ".join(str(said).split())[:300]
            raise PacketError(f"the hub says: hold {told}\nhelp: the same splitrt on all devices")
        return cls(said.epoch, shards, said.device, parts, said.port, said.rows, said.longest, ways)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a spoke works: its star, its files, and how it makes layers of them."""

    hub: str  # its host
    seal: Seal
    manifest: Shards
    folder: Path
    store: Store
    source: Source
    loader: Loader


class Shelved:
    """The layers that a spoke holds from epoch to epoch."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._layers: Held | None = None

    def get(self, task: Task) -> Held:
        """With the shards of that task."""
        if self._layers is not None and self._layers.longest == task.longest:
            try:
                self._layers.hold(task.shards)
            except BaseException:  # nobody knows what they hold now
                self.close()
                raise
            return self._layers
        self.close()
        place = self._place
        self._layers = place.loader(place.folder, place.manifest, task.shards, task.longest)
        return self._layers

    def close(self) -> None:
        """Lets go of them."""
        layers, self._layers = self._layers, None
        if layers is not None:
            layers.close()


class Work:
    """One epoch's, in a thread of its own, until `stop` or an error; `spent` is read meanwhile.

    say: sends the hub a Ready, or a Lost with what went wrong.
    """

    def __init__(
        self, task: Task, place: Place, shelved: Shelved, say: Callable[[wire.FromSpoke], None]
    ) -> None:
        self.task, self.spent = task, Spent()
        self.sum = 0.0  # seconds of one sum, where it was measured
        self._place, self._shelved, self._say = place, shelved, say
        self._lock, self._over = threading.Lock(), threading.Event()
        self._party: Spoke | None = None
        self._coming = False  # it waits for the others, and touches no layers
        self._thread = threading.Thread(target=self._run, name=f"star-{task.epoch}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; when this returns its layers are at rest."""
        with self._lock:
            self._over.set()
            party, coming = self._party, self._coming
        if party is not None:
            party.close()
        if not coming:  # one that still waited for others ends now, and by itself
            self._thread.join()

    @property
    def sums(self) -> float:
        """Seconds that sums of one row would have taken, had nobody been waited for."""
        most = 2 * self._place.manifest.shape.layers * self.spent.steps * self.sum
        return min(self.spent.reduce, most)

    def _run(self) -> None:
        try:
            self._work()
        except SplitrtError as error:
            self._lost(str(error))
        except Exception as error:  # ONNX Runtime's own, no memory: the hub must learn of any
            if not self._over.is_set():
                logger.exception("epoch %d", self.task.epoch)
            self._lost(f"{type(error).__name__}: {error}")

    def _work(self) -> None:
        task, place = self.task, self._place
        for shard in task.shards:
            one = place.manifest.devices[shard]
            names = wanted(place.manifest, shard)
            place.store.fill(place.folder, one, names, place.source, self._over)
        if self._over.is_set():
            return
        layers = self._shelved.get(task)
        ready = wire.Ready(epoch=task.epoch)
        self._say(wire.FromSpoke(ready=ready))
        party = self._joined()
        if party is None:
            return
        with party:
            self._settle(party)
            follow(party, layers, self.spent)

    def _joined(self) -> Spoke | None:
        """In the sums; None if they are not wanted any more."""
        task, place = self.task, self._place
        with self._lock:
            if self._over.is_set():
                return None
            self._coming = True
        terms = agreed(place.manifest, parts=task.parts, rows=task.rows, epoch=task.epoch)
        party = Spoke(
            f"{place.hub}:{task.port}",
            terms,
            device=task.device,
            seal=place.seal,
            mesh=any(way.kind == "mesh" for way in task.ways),
            timeout=COMING,
            begun=self._begun,
        )
        with self._lock:
            self._coming = False
        return party

    def _begun(self, party: Spoke) -> None:
        """From now on `stop` ends its waiting, too."""
        with self._lock:
            self._party = party
            if self._over.is_set():
                party.close()

    def _settle(self, party: Spoke) -> None:
        self.sum = settle(party, self.task.ways)[party.way]

    def _lost(self, why: str) -> None:
        if not self._over.is_set():
            logger.info("division %d ends: %s", self.task.epoch, why.splitlines()[0])
            self._say(wire.FromSpoke(lost=wire.Lost(epoch=self.task.epoch, why=why[:WHY])))


def wanted(manifest: Shards, shard: int) -> list[str]:
    """The files of a shard's layers: not what the hub has beside them."""
    files = manifest.devices[shard].files
    return [name for name in files if name.startswith(LAYERED) or name == TURNS]


def size(folder: Path, manifest: Shards, shard: int) -> int:
    """Bytes of a shard's files, which are about those of its layers in memory."""
    one = manifest.devices[shard]
    return sum((folder / one.folder / name).stat().st_size for name in wanted(manifest, shard))
