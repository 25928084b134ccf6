"""A conversation with a model that several devices hold: `Star`, on the hub."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from splitrt.core.lookup import Lookup, Pace
from splitrt.core.sample import Sampling, pick
from splitrt.core.shards import Shards
from splitrt.core.spoken import Difference, Tally, Token, proper
from splitrt.errors import PacketError, SplitrtError
from splitrt.star.allot import Plan
from splitrt.star.ends import Ends
from splitrt.star.figures import Figures, slow
from splitrt.star.group import Group
from splitrt.star.guest import Guest
from splitrt.star.pace import EXACT, WAYS
from splitrt.star.reduce import Way
from splitrt.star.room import Room, resident
from splitrt.star.roster import Roster
from splitrt.star.seal import Seal

logger = logging.getLogger(__name__)

DRAFTS = 8  # of a step, at most


class Star:
    """One language model over this device, the hub, and the spokes that join it.

    folder: of `splitrt split --star`.  listen: where spokes join; port 0: a free one.  sums_port:
    where spokes bring their parts of sums, on the same host; 0: a free one.  ways: of adding, the
    fastest is taken; by default those that are exact, for weights that are rounded anyhow all.
    drafts: of a step, looked up in the text; None: as many as pay.

        with Star("models/in-3", listen="0.0.0.0:50710") as star:
            star.gather(2)
            for token in star.answer(ids, most=100):
                print(token.id)
            print(star.tally, star.figures())

    One directory says one text, however many devices hold it and whoever is lost, bit for bit if
    sums are rounded alike: a text keeps the wire of its first sum. Directories of other divisions
    of an fp32 model say it, too, up to near-ties. A spoke that comes, or comes back, is given work
    when the next answer begins. Text and tokens stay here; spokes see rows of numbers. Who knows a
    model's embedding can read tokens from its rows.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        listen: str = "127.0.0.1:0",
        sums_port: int = 0,
        ways: Sequence[Way] | None = None,
        sampling: Sampling = Sampling(),
        drafts: int | None = None,
        room: Room = Room(),
        seal: Seal = Seal(),
    ) -> None:
        self.folder, self.manifest = Path(folder), Shards.load(folder)
        if drafts is not None and drafts < 0:
            raise PacketError(f"{drafts} drafts\nhelp: 0 or more; by default as many as pay")
        if not 0 <= sums_port < 1 << 16:
            raise SplitrtError(f"sums_port = {sums_port}\nhelp: 1 to 65535, or 0 for a free one")
        exact = self.manifest.weights in ("fp32", "fp16")
        self.sampling, self.tally, self.drafts = sampling, Tally(), drafts
        self.difference: Difference | None = None
        self._ids: list[int] = []
        self._lookup, self._pace = Lookup(), Pace()
        self._cancelled, self._answering = threading.Event(), threading.Lock()
        with ExitStack() as opened:
            self.roster = opened.enter_context(
                Roster(self.folder, self.manifest, listen, seal=seal, gone=self._gone)
            )
            base = resident()
            self._ends = opened.enter_context(
                Ends(self.folder, self.manifest, threads=room.threads, window=room.tiles)
            )
            self._group = Group(
                self.folder, self.manifest, self.roster, self._ends,
                room=room, base=base, ways=ways or (EXACT if exact else WAYS), seal=seal,
                port=sums_port,
            )  # fmt: skip
            opened.pop_all()

    @property
    def address(self) -> str:
        """Where spokes join."""
        return self.roster.address

    @property
    def longest(self) -> int:
        """Positions of a text."""
        return self._group.longest

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens of the conversation."""
        return tuple(self._ids)

    @property
    def way(self) -> Way:
        """How sums are made."""
        return self._group.way

    def __enter__(self) -> Star:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the spokes go."""
        self.cancel()
        self._group.close()
        self.roster.close()
        self._ends.close()

    def gather(self, count: int, timeout: float = 60.0) -> tuple[Guest, ...]:
        """Wait for so many spokes, and divide the model; with fewer when the time is over."""
        self.roster.wait(count, timeout)
        self._group.arrange()
        return self.roster.guests

    def plan(self) -> Plan:
        """Who of those that are there would hold what."""
        return self._group.plan(self.roster.guests)

    def figures(self) -> list[Figures]:
        """What each device spends on a step, the hub first."""
        return self._group.figures()

    def cancel(self) -> None:
        """Stop the answer that is being said; from any thread."""
        self._cancelled.set()

    def truncate(self, n: int) -> None:
        """Let the conversation be its first n tokens."""
        if not 0 <= n <= len(self._ids):
            raise PacketError(f"{len(self._ids)} tokens cannot become {n}\nhelp: fewer, not more")
        del self._ids[n:]
        self._lookup.truncate(n)
        self._group.truncate(n)

    def answer(self, ids: Sequence[int], *, most: int = 200) -> Generator[Token, None, None]:
        """Go on after these new tokens of the conversation, until a stop, or `most` tokens.

        Whoever stops reading ends the answer with the last token read. PacketError for tokens
        that there are not, none at all, or more than there is room for.
        """
        if not self._answering.acquire(blocking=False):
            raise PacketError("an answer is being said\nhelp: cancel it, or read it to its end")
        try:
            self._cancelled.clear()
            yield from self._answer(ids, most)
        finally:
            self._answering.release()

    def _answer(self, ids: Sequence[int], most: int) -> Generator[Token, None, None]:
        vocab = self.manifest.shape.vocab
        proper(ids, len(self._ids), vocab=vocab, longest=self.longest)
        started, self.tally = time.monotonic(), Tally()
        if self._group.changed:
            self._group.arrange()
        self._group.read(len(self._ids), len(self._ids) + len(ids))
        self._add(ids)
        shown = len(self._ids)
        until = min(shown + most, self.longest + 1)
        try:
            while shown < until and not self._cancelled.is_set():
                for token in self._step(until - shown):
                    shown += 1
                    self.tally = self.tally.said(token.where, time.monotonic() - started)
                    yield token
                    if token.id in self.manifest.stops:
                        return
        finally:
            self.tally = replace(self.tally, seconds=time.monotonic() - started)
            if len(self._ids) > shown:
                self.truncate(shown)
            for one in slow(self.figures()):
                logger.warning("%s is slow: it computes %.1f ms a step", one.name, one.compute)

    def _step(self, left: int) -> list[Token]:
        """What the model says next: a token, and before it all drafts that it would say too."""
        drafts, started = self._draft(left), time.perf_counter()
        n, held = len(self._ids), self._group.n
        rows = self._group.forward([*self._ids, *drafts], 1 + len(drafts))
        said: list[Token] = []
        for place, logits in enumerate(self._ends.say(rows)):
            token = pick(logits, self.sampling, n + place)
            agreed = place < len(drafts) and token == drafts[place]
            said.append(Token(token, "", "draft" if agreed else "edge", n + place))
            if not agreed or token in self.manifest.stops:
                break
        self._add([token.id for token in said])
        self._group.truncate(len(self._ids) - 1)
        seconds = time.perf_counter() - started
        self._learn(drafts, said, seconds if held == n - 1 else None)
        return said

    def _draft(self, left: int) -> list[int]:
        """What followed the last tokens where they came before, as far as trying it pays."""
        most = min(left - 1, self.longest - len(self._ids), DRAFTS)
        if self.drafts is not None:
            return self._lookup.drafts(min(most, self.drafts))
        return self._lookup.drafts(self._pace.length(most))

    def _learn(self, drafts: Sequence[int], said: Sequence[Token], seconds: float | None) -> None:
        """seconds: of the step, if it had no other rows."""
        accepted = sum(one.where == "draft" for one in said)
        self.tally = self.tally.asked().tried(len(drafts), accepted)
        if seconds is not None:
            self._pace = self._pace.after(1 + len(drafts), accepted, seconds)

    def _add(self, ids: Sequence[int]) -> None:
        self._ids += ids
        self._lookup.extend(ids)

    def _gone(self, guest: Guest, why: str) -> None:
        """The roster's threads say so."""
        if guest.alive:  # else the roster has said so
            logger.warning("%s fails: %s", guest.name, why.splitlines()[0])
        self._group.lost(guest)
