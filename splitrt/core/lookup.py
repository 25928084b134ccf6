"""Drafts from the text itself: what followed the last words where they stood before.

Prompt lookup decoding (Saxena 2023): no model drafts, an index of n-grams does. And how many of
such drafts are worth verifying, where one machine, or a star, runs the step itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from splitrt.core.draft import ACCEPTED, BELIEF, MOST, PROBE, Cost, Mean
from splitrt.errors import SplitrtError

ROW = 0.1  # of a step's seconds, that one more row takes where nobody measured
FURTHER = 4  # drafts: fewer would not show against the noise of a step's seconds


class Lookup:
    """The tokens of a text, and where each run of 1 to `longest` of them stood last.

    found = Lookup()
    found.extend([5, 6, 7, 8, 5, 6])
    found.drafts(2)     # [7, 8]: they followed 5, 6
    """

    def __init__(self, longest: int = 3) -> None:
        if longest < 1:
            raise SplitrtError(f"runs of {longest} tokens\nhelp: 1 or more")
        self.longest = longest
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where what last followed a run stands
        self._before: list[list[int | None]] = []  # of each token: what its runs had there

    def __len__(self) -> int:
        return len(self._ids)

    def push(self, id: int) -> None:
        """One more token."""
        place, before = len(self._ids), []
        for run in self._runs():
            before.append(self._after.get(run))
            self._after[run] = place
        self._before.append(before)
        self._ids.append(id)

    def extend(self, ids: Iterable[int]) -> None:
        """Several more."""
        for id in ids:
            self.push(id)

    def drafts(self, most: int) -> list[int]:
        """What followed the longest run of last tokens that stood before, where it stood last.

        At most so many; fewer where the text ends, none if even the last token is new.
        """
        for run in reversed(self._runs()):
            place = self._after.get(run)
            if place is not None:
                return self._ids[place : place + max(0, most)]
        return []

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens."""
        if not 0 <= n <= len(self._ids):
            raise SplitrtError(
                f"{len(self._ids)} tokens cannot become {n}\nhelp: from 0 to {len(self._ids)}"
            )
        while len(self._ids) > n:
            self._ids.pop()
            for run, place in zip(self._runs(), self._before.pop(), strict=True):
                if place is None:
                    del self._after[run]
                else:
                    self._after[run] = place

    def _runs(self) -> list[tuple[int, ...]]:
        """The last token, the last two, ... as many as there are."""
        most = min(self.longest, len(self._ids))
        return [tuple(self._ids[-size:]) for size in range(1, most + 1)]


@dataclass(frozen=True, slots=True)
class Pace:
    """What is known of drafts that cost nothing to make; new knowledge is a new value.

    cost: seconds of a step over its rows.  row: what one more row takes, as a share of a step of
    one row; from when the last steps had different rows.  places: acceptance by position, of drafts
    whose forerunners were all accepted.  overall: at any position.

    pace = Pace()
    drafts = lookup.drafts(pace.length())
    pace = pace.after(1 + len(drafts), accepted=2, seconds=0.11)
    """

    cost: Cost = Cost()
    row: float = ROW
    places: tuple[Mean, ...] = (Mean(),) * MOST
    overall: Mean = Mean(ACCEPTED, BELIEF)
    steps: int = 0

    def after(self, rows: int, accepted: int, seconds: float, *, prompt: int = 0) -> Pace:
        """After a step of so many rows took so long, sums over the network included.

        accepted: drafts that the model said too.  prompt: of the rows, those of new text; all but
        one of the others were drafts.
        """
        cost = self.cost.seen(rows, seconds)
        one, row = cost.of(1), self.row
        if cost.uneven and one > 0:
            row = cost.of(2) / one - 1
        places, overall = list(self.places), self.overall
        for place in range(min(rows - 1 - prompt, accepted + 1, MOST)):
            right = float(place < accepted)
            places[place], overall = places[place].moved(right), overall.moved(right)
        return Pace(cost, row, tuple(places), overall, self.steps + 1)

    def goodput(self, drafts: int) -> float:
        """Tokens a second that steps with so many drafts are expected to bring.

        Before any step was seen: tokens in the time of a step of one row.
        """
        chance = tokens = 1.0
        for place in range(drafts):
            chance *= self.places[min(place, MOST - 1)].beside(self.overall.value)
            tokens += chance
        mean, seconds, seen = 1.0, 1.0, self.cost
        if seen.weight:
            mean, seconds = seen.rows / seen.weight, max(seen.seconds / seen.weight, 1e-9)
        one = seconds / (1 + self.row * (mean - 1))
        return tokens / (one * (1 + self.row * drafts))

    def length(self, most: int = MOST) -> int:
        """Drafts of the next step, 0 to `most`, that make the most tokens a second; 0: none pay.

        The fewest of those that are equally good. Once in `PROBE` steps they are `FURTHER` more, or
        less, so that what a row takes stays known, and drafts that did not pay are tried again.
        """
        best, found = -math.inf, 0
        for drafts in range(max(0, most) + 1):
            good = self.goodput(drafts)
            if good > best * (1 + 1e-9) or drafts == 0:
                best, found = good, drafts
        if self.steps % PROBE < PROBE - 1:
            return found
        further = found + FURTHER
        return further if further <= most else max(0, found - FURTHER)
