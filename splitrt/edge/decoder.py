"""A language model's first layers on the device: rows for the server, logits of every exit.

Keys and values lie in buffers that ONNX Runtime reads and writes in place, so that a prompt, one
token, many at once and going back are the same graph, and going back costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from splitrt.core.language import Language
from splitrt.core.manifest import verified
from splitrt.edge.head import session
from splitrt.errors import ModelError, PacketError, SplitrtError

CHUNK = 64  # positions of a prompt that go through the layers at once
WARM_UPS = 2
LARGEST_WEIGHTS = 256 << 30  # bytes of one file


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """float32 rows [T, hidden] after the cut, and logits [vocab] of its exit for the last token."""

    rows: np.ndarray
    logits: np.ndarray


class Decoder:
    """The device's layers, and one conversation's state in them.

    n: positions that the first segment knows.  settled: positions whose rows at the cut were given
    out.  threads: of ONNX Runtime.  longest: positions to have room for, if fewer than the model's.
    A call that fails leaves the state as it was.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Language,
        *,
        threads: int = 1,
        longest: int | None = None,
        provider: str = "CPU",
    ) -> None:
        if provider != "CPU":
            raise ModelError(f"no provider {provider!r}\nhelp: language models run on CPU here")
        self.longest = manifest.longest if longest is None else longest
        if not 1 <= self.longest <= manifest.longest:
            wanted = f"1 to {manifest.longest}, or split the model again"
            raise ModelError(f"room for {longest} positions\nhelp: {wanted}")
        self.manifest, self.settled = manifest, 0
        self._places = {one.layer: place for place, one in enumerate(manifest.exits)}
        loaded = _Loader(Path(folder), manifest, threads)
        self._parts = [_Segment(loaded(one.segment), self.longest) for one in manifest.exits]
        self._exits = [loaded(one.file) for one in manifest.exits]
        self._voice = loaded(manifest.voice)
        self._warm_up()

    @property
    def n(self) -> int:
        """Positions that the first segment knows."""
        return self._parts[0].n

    def step(self, ids: Sequence[int]) -> Step:
        """Tokens through all layers, CHUNK at a time; one token is the same kernels every time."""
        tokens = self._proved(ids)
        if self.settled < self.n:
            raise SplitrtError(f"{self.n - self.settled} positions are owed\nhelp: settle() first")
        with _Undone(self):
            self._run(0, tokens)
            self._follow(len(self._parts) - 1)
            logits = self._logits(len(self._parts) - 1)
        return Step(self._given(), logits)

    def early(self, ids: Sequence[int], layer: int) -> np.ndarray:
        """Tokens up to that exit; its logits [vocab]. Deeper segments owe these positions."""
        place, tokens = self._place(layer), self._proved(ids)
        with _Undone(self):
            self._run(0, tokens)
            self._follow(place)
            return self._logits(place)

    def deeper(self, layer: int) -> np.ndarray:
        """The last token, and all that is owed there, on to that exit; its logits [vocab]."""
        place = self._place(layer)
        if self._parts[place].n == self.n and self._parts[place].row is None:
            raise SplitrtError("no token is under way\nhelp: call early() or step() first")
        with _Undone(self):
            self._follow(place)
            return self._logits(place)

    def settle(self) -> np.ndarray:
        """Run what deeper segments owe; float32 rows [T, hidden] of positions settled to n."""
        with _Undone(self):
            self._follow(len(self._parts) - 1)
        return self._given()

    def through(self, ids: Sequence[int]) -> dict[int, np.ndarray]:
        """Tokens through all layers: float32 rows [T, hidden] after each exit's layer."""
        tokens = self._proved(ids)
        found = {}
        with _Undone(self):
            self._run(0, tokens)
            for place, one in enumerate(self.manifest.exits):
                self._follow(place)
                found[one.layer] = self._parts[place].waiting[-len(tokens) :].copy()
        self._given()
        return found

    def truncate(self, n: int) -> None:
        """Forget all but the first n positions."""
        if not 0 <= n <= self.n:
            raise SplitrtError(f"{self.n} positions cannot become {n}\nhelp: from 0 to {self.n}")
        ends = [min(part.n, n) for part in self._parts]
        self.settled = min(self.settled, n)
        for part, end, taken in zip(self._parts, ends, [*ends[1:], self.settled], strict=True):
            part.row = part.row if part.n == end else None
            part.n, part.waiting = end, part.waiting[: end - taken]

    def _run(self, place: int, x: np.ndarray) -> None:
        """x through one segment; its rows wait for what follows it."""
        part = self._parts[place]
        rows = [part.run(x[start : start + CHUNK]) for start in range(0, len(x), CHUNK)]
        part.waiting = np.concatenate([part.waiting, *rows])
        part.row = rows[-1][-1:]

    def _follow(self, place: int) -> None:
        """What waits after each segment through the next one, up to that at `place`."""
        for before in range(place):
            if len(self._parts[before].waiting):
                self._run(before + 1, self._parts[before].waiting)
                self._parts[before].waiting = self._parts[before].waiting[:0]

    def _logits(self, place: int) -> np.ndarray:
        """Of the exit at `place`, for the last row there."""
        (ready,) = self._exits[place].run(["ready"], {"row": self._parts[place].row})
        (logits,) = self._voice.run(["logits"], {"ready": ready})
        return logits[0]

    def _given(self) -> np.ndarray:
        """The rows that wait at the cut, which are given out."""
        last = self._parts[-1]
        rows, last.waiting, self.settled = last.waiting, last.waiting[:0], last.n
        return rows

    def _place(self, layer: int) -> int:
        if layer not in self._places:
            there = ", ".join(map(str, self._places))
            raise SplitrtError(f"no exit after layer {layer}\nhelp: there are {there}")
        return self._places[layer]

    def _proved(self, ids: Sequence[int]) -> np.ndarray:
        """Tokens as int64 [T]; PacketError unless the model has them, and there is room."""
        tokens, vocab = np.asarray(ids), self.manifest.shape.vocab
        if tokens.ndim != 1 or not len(tokens) or tokens.dtype.kind not in "iu":
            raise PacketError(f"no tokens in {str(ids)[:40]!r}\nhelp: one whole number or more")
        if tokens.min() < 0 or tokens.max() >= vocab:
            wrong = tokens[(tokens < 0) | (tokens >= vocab)][0]
            raise PacketError(f"token {wrong} of {vocab}\nhelp: use the model's own tokenizer")
        if self.n + len(tokens) > self.longest:
            raise PacketError(
                f"{self.n} positions and {len(tokens)} more, room is for {self.longest}\n"
                "help: truncate(), or split the model with a larger --longest"
            )
        return tokens.astype(np.int64)

    def _warm_up(self) -> None:
        """First steps take long; and files that do not fit one another show here."""
        shape = self.manifest.shape
        try:
            for _ in range(WARM_UPS):
                found = self.step([0])
                self.truncate(0)
        except (RuntimeError, ValueError, TypeError) as error:  # of ONNX Runtime and numpy
            raise ModelError(f"the files of {self.manifest.name} do not fit: {error}") from error
        if found.rows.shape != (1, shape.hidden) or found.logits.shape != (shape.vocab,):
            raise ModelError(f"{self.manifest.name} gives other sizes than model.toml names")


