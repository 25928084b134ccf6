"""What the next step runs, and which sessions make room for it. Pure decisions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from splitrt.errors import SplitrtError

LONGEST_WAIT = 0.01  # seconds that a step waits for company
STEP = 256  # positions by which a session's keys and values grow


@dataclass(frozen=True, slots=True)
class Room:
    """What the server of a language model may hold, and run at once.

    kv_tokens: positions, of all sessions, in the device's memory; None: by what is free.  ttl:
    seconds for which a session is kept without a call.  chunk: rows of a long prompt in one step;
    a wait for less is served whole.  behind: rows in one step for which nobody waits.  most: rows
    in one step of short waits.  together: sessions in one step; None: all.
    """

    kv_tokens: int | None = None
    ttl: float = 300.0
    chunk: int = 128
    behind: int = 128
    most: int = 2048
    together: int | None = None

    def __post_init__(self) -> None:
        if self.kv_tokens is not None and self.kv_tokens < STEP:
            raise SplitrtError(f"{self.kv_tokens} tokens of K/V\nhelp: {STEP} or more")
        if not 0 < self.ttl < math.inf:
            raise SplitrtError(f"sessions are kept for {self.ttl} s\nhelp: more than 0")


@dataclass(frozen=True, slots=True)
class Need:
    """What waits in a session: rows up to its first Ask, or all if there is none.

    asked: when that Ask came; None: nobody waits.  since: when the first of them came.
    """

    sid: bytes
    rows: int
    asked: float | None
    since: float


def turn(needs: Sequence[Need], room: Room) -> dict[bytes, int]:
    """How many rows of which sessions run next.

    Short waits are served whole, so that a token costs one step; then rows for which nobody waits
    and the oldest long prompts get a share each, so that none of them holds up the others
    (Agrawal et al. 2023, SARATHI).
    """
    needs = sorted(needs, key=lambda need: need.since)[: room.together]
    short = [need for need in needs if need.asked is not None and need.rows <= room.chunk]
    quiet = [need for need in needs if need.asked is None]
    long = [need for need in needs if need.asked is not None and need.rows > room.chunk]
    chosen = dict(_shared(short, room.most, whole=True))
    chosen |= _shared(quiet, room.behind)
    chosen |= _shared(long, room.chunk)
    return chosen


def patience(asking: int, last: int, took: float) -> float:
    """Seconds to wait until as many ask as the last step answered, which took so long.

    They ask again soon: with all of them in one step each waits less than with halves in turns.
    """
    return 0.0 if asking >= last else min(LONGEST_WAIT, took / 4)


def _shared(
    needs: Sequence[Need], budget: int, *, whole: bool = False
) -> Iterator[tuple[bytes, int]]:
    """Rows for the first until the budget is spent. whole: all of a session's rows, or none."""
    for need in needs:
        rows = min(need.rows, budget)
        if whole and rows < need.rows:
            return
        if rows or not need.rows:
            yield need.sid, rows
        budget -= rows


@dataclass(frozen=True, slots=True)
class Held:
    """What a session holds. size: positions.  used: when it was last.  busy: something waits."""

    sid: bytes
    owner: str
    size: int
    used: float
    busy: bool
    parked: bool


@dataclass(frozen=True, slots=True)
class Moves:
    """Sessions that go to the host's memory, and those that are given up."""

    parked: tuple[bytes, ...] = ()
    dropped: tuple[bytes, ...] = ()


def moved(held: Sequence[Held], more: int, resident: int, parked: int) -> Moves | None:
    """Who makes room for `more` positions; None: nobody can, for now.

    The longest unused are parked. Where that is too much for the host, too, the longest unused of
    the device that holds most is given up: who opens without end loses its own.
    """
    stay = [one for one in held if not one.parked]
    excess = sum(one.size for one in stay) + more - resident
    leaving: list[Held] = []
    for one in sorted(stay, key=lambda one: one.used):
        if excess <= 0:
            break
        if not one.busy:
            leaving.append(one)
            excess -= one.size
    if excess > 0:
        return None
    dropped = _dropped([one for one in held if one.parked] + leaving, parked)
    gone = {one.sid for one in dropped}
    kept = tuple(one.sid for one in leaving if one.sid not in gone)
    return Moves(kept, tuple(one.sid for one in dropped))


def _dropped(parked: Sequence[Held], limit: int) -> list[Held]:
    """Whom the host's memory does not hold. Who is busy comes back soon, and stays."""
    owners: dict[str, list[Held]] = defaultdict(list)
    sizes: dict[str, int] = defaultdict(int)
    for one in sorted(parked, key=lambda one: -one.used):
        sizes[one.owner] += one.size
        if not one.busy:
            owners[one.owner].append(one)
    gone = []
    while sum(sizes.values()) > limit and any(owners.values()):
        largest = max((owner for owner in owners if owners[owner]), key=lambda one: sizes[one])
        gone.append(owners[largest].pop())
        sizes[largest] -= gone[-1].size
    return gone
