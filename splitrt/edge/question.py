"""What a server is asked, and what it replies."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reply:
    """A verdict that was proved to be possible. rows: of the Ask itself, and those just before."""

    accepted: int
    token: int
    n: int
    confidence: float
    rows: int
    batch: int
    verify: float  # seconds
    queue: float  # seconds


@dataclass(slots=True, eq=False)
class Pending:
    """A question until it is answered.

    n: positions that the server holds when it is asked.  keep: the log's rows, whatever the
    answer: they are of a text that stands.
    """

    n: int
    drafts: tuple[int, ...]
    keep: bool = False
    future: Future[Reply] = field(default_factory=Future)
    seq: int = 0  # 0: not sent on this stream
    sent_at: float = 0.0
    bytes: int = 0
    rows: int = 0
    again: bool = False

    @property
    def before(self) -> int:
        """Positions without the drafts."""
        return self.n - len(self.drafts)
