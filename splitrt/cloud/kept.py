"""What a stream's differences refer to: the codes of its last answered frames, within bounds."""

from __future__ import annotations

from collections import OrderedDict

from splitrt.core.delta import KEPT

STREAM_ROOM = 4 << 20  # bytes that one stream may keep
ROOM = 256 << 20  # bytes of all streams together


class Kept:
    """The packed codes of a stream's last `count` answered frames. Used by the batcher's thread."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._frames: OrderedDict[int, tuple[str, bytes]] = OrderedDict()

    def keep(self, seq: int, plan: str, packed: bytes) -> None:
        """A frame that is about to be answered."""
        self._frames.pop(seq, None)
        self._frames[seq] = plan, packed
        while len(self._frames) > self.count:
            self._frames.popitem(last=False)

    def base(self, seq: int, plan: str) -> bytes | None:
        """The packed codes of that frame; None if it is not here or went by another plan."""
        found, packed = self._frames.get(seq, (None, b""))
        return packed if found == plan else None


class Shelf:
    """Gives each stream that asks its room, until there is no more. Used by the server's loop.

    largest: packed bytes of the largest rung that differences are made of.
    """

    def __init__(self, largest: int) -> None:
        self.bases = min(KEPT, STREAM_ROOM // largest) if largest else 0
        self.free = ROOM // (self.bases * largest) if self.bases else 0  # streams

    def take(self) -> Kept | None:
        """A stream's room; None if there is none."""
        if self.free == 0:
            return None
        self.free -= 1
        return Kept(self.bases)

    def put_back(self, kept: Kept | None) -> None:
        """What `take` gave, when its stream has ended."""
        self.free += kept is not None