def heard(
    folder: str | Path, manifest: Language, layer: int, rows: np.ndarray, *, threads: int = 1
) -> Iterator[np.ndarray]:
    """What the exit after that layer says of each row [hidden], by itself: logits [vocab]."""
    loaded = _Loader(Path(folder), manifest, threads)
    exit, voice = loaded(manifest.exit(layer).file), loaded(manifest.voice)
    for row in rows:
        (ready,) = exit.run(["ready"], {"row": row[None]})
        (logits,) = voice.run(["logits"], {"ready": ready})
        yield logits[0]


class _Undone:
    """What was done inside is undone if it fails."""

    def __init__(self, decoder: Decoder) -> None:
        self._parts = decoder._parts
        self._before = [(part.n, part.waiting, part.row) for part in self._parts]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for part, before in zip(self._parts, self._before, strict=True):
                part.n, part.waiting, part.row = before


class _Segment:
    """Layers between two exits with their K/V buffers.

    n: positions that they hold.  waiting: rows behind them that nothing took yet.  row: the last.
    """

    def __init__(self, session: ort.InferenceSession, longest: int) -> None:
        self._session, self._binding = session, session.io_binding()
        self._last, self._total = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self._takes, self._gives, self._size = _ends(session)
        for name, array in (("last", self._last), ("total", self._total)):
            self._binding.bind_ortvalue_input(name, _shared(array))
        # ONNX Runtime borrows the arrays: they must live as long as the binding.
        self._buffers = {n: np.zeros(s, np.float32) for n, s in _buffers(session, longest)}
        for name, buffer in self._buffers.items():
            self._binding.bind_ortvalue_input(name, _shared(buffer))
            self._binding.bind_ortvalue_output(f"{name}.after", _shared(buffer))
        self.n = 0
        self.waiting = np.zeros((0, self._size), np.float32)
        self.row: np.ndarray | None = None
        self._x = self._rows = np.zeros(0)  # what is bound

    def run(self, x: np.ndarray) -> np.ndarray:
        """Ids [T] or rows [T, hidden] at the next positions -> rows [T, hidden], their own copy."""
        if self._x.shape != x.shape:
            self._bind(x)
        self._x[:] = x
        self._total[0] = self.n + len(x)
        self._last[0] = self._total[0] - 1
        self._session.run_with_iobinding(self._binding)
        self.n += len(x)
        return self._rows.copy()

    def _bind(self, x: np.ndarray) -> None:
        self._x, self._rows = np.zeros_like(x), np.zeros((len(x), self._size), np.float32)
        self._binding.bind_ortvalue_input(self._takes, _shared(self._x))
        self._binding.bind_ortvalue_output(self._gives, _shared(self._rows))


def _ends(session: ort.InferenceSession) -> tuple[str, str, int]:
    """The names of what goes in and out, and the numbers of a row."""
    takes, gives = session.get_inputs()[0], session.get_outputs()[0]
    return takes.name, gives.name, int(gives.shape[-1])


def _buffers(session: ort.InferenceSession, longest: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The K/V buffers of a session, by their names."""
    for one in session.get_inputs():
        if one.name.startswith(("keys.", "values.")):
            _, heads, _, head = one.shape
            yield one.name, (1, int(heads), longest, int(head))


def _shared(array: np.ndarray) -> ort.OrtValue:
    """The array as ONNX Runtime takes it, in the same memory."""
    return ort.OrtValue.ortvalue_from_numpy(array)


class _Loader:
    """Sessions of a folder's graphs, each with the weights beside it."""

    def __init__(self, folder: Path, manifest: Language, threads: int) -> None:
        self.folder, self.manifest, self.threads = folder, manifest, threads

    def __call__(self, name: str) -> ort.InferenceSession:
        path = verified(self.folder, self.manifest, name)
        weights = path.with_suffix(".bin").name
        if weights not in self.manifest.files:
            return session(path, self.threads, "CPU")
        verified(self.folder, self.manifest, weights, largest=LARGEST_WEIGHTS)
        return session(path, self.threads, "CPU", weights=weights)
