"""What a language model says, on the terminal: every token in the colour of where it was made."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from splitrt.core.spoken import Place, Tally, Token

COLOURS: dict[Place, str] = {"edge": "33", "draft": "32", "cloud": "36"}
MEANING: dict[Place, str] = {
    "edge": "made here, nobody was asked",
    "draft": "made here, the server agreed",
    "cloud": "made by the server",
}
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a text must not steer the terminal


class Ink:
    """Writes tokens as they come. Colours only for a terminal, and not where NO_COLOR is set."""

    def __init__(self, to: TextIO | None = None) -> None:
        self._to = to or sys.stdout
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.coloured = self._to.isatty() and not plain

    def token(self, token: Token) -> None:
        """The text that a token adds."""
        self._write(self._inked(CONTROLS.sub("\N{REPLACEMENT CHARACTER}", token.text), token.where))

    def legend(self) -> None:
        """What the colours mean, if there are any."""
        if self.coloured:
            told = (self._inked(where, where) + f" {MEANING[where]}" for where in COLOURS)
            self._write("   ".join(told) + "\n")

    def tally(self, tally: Tally) -> None:
        """What the answer took."""
        self._write(f"\n[{told(tally)}]\n")

    def differs(self, said: str, instead: str, position: int) -> None:
        """Where a text that was made without a server first differs from the server's."""
        words = f"at token {position} it would have said {instead!r}, not {said!r}"
        self._write(f"[a server is back: {words}]\n")

    def line(self, text: str) -> None:
        """Something that is no answer."""
        self._write(text + "\n")

    def _inked(self, text: str, where: Place) -> str:
        return f"\x1b[{COLOURS[where]}m{text}\x1b[0m" if text and self.coloured else text

    def _write(self, text: str) -> None:
        self._to.write(text)
        self._to.flush()


def told(tally: Tally) -> str:
    """An answer's figures in a line."""
    parts = [f"{tally.tokens} tokens: {tally.cloud} cloud, {tally.draft} draft, {tally.edge} edge"]
    if tally.up:
        parts.append(f"{tally.requests_per_token:.2f} requests a token")
    if tally.drafted:
        parts.append(f"{tally.acceptance:.0%} of {tally.drafted} drafts accepted")
    if tally.up:
        parts.append(f"{tally.up:,} bytes up")
    parts.append(f"first token {1000 * tally.first:.0f} ms")
    parts.append(f"{tally.tokens_per_s:.1f} tokens/s")
    return " · ".join(parts)
