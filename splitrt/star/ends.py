"""The hub's alone: from tokens to rows, and from rows to logits, the LM head in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from splitrt.core.manifest import verified
from splitrt.core.shards import BARE_VOICE, NORM, PLAINLY, Shards, tiles, voice
from splitrt.edge.decoder import LARGEST_WEIGHTS
from splitrt.edge.head import session
from splitrt.errors import ModelError, PacketError
from splitrt.star.block import KEPT, Block, Rows, Shelf, thrifty, weighed
from splitrt.star.table import Table
from splitrt.star.window import Window


class Ends:
    """A star's embedding, last norm and LM head. window: tiles of the LM head; packed: see `Stack`.

    Of the embedding only the rows of the text's tokens are read.

        with Ends("models/in-4", Shards.load("models/in-4")) as ends:
            rows = ends.embed([1, 2, 3])
            logits = ends.say(rows[-1:])
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Shards,
        *,
        threads: int = 1,
        window: int | None = None,
        packed: bool = True,
    ) -> None:
        if window is not None and window < 1:
            raise ModelError(f"a window of {window} tiles\nhelp: 1 or more, or none at all")
        self._hub, self._shape = manifest.devices[0], manifest.shape
        self._folder, self._name = Path(folder) / self._hub.folder, manifest.name
        self._tiles = tiles(manifest.shape, manifest.weights)
        self._table = Table(self._folder, self._hub, manifest.shape)
        self._norm = self._opened(NORM, threads)
        bare = manifest.weights in PLAINLY and (window is not None or not packed)
        self._shelf = Shelf(self._folder, self._hub, threads, bare)
        places = range(len(self._tiles))
        for place in places:
            self._shelf.name(voice(place), BARE_VOICE)
        if window is not None:
            thrifty()
        self._rows: dict[tuple[int, int], Rows] = {}
        self._blocks = [self._tile(place) for place in places] if window is None else []
        self._window = None if window is None else Window(len(places), self._tile, window)

    @property
    def loading(self) -> float:
        """Seconds that the caller waited for weights, so far."""
        return 0.0 if self._window is None else self._window.loading

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """Tokens [T] -> float32 rows [T, hidden]; PacketError for what is no token."""
        tokens, vocab = np.asarray(ids), self._shape.vocab
        if tokens.ndim != 1 or not len(tokens) or tokens.dtype.kind not in "iu":
            raise PacketError(f"no tokens in {str(ids)[:40]!r}\nhelp: one whole number or more")
        if tokens.min() < 0 or tokens.max() >= vocab:
            wrong = tokens[(tokens < 0) | (tokens >= vocab)][0]
            raise PacketError(f"token {wrong} of {vocab}\nhelp: use the model's own tokenizer")
        return self._table[tokens]

    def say(self, rows: np.ndarray) -> np.ndarray:
        """float32 rows [T, hidden] after all layers -> logits [T, vocab]."""
        (ready,) = self._norm.run(["ready"], {"row": rows})
        logits = np.empty((len(rows), self._shape.vocab), np.float32)
        for place, (start, stop) in enumerate(self._tiles):
            window = self._window
            block = self._blocks[place] if window is None else window.take(place)
            lines = self._lines(len(rows), stop - start)
            lines.x[:] = ready
            try:
                block.run(lines)
            except (RuntimeError, ValueError) as error:  # of ONNX Runtime
                raise ModelError(f"{voice(place)} of {self._name}: {error}") from error
            logits[:, start:stop] = lines.y
            if window is not None:
                del block
                window.done(place)
        return logits

    def close(self) -> None:
        """End the thread that loads, and close the embedding."""
        self._table.close()
        if self._window is not None:
            self._window.close()

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self, name: str, threads: int) -> ort.InferenceSession:
        path, weights = verified(self._folder, self._hub, name), weighed(name)
        if weights not in self._hub.files:  # small ones lie in the graph
            return session(path, threads, "CPU")
        verified(self._folder, self._hub, weights, largest=LARGEST_WEIGHTS)
        return session(path, threads, "CPU", weights=weights)

    def _tile(self, place: int) -> Block:
        return self._shelf.load(voice(place), BARE_VOICE, {})

    def _lines(self, count: int, width: int) -> Rows:
        if (count, width) not in self._rows:
            if len(self._rows) >= KEPT:
                self._rows.clear()
            self._rows[count, width] = Rows.of(count, self._shape.hidden, width)
        return self._rows[count, width]
