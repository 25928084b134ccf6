"""Texts into a session and out of it: of a conversation, only what is new goes in."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Protocol

from splitrt.core.sample import Sampling
from splitrt.core.spoken import Difference, Tally, Token
from splitrt.edge.decoder import CHUNK
from splitrt.edge.template import Message
from splitrt.edge.tokens import Turn, Words
from splitrt.errors import PacketError


class TooLong(PacketError):
    """A text for which the model has no room."""


class Speaker(Protocol):
    """What is needed of a Chat. ids: all tokens of its session.  longest: what it has room for.

    difference: where a text that was said without a server parts from what one would have said.
    """

    sampling: Sampling
    tally: Tally
    longest: int
    difference: Difference | None

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens of the session."""

    def truncate(self, n: int) -> None:
        """Let the session be its first n tokens."""

    def answer(self, ids: Sequence[int], *, most: int) -> Generator[Token, None, None]:
        """Go on after these new tokens."""

    def cancel(self) -> None:
        """Stop the answer; from any thread."""


class Teller:
    """Says texts in one session. A conversation that grows costs what it grew by.

    Another one costs what follows the whole chunks of the prompt that both have: the bits of a row
    depend on how many were computed at once, and one text is to have one answer.

        teller = Teller(words, chat)
        for token in teller.ask("Hello"):
            print(token.text, end="")

    messages: what was said by `ask`; a system message may be put first.
    """

    def __init__(self, words: Words, speaker: Speaker) -> None:
        self.words, self.speaker = words, speaker
        self.messages: list[Message] = []
        self._last: Turn | None = None
        self._even = 0  # positions that were read in whole chunks, from the first on

    def ask(self, text: str, *, most: int | None = None) -> Generator[Token, None, None]:
        """The answer to what is said next; both become part of the conversation.

        An answer that was not read to its end is part of it as far as it was read.
        """
        asked, said = [*self.messages, {"role": "user", "content": text}], ""
        for token in self.say(self.turn(asked), most=most):
            said += token.text
            self.messages = [*asked, {"role": "assistant", "content": said}]
            yield token

    def turn(self, told: str | Sequence[Message]) -> Turn:
        """What the session would hold before its answer to a text or to a conversation.

        TooLong if there is no room for it and one token more.
        """
        held, last = list(self.speaker.ids), self._last
        if last is not None and held[: len(last.whole)] != last.whole:
            last = None
        answer = [] if last is None else held[len(last.whole) :]
        found = self.words.turn(told, last, answer)
        if len(found.whole) >= self.speaker.longest:
            raise TooLong(
                f"{len(found.whole)} tokens, and the model has room for {self.speaker.longest} "
                "with the answer\nhelp: a shorter text"
            )
        return found

    def held(self, turn: Turn) -> int:
        """How many of its tokens the session holds already and can go on after."""
        ids = self.speaker.ids
        pairs = zip(ids, turn.whole[:-1], strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return same if same == len(ids) else min(same, self._even) // CHUNK * CHUNK

    def say(self, turn: Turn, *, most: int | None = None) -> Generator[Token, None, None]:
        """The answer, its text with it; most: tokens, by default as many as there is room for."""
        held, speaker = self.held(turn), self.speaker
        if held < len(speaker.ids):
            speaker.truncate(held)
        on = held <= self._even and not held % CHUNK  # the chunks go on where they ended
        self._even = (len(turn.whole) if on else min(held, self._even)) // CHUNK * CHUNK
        self._last = turn
        room = speaker.longest - len(turn.whole)
        most = room if most is None else min(most, room)
        speech = self.words.stream(turn.whole)
        with contextlib.closing(speaker.answer(turn.whole[held:], most=most)) as tokens:
            for place, token in enumerate(tokens, 1):
                text = speech.push(token.id)
                if place == most or token.id in self.words.stops:
                    text += speech.end()
                yield replace(token, text=text)
