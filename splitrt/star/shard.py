"""What one device of a star computes: the parts of every layer that it holds, and their K/V."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from splitrt.core import shards
from splitrt.core.shards import PLAINLY, TURNS, Shards
from splitrt.core.tensors import Tensors
from splitrt.errors import ModelError, PacketError
from splitrt.star.block import KEPT, Block, Rows, Shelf, shared, thrifty
from splitrt.star.window import Window

EVEN = 16  # ONNX Runtime's heads are multiples of it


class Desk:
    """What all blocks of a device read: rows, the positions they are at, the tables of turns."""

    def __init__(self, hidden: int, turns: Tensors) -> None:
        self._last, self._total = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self._turns = {name: np.ascontiguousarray(turns[name]) for name in ("cosines", "sines")}
        arrays = {"last": self._last, "total": self._total, **self._turns}
        self.positions: dict[str, ort.OrtValue] = {n: shared(a) for n, a in arrays.items()}
        self._hidden = hidden
        self._kept: dict[int, Rows] = {}

    def lay(self, rows: np.ndarray, n: int = 0) -> Rows:
        """Rows [T, hidden] at positions n on, where the blocks find them."""
        count = len(rows)
        found = self._kept.get(count)
        if found is None:
            if len(self._kept) >= KEPT:
                del self._kept[max(self._kept)]
            found = self._kept[count] = Rows.of(count, self._hidden, self._hidden)
        found.x[:] = rows
        self._total[0] = n + count
        self._last[0] = n + count - 1
        return found


class Shard:
    """One folder of a star's directory: its blocks, and K/V buffers of `longest` positions.

    resident: all blocks are loaded now, once.
    """

    def __init__(
        self, shelf: Shelf, manifest: Shards, number: int, desk: Desk, longest: int, resident: bool
    ) -> None:
        shape, one = manifest.shape, manifest.devices[number]
        self._shelf, self._desk = shelf, desk
        self._names: list[tuple[str, str]] = []
        for i, window in enumerate(shape.windows):
            self._names.append((shards.attention(i), shards.bare_attention(window)))
            self._names.append((shards.feed(i), shards.BARE_FEED))
        for names in self._names:
            shelf.name(*names)
        size = (1, one.heads, longest, -(-shape.head // EVEN) * EVEN)
        self._known = [[np.zeros(size, np.float32) for _ in "kv"] for _ in range(shape.layers)]
        places = range(len(self._names)) if resident else ()
        self._blocks = [self._load(place) for place in places]

    def __getitem__(self, place: int) -> Block:
        """The attention of layer i is at 2 i, its feed-forward network behind it."""
        return self._blocks[place] if self._blocks else self._load(place)

    def _load(self, place: int) -> Block:
        layer, feeds = divmod(place, 2)
        bound = {}
        if not feeds:
            keys, values = self._known[layer]
            bound = {**self._desk.positions, "keys.0": shared(keys), "values.0": shared(values)}
        return self._shelf.load(*self._names[place], bound)


class Stack:
    """The shards that a device holds, each one of a star's directory, as one.

    held: numbers of the devices whose folders they are; parts are added in that order.  longest:
    positions to have room for, if fewer than the model's.  window: blocks, each the attention or
    the feed-forward network of one layer, that are loaded at any time; None: all, always; or what
    says so of the shards that are to be held.  packed:
    resident fp32 and fp16 weights are laid out anew, two to three times faster for several rows at
    once; without it bits are those of a window.  loading: seconds that the caller waited for
    weights, so far.

        with Stack("models/in-4", Shards.load("models/in-4"), [1]) as stack:
            part = stack.attend(0, rows, 0)
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Shards,
        held: Sequence[int],
        *,
        threads: int = 1,
        longest: int | None = None,
        window: int | Callable[[Sequence[int]], int | None] | None = None,
        packed: bool = True,
    ) -> None:
        self.longest = manifest.longest if longest is None else longest
        if not 1 <= self.longest <= manifest.longest:
            wanted = f"1 to {manifest.longest}, or split the model again"
            raise ModelError(f"room for {longest} positions\nhelp: {wanted}")
        if isinstance(window, int) and window < 1:
            raise ModelError(f"a window of {window} blocks\nhelp: 1 or more, or none at all")
        self.layers, self._hidden = manifest.shape.layers, manifest.shape.hidden
        self._folder, self._manifest, self._threads = Path(folder), manifest, threads
        if window is not None:
            thrifty()
        self._choice, self._packed = window, packed
        self._size: int | None = None
        self._shards: dict[int, Shard] = {}
        self._desk = self._tables(held)
        self._waited = 0.0
        self._window: Window[list[Block]] | None = None
        self.hold(held)

    @property
    def loading(self) -> float:
        """Seconds that the caller waited for weights, so far."""
        return self._waited + (0.0 if self._window is None else self._window.loading)

    def hold(self, held: Sequence[int]) -> None:
        """Change what is held: what is kept stays loaded, with its K/V; the rest is dropped.

        If a shard does not load, nothing is held.
        """
        self._possible(held)
        kept = {number: one for number, one in self._shards.items() if number in held}
        self.close()
        size = self._choice(held) if callable(self._choice) else self._choice
        if (size is None) != (self._size is None):
            kept = {}
        self._size = size
        self._shards = {number: kept.get(number) or self._shard(number) for number in held}
        if self._size is not None:
            loaders = 1 if self._bare or (os.cpu_count() or 1) <= self._threads + 1 else 2
            self._window = Window(2 * self.layers, self._blocks, self._size, loaders=loaders)

    def attend(self, layer: int, rows: np.ndarray, n: int, alone: bool = False) -> np.ndarray:
        """What each attention adds to rows [T, hidden] at positions n on: [shards, T, hidden].

        K/V from n on is replaced.  alone: each row by itself, so that its bits are those of a call
        with one row.
        """
        if n < 0 or n + len(rows) > self.longest:
            raise PacketError(
                f"{n} positions and {len(rows)} more, room is for {self.longest}\n"
                "help: a shorter text, or split the model with a larger --longest"
            )
        return self._parts(2 * layer, rows, n, 1 if alone else len(rows))

    def feed(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """What each feed-forward network adds to rows [T, hidden]: [shards, T, hidden]."""
        return self._parts(2 * layer + 1, rows, 0, len(rows))

    def close(self) -> None:
        """Hold nothing; ends the threads that load."""
        self._shards = {}
        if self._window is not None:
            self._window.close()
            self._waited += self._window.loading
            self._window = None

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _bare(self) -> bool:
        """Whether weights are mapped and bound: those that need no packing, if they come and go."""
        plain = self._manifest.weights in PLAINLY
        return plain and (self._size is not None or not self._packed)

    def _parts(self, place: int, rows: np.ndarray, n: int, step: int) -> np.ndarray:
        """What each of the shards' blocks makes of the rows, so many of them at once."""
        if not self._shards:
            raise ModelError(f"no shard of {self._manifest.name} is held\nhelp: hold() one or more")
        window = self._window
        blocks = self._blocks(place) if window is None else window.take(place)
        parts = np.empty((len(blocks), len(rows), self._hidden), np.float32)
        try:
            for start in range(0, len(rows), step):
                laid = self._desk.lay(rows[start : start + step], n + start)
                for block, part in zip(blocks, parts, strict=True):
                    block.run(laid)
                    part[start : start + step] = laid.y
        except (RuntimeError, ValueError) as error:  # of ONNX Runtime
            raise ModelError(f"layer {place // 2} of {self._manifest.name}: {error}") from error
        if window is not None:
            del blocks, block  # so that the loader's is the last reference, and it unloads them
            window.done(place)
        return parts

    def _blocks(self, place: int) -> list[Block]:
        return [shard[place] for shard in self._shards.values()]

    def _possible(self, held: Sequence[int]) -> None:
        count = len(self._manifest.devices)
        if not held or len(set(held)) < len(held) or not set(held) <= set(range(count)):
            told = ", ".join(map(str, held)) or "none"
            raise ModelError(f"shards {told} of {count}\nhelp: one or more, each once, from 0")

    def _tables(self, held: Sequence[int]) -> Desk:
        """The tables of turns are the same in every shard."""
        self._possible(held)
        one, shape = self._manifest.devices[held[0]], self._manifest.shape
        largest = 4 * self._manifest.longest * (shape.head + EVEN) + (1 << 16)
        return Desk(shape.hidden, Tensors(self._folder / one.folder, one, TURNS, largest=largest))

    def _shard(self, number: int) -> Shard:
        one = self._manifest.devices[number]
        shelf = Shelf(self._folder / one.folder, one, self._threads, self._bare)
        return Shard(shelf, self._manifest, number, self._desk, self.longest, self._size is None)
