"""A conversation on the device: its tokens through the layers, their rows kept for the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from splitrt.core.language import Exit, Language, Resume
from splitrt.core.rows import Rows
from splitrt.edge.decoder import Decoder

CHUNK = 64  # rows of a prompt at once; always the same ones, so that they are always the same


class Reader:
    """Tokens of a conversation, and as many of them through the device's layers as are needed.

    take: gets the payload of the next positions, each once; rows of the cut, or the tokens.
    Prompts go by chunks, answers one by one: a row's bits depend on that, so nothing else may.
    """

    def __init__(
        self,
        decoder: Decoder,
        manifest: Language,
        rows: Rows,
        resume: Resume,
        take: Callable[[bytes], None] | None,
    ) -> None:
        self.decoder, self.exits = decoder, manifest.exits
        self.ids: list[int] = []
        self.step = 0.0  # seconds of the last token that went alone; 0: none did yet
        self._rows, self._tokens, self._take = rows, resume == "tokens", take
        self._prompt = (0, 0)  # where the last prompt begins and ends
        self._logits: np.ndarray | None = None  # of the last token, if it went through
        self._exit: Exit = self.exits[-1]  # that said so

    def prompt(self, ids: Sequence[int]) -> None:
        """Tokens that somebody else wrote."""
        self._prompt = (len(self.ids), len(self.ids) + len(ids))
        self._add(ids)

    def add(self, token: int) -> None:
        """A token of the answer."""
        self._add([token])

    def feed(self) -> None:
        """Let what the server needs be there: for tokens nothing is computed."""
        if not self._tokens:
            if self.decoder.n < len(self.ids):
                self.logits()
            self.settle()

    def logits(self) -> tuple[Exit, np.ndarray]:
        """Of the last token [V], all tokens through all the layers; and of which exit."""
        while self.decoder.n < len(self.ids):
            self.settle()
            begin = self.decoder.n
            stop = self._until(begin)
            started = time.monotonic()
            step = self.decoder.step(self.ids[begin:stop])
            if stop - begin == 1:
                self.step = time.monotonic() - started
            self._give(step.rows)
            self._logits, self._exit = step.logits, self.exits[-1]
        assert self._logits is not None  # there is a token, and it went through
        return self._exit, self._logits

    def voices(self) -> Iterator[tuple[Exit, np.ndarray]]:
        """What each exit says after the last token, the shallowest first, as deep as one likes."""
        due = len(self.ids) - self.decoder.n
        if due != 1 or self.decoder.n < self._prompt[1] or len(self.exits) == 1:
            yield self.logits()
            return
        for place, exit in enumerate(self.exits):
            if place == 0:
                self._logits = self.decoder.early(self.ids[-1:], exit.layer)
            else:
                self._logits = self.decoder.deeper(exit.layer)
            self._exit = exit
            yield exit, self._logits

    def settle(self) -> None:
        """Run what the deeper layers owe."""
        if self.decoder.settled < self.decoder.n:
            self._give(self.decoder.settle())

    def truncate(self, n: int) -> None:
        """Forget the tokens from n on."""
        del self.ids[n:]
        if self.decoder.n > n:
            self.decoder.truncate(n)
            self._logits = None
        self._prompt = (min(self._prompt[0], n), min(self._prompt[1], n))

    def _until(self, begin: int) -> int:
        """Where the chunk ends that begins there."""
        first, last = self._prompt
        if begin < first or begin >= last:
            return begin + 1
        return min(last, begin + CHUNK - (begin - first) % CHUNK)

    def _add(self, ids: Sequence[int]) -> None:
        self.ids += ids
        if self._tokens and self._take is not None:
            self._take(np.asarray(ids, "<u4").tobytes())

    def _give(self, rows: np.ndarray) -> None:
        if not self._tokens and self._take is not None:
            self._take(self._rows.encode(rows))
