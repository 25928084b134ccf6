"""The devices that hold a model together: who holds what, and a text that outlives one of them.

When a spoke is lost the hub divides the model anew over those that remain, itself alone if need
be, and computes the text's keys and values again from its tokens, which it alone holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from splitrt.core.memory import available
from splitrt.core.shards import HUB, PLAINLY, Shards
from splitrt.edge.decoder import CHUNK
from splitrt.errors import LinkError, ModelError
from splitrt.star import probe
from splitrt.star.allot import Able, Plan, plan, works
from splitrt.star.call import PATIENCE, agreed
from splitrt.star.ends import Ends
from splitrt.star.figures import Figures, figures
from splitrt.star.guest import Beat, Guest
from splitrt.star.meet import Hub
from splitrt.star.pace import settle
from splitrt.star.reduce import Way
from splitrt.star.room import Room, peak
from splitrt.star.roster import Roster
from splitrt.star.run import Spent, lead
from splitrt.star.seal import Seal
from splitrt.star.shard import Stack
from splitrt.star.work import size

logger = logging.getLogger(__name__)

GATHER = 30.0  # seconds for all to link to each other


class Group:
    """The hub's view of all devices. For one thread, but for `lost`, which any may call.

    n: positions that all devices hold.  base: bytes of this process without weights.  ways: of
    adding, of which the fastest is taken.  port: of the sums; 0: a free one.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Shards,
        roster: Roster,
        ends: Ends,
        *,
        room: Room,
        base: int,
        ways: Sequence[Way],
        seal: Seal = Seal(),
        port: int = 0,
    ) -> None:
        self.manifest, self.roster, self.ends = manifest, roster, ends
        self.longest = room.longest or manifest.longest
        self.n, self.epoch = 0, 0
        self._prompts: list[tuple[int, int]] = []  # where each begins and ends
        self._folder, self._room, self._ways, self._seal = folder, room, tuple(ways), seal
        self._base = base
        self._speed = self._probed / probe.seconds(
            folder / manifest.devices[roster.probe].folder, manifest.devices[roster.probe],
            manifest.shape.hidden, room.threads,
        )  # fmt: skip
        self._memory = available() if room.memory is None else room.memory
        self._stack: Stack | None = None
        self._sizes = [size(folder, manifest, shard) for shard in range(len(manifest.devices))]
        self._where = f"{roster.address.rpartition(':')[0]}:{port}"
        self._hub: Hub | None = None
        self._seated: tuple[Guest, ...] = ()  # who holds shards
        self._asked: set[Guest] = set()  # who was there, and may have got none
        self._shards: list[range] = [range(0)]  # the hub's, then theirs
        self._each = 0.0  # seconds of a sum
        self._wire = ""  # of the text's sums
        self._spent = Spent()
        self._lock = threading.Lock()

    @property
    def way(self) -> Way:
        """How sums are made."""
        return Way() if self._hub is None else self._hub.way

    @property
    def changed(self) -> bool:
        """Whether other devices are there than when the model was divided."""
        return self._hub is None or self._asked != set(self.roster.guests)

    def forward(self, ids: Sequence[int], last: int) -> np.ndarray:
        """All tokens of a text through all layers: rows [last, hidden] of the last ones.

        What is held already is not computed again. Devices that are lost meanwhile are replaced.
        """
        while True:
            try:
                return self._forward(ids, last)
            except LinkError as error:
                self._mend(error, len(ids) - last)

    def arrange(self) -> None:
        """Divide the model over all who are there and link them; who fails is left out.

        LinkError if the port of the sums cannot be had.
        """
        self.roster.rest()
        self._part()
        failed: set[Guest] = set()
        while True:
            guests = [one for one in self.roster.guests if one not in failed]
            try:
                self._seat(guests)
                return
            except LinkError as error:
                bound = self._hub is not None
                self._part()
                if not guests or not bound:
                    raise
                logger.warning("%s", error)
                failed |= {one for one in guests if one.lost[0] == self.epoch}

    def lost(self, guest: Guest) -> None:
        """That one is gone: whoever waits for its part learns of it now."""
        with self._lock:
            if guest in self._seated and self._hub is not None:
                self._hub.close()

    def plan(self, guests: Sequence[Guest]) -> Plan:
        """What each device would hold: weights go through windows if they do not fit in memory.

        Devices are as fast as they were with the first feed-forward graph of one shard.
        """
        shape = self.manifest.shape
        devices = [Able(HUB, self._speed, self._memory)]
        devices += [Able(one.name, self._probed / one.seconds, one.memory) for one in guests]
        costs, beside = works(self.manifest), shape.vocab * shape.hidden / self._speed
        try:
            return plan(costs, self._sizes, devices, beside=beside)
        except ModelError as error:
            logger.warning("weights go through windows: %s", str(error).splitlines()[0])
        return plan(costs, self._sizes, [replace(one, room=None) for one in devices], beside=beside)

    def figures(self) -> list[Figures]:
        """What each device spent, the hub first."""
        names = [HUB, *(one.name for one in self._seated)]
        own = self._spent
        sums = min(own.reduce, 2 * self.manifest.shape.layers * own.steps * self._each)
        beats = [
            Beat(
                epoch=self.epoch, steps=own.steps, compute=own.compute, reduce=sums,
                wait=own.reduce - sums, load=own.load, peak=peak(),
            ),
            *(one.beat for one in self._seated),
        ]  # fmt: skip
        return [
            figures(name, held, beat if beat.epoch == self.epoch else Beat())
            for name, held, beat in zip(names, self._shards, beats, strict=True)
        ]

    def truncate(self, n: int) -> None:
        """Let the devices hold the first n positions, or as many as they do."""
        self.n = min(self.n, n)
        self._prompts = [(start, min(stop, n)) for start, stop in self._prompts if start < n]

    def read(self, start: int, stop: int) -> None:
        """The tokens from `start` to `stop` are a prompt: they go CHUNK at a time."""
        self._prompts.append((start, stop))

    def close(self) -> None:
        """End the sums; the spokes stay with the roster."""
        self.roster.rest()
        self._part()
        if self._stack is not None:
            self._stack.close()

    @property
    def _probed(self) -> int:
        """Multiply-adds of the graph that every device times."""
        return 3 * self.manifest.shape.hidden * self.manifest.devices[self.roster.probe].inner

    def _forward(self, ids: Sequence[int], last: int) -> np.ndarray:
        if self._hub is None:
            self.arrange()
        assert self._hub is not None and self._stack is not None
        found = []
        while self.n < len(ids):
            stop, alone = self._piece(len(ids))
            rows = self.ends.embed(ids[self.n : stop])
            found.append(lead(self._hub, self._stack, rows, self.n, self._spent, alone=alone))
            self.n = stop
        return np.concatenate(found)[-last:]

    def _piece(self, most: int) -> tuple[int, bool]:
        """Where the next positions end that are computed at once, and whether each alone.

        It depends on the text only: what is computed again has the same bits. Tokens that were
        said, and drafts of them, have those of one after the other.
        """
        for start, stop in self._prompts:
            if start <= self.n < stop:
                return min(stop, start + ((self.n - start) // CHUNK + 1) * CHUNK), False
            if self.n < start:
                most = min(most, start)
                break
        return min(most, self.n + CHUNK), self.manifest.weights not in PLAINLY

    def _mend(self, error: LinkError, known: int) -> None:
        """Go on without whoever was lost; the text is computed again."""
        started = time.monotonic()
        before = self._seated
        self._part()
        self._judge(before)
        left = set(self.roster.guests)
        gone = [one.name for one in before if one not in left]
        told = ", ".join(gone) or str(error).splitlines()[0]
        self.arrange()
        logger.warning(
            "lost: %s; %d devices go on, %d positions anew, %.1f s",
            told, 1 + len(self._seated), known, time.monotonic() - started,
        )  # fmt: skip

    def _judge(self, guests: Sequence[Guest]) -> None:
        """Until it is known which of these is lost, or that all are alive."""
        self.roster.rest()
        since = time.monotonic()
        until = since + 2 * PATIENCE
        while time.monotonic() < until and all(one.alive for one in guests):
            if all(one.heard > since for one in guests):
                return
            time.sleep(0.01)

    def _seat(self, guests: Sequence[Guest]) -> None:
        """The model over these."""
        self.epoch, self.n, self._spent = self.epoch + 1, 0, Spent()
        self._asked = set(self.roster.guests)
        shards = self.plan(guests).shards
        seats = [(one, held) for one, held in zip(guests, shards[1:], strict=True) if held]
        self._shards = [shards[0], *(held for _, held in seats)]
        self._hold(shards[0])
        parts = [len(held) for held in self._shards]
        terms = agreed(self.manifest, parts=parts, rows=CHUNK, epoch=self.epoch)
        hub = Hub(self._where, terms, seal=self._seal)
        with self._lock:
            self._hub, self._seated = hub, tuple(one for one, _ in seats)
        port = int(hub.address.rsplit(":", 1)[1])
        ways = self._allowed(len(seats))
        self.roster.hold(
            self.epoch, dict(seats), port=port, rows=CHUNK, longest=self.longest, ways=ways
        )
        hub.gather(GATHER)
        times = settle(hub, ways)
        self._wire = hub.way.wire
        self._each = times[hub.way]
        told = ", ".join(f"{way} {1000 * seconds:.2f} ms" for way, seconds in times.items())
        logger.info("%d devices; a sum by %s: %s", 1 + len(seats), hub.way, told)

    def _allowed(self, spokes: int) -> list[Way]:
        """Ways of adding that may be taken: sums of a text that has begun stay rounded alike."""
        kept = [one for one in self._ways if not self._prompts or one.wire == self._wire]
        if spokes:
            return kept
        exact = [one for one in kept if one.wire == "f32"]
        return [Way("star", (exact or kept)[0].wire)]

    def _hold(self, shards: Sequence[int]) -> None:
        """The hub's own."""
        if self._stack is None:
            self._stack = self._room.stack(
                self._folder, self.manifest, shards, hub=True, base=self._base
            )
        else:
            self._stack.hold(shards)

    def _part(self) -> None:
        with self._lock:
            hub, self._hub, self._seated = self._hub, None, ()
            self._shards = self._shards[:1]
        if hub is not None:
            hub.close()
