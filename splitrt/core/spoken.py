"""What a language model said: each token with the place where it was made, and what it all took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from splitrt.errors import PacketError

Place: TypeAlias = Literal["edge", "draft", "cloud"]
Mode: TypeAlias = Literal["spec", "gated", "edge", "ask"]


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer.

    where: cloud, the server chose it; draft, the device did and the server agreed; edge, the
    device did and nobody was asked (yet).  position: in the session.  text: what it adds; empty
    while a character is not complete.
    """

    id: int
    text: str
    where: Place
    position: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a text that was said without a server parts from what the server would have said."""

    position: int
    said: int
    instead: int


@dataclass(frozen=True, slots=True)
class Tally:
    """What an answer took. seconds: of all.  first: to its first token.  up: bytes sent."""

    edge: int = 0
    draft: int = 0
    cloud: int = 0
    requests: int = 0
    drafted: int = 0
    accepted: int = 0
    up: int = 0
    first: float = 0.0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Of the answer."""
        return self.edge + self.draft + self.cloud

    @property
    def requests_per_token(self) -> float:
        """How often the server was asked for each token."""
        return self.requests / max(1, self.tokens)

    @property
    def acceptance(self) -> float:
        """Share of the drafts that the server agreed with."""
        return self.accepted / max(1, self.drafted)

    @property
    def tokens_per_s(self) -> float:
        """Of the whole answer, the first token's time included."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def said(self, where: Place, seconds: float, up: int = 0) -> Tally:
        """With one token more, so many seconds after the question, `up` bytes sent since then."""
        counts = {where: getattr(self, where) + 1}
        return replace(self, first=self.first or seconds, seconds=seconds, up=up, **counts)

    def asked(self) -> Tally:
        """With one request more."""
        return replace(self, requests=self.requests + 1)

    def tried(self, drafted: int, accepted: int) -> Tally:
        """With so many drafts more, and those of them that were agreed with."""
        return replace(self, drafted=self.drafted + drafted, accepted=self.accepted + accepted)

    def as_dict(self) -> dict[str, object]:
        """For programs. bytes_up: sent for it.  first_s: to its first token."""
        return {
            "where": {"edge": self.edge, "draft": self.draft, "cloud": self.cloud},
            "tokens": self.tokens,
            "requests_per_token": round(self.requests_per_token, 4),
            "acceptance": round(self.acceptance, 4),
            "bytes_up": self.up,
            "first_s": round(self.first, 4),
            "seconds": round(self.seconds, 4),
            "tokens_per_s": round(self.tokens_per_s, 2),
        }


def proper(ids: Sequence[int], held: int, *, vocab: int, longest: int) -> None:
    """PacketError unless these may follow the `held` tokens of a conversation."""
    if not ids:
        raise PacketError("nothing to answer to\nhelp: one token at least, the first one too")
    if wrong := [one for one in ids if not 0 <= one < vocab]:
        raise PacketError(f"token {wrong[0]}\nhelp: this model has 0 to {vocab - 1}")
    if (n := held + len(ids)) > longest:
        raise PacketError(
            f"{n} tokens of conversation, room for {longest}\n"
            "help: a new conversation, or `truncate`"
        )
