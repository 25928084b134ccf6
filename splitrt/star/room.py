"""What a device gives, and what its shards will take of its memory and its time."""

from __future__ import annotations

import logging
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splitrt.core import shards
from splitrt.core.shards import PLAINLY, TURNS, Device, Shards, tiles, voice
from splitrt.errors import ModelError
from splitrt.star.block import Rows, Shelf, weighed
from splitrt.star.shard import EVEN, Stack
from splitrt.star.window import staying

logger = logging.getLogger(__name__)

MB = 10**6
PAIR = 2  # tiles of the LM head at a time, where layers have a window
RUNTIME = 16 * MB  # ONNX Runtime's own, from the first session on
SESSION = MB // 4  # of each session
# Bytes in memory for one in the file, as measured. Codes are laid out anew, scales are kept twice,
# and sums of blocks are added; fp16 becomes fp32, and what that leaves behind when it is packed.
GROWN = {"fp32": 1.0, "fp16": 2.0, "int8": 1.25, "int4": 1.5}
FOLDED = 2.5  # packed fp16
FEW, ROUNDS = 4, 5  # blocks and rounds that are measured


@dataclass(frozen=True, slots=True)
class Room:
    """What a device gives. threads: of ONNX Runtime.  longest: positions of a text.

    window: blocks of weights that are loaded at once.  memory: bytes; then as many as fit into it.
    """

    threads: int = 1
    longest: int | None = None
    window: int | None = None
    memory: int | None = None

    @property
    def tiles(self) -> int | None:
        """Of the LM head, loaded at once; None: all."""
        return None if self.window is None and self.memory is None else PAIR

    def stack(
        self,
        folder: str | Path,
        manifest: Shards,
        held: Sequence[int],
        *,
        hub: bool = False,
        longest: int | None = None,
        base: int | None = None,
    ) -> Stack:
        """Those shards, and whichever are held later; each time the forecast is logged.

        longest: positions, as all devices have agreed.  base: bytes that the process had before
        anything was loaded; by default what it has now.
        """
        longest, base = longest or self.longest, base or resident()

        def size(held: Sequence[int]) -> int | None:
            found = self.window
            if self.memory is not None:
                found = widest(
                    self.memory, folder, manifest, held, hub=hub, longest=longest, base=base
                )
            told = forecast(
                folder, manifest, held,
                hub=hub, longest=longest, window=found, threads=self.threads, base=base,
            )  # fmt: skip
            logger.info("shards %s: %s", ", ".join(map(str, held)), told)
            return found

        return Stack(folder, manifest, held, threads=self.threads, longest=longest, window=size)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Memory in bytes and time in seconds a token, of one device.

    base: of the process as it is.  known: K/V and tables of turns.  weights: of the layers' blocks
    that are loaded at once.  ends: the LM head's.  streamed: bytes of files that pass through the
    window for each token.  compute: with all weights resident.  cached, cold: what loading the
    streamed weights takes if the system keeps their files in memory, and if it does not.
    """

    base: int
    known: int
    weights: int
    ends: int
    streamed: int
    compute: float
    cached: float
    cold: float

    @property
    def total(self) -> int:
        """The most that the process will take."""
        return self.base + self.known + self.weights + self.ends

    def __str__(self) -> str:
        parts = [("process", self.base), ("keys and values", self.known)]
        parts += [("weights", self.weights), ("ends", self.ends)]
        told = ", ".join(f"{name} {size / MB:.0f}" for name, size in parts if size)
        text = f"{self.total / MB:.0f} MB: {told}; {1e3 * self.compute:.1f} ms a token"
        if not self.streamed:
            return f"{text}, all weights resident"
        return (
            f"{text} were all weights resident; {self.streamed / MB:.0f} MB of them stream, "
            + " and ".join(
                f"the {name} gives {self.streamed / MB / seconds:.0f} MB/s: "
                f"{max(1.0, seconds / self.compute):.1f} times slower"
                for name, seconds in (("loader", self.cached), ("disk", self.cold))
            )
        )


def forecast(
    folder: str | Path,
    manifest: Shards,
    held: Sequence[int],
    *,
    hub: bool = False,
    longest: int | None = None,
    window: int | None = None,
    threads: int = 1,
    base: int | None = None,
) -> Forecast:
    """What `Stack`, and with hub `Ends`, will take; the first layer is loaded and run to see.

    base: bytes of the process without them; by default what it has now.
    """
    files = _Files(Path(folder), manifest, held, hub, longest or manifest.longest)
    passing = files.passing(window)
    base, one = base or resident(), manifest.devices[held[0]]  # before anything is loaded
    bare = manifest.weights in PLAINLY and window is not None
    shelf = Shelf(Path(folder) / one.folder, one, threads, bare)
    compute, cached, cold = _speeds(shelf, manifest.shape.layers, manifest.shape.hidden)
    whole, streamed = sum(files.blocks), sum(passing)
    return Forecast(
        base,
        files.known,
        files.weights(window),
        files.ends(window),
        streamed,
        whole * compute,
        streamed * cached,
        streamed * cold,
    )


def widest(
    memory: int,
    folder: str | Path,
    manifest: Shards,
    held: Sequence[int],
    *,
    hub: bool = False,
    longest: int | None = None,
    base: int | None = None,
) -> int | None:
    """The largest window that fits into so many bytes; None: all weights do, without one.

    ModelError if none does; it names how much would do.
    """
    files = _Files(Path(folder), manifest, held, hub, longest or manifest.longest)
    base = (base or resident()) + files.known

    def needs(window: int | None) -> int:
        return base + files.weights(window) + files.ends(window)

    if needs(None) <= memory:
        return None
    fitting = [size for size in range(1, len(files.blocks)) if needs(size) <= memory]
    if not fitting:
        raise ModelError(
            f"{memory / MB:.0f} MB are too few, the smallest window takes {needs(1) / MB:.0f}\n"
            "help: more memory, more devices, or a model split with --longest or --weights smaller"
        )
    return fitting[-1]


def peak() -> int:
    """The most memory that this process had at any time, in bytes."""
    found = _status("VmHWM")
    if found is not None:
        return found
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def resident() -> int:
    """The memory that this process has now, in bytes; its peak, where the system does not tell."""
    found = _status("VmRSS")
    return peak() if found is None else found


def _status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith(f"{key}:")]
    return int(found[0].split()[1]) << 10 if found else None


def _speeds(shelf: Shelf, layers: int, hidden: int) -> tuple[float, float, float]:
    """Seconds a byte: of computing one row, of loading from memory, of reading from the disk.

    Of a few feed-forward networks in turn, so that they do not stay in the processor's cache.
    """
    names = [(shards.feed(i), shards.BARE_FEED) for i in range(min(layers, FEW))]
    paths = [shelf.folder / weighed(graph) for graph, _ in names]
    size = sum(path.stat().st_size for path in paths)
    for one in names:
        shelf.name(*one)
    start = time.perf_counter()
    blocks = [shelf.load(*one, {}) for one in names]
    cached = time.perf_counter() - start
    rows, rounds = Rows.of(1, hidden, hidden), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for block in blocks:
            block.run(rows)
        rounds.append(time.perf_counter() - start)
    del blocks, block
    return statistics.median(rounds) / size, cached / size, cached / size + _cold(paths[0])


def _cold(path: Path) -> float:
    """Seconds a byte to read a file that the system has let go of, where it can be told to."""
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while file.read(MB):
            pass
        return (time.perf_counter() - start) / path.stat().st_size


class _Files:
    """Sizes of what a device holds, from its files."""

    def __init__(
        self, folder: Path, manifest: Shards, held: Sequence[int], hub: bool, longest: int
    ) -> None:
        shape, self._kind = manifest.shape, manifest.weights
        devices = [manifest.devices[number] for number in held]
        names = [
            weighed(graph(i))
            for i in range(shape.layers)
            for graph in (shards.attention, shards.feed)
        ]
        self.blocks = [sum(_size(folder, one, name) for one in devices) for name in names]
        heads = sum(one.heads for one in devices)
        size = -(-shape.head // EVEN) * EVEN
        self.known = 8 * shape.layers * heads * longest * size + _size(folder, devices[0], TURNS)
        self._sessions = len(devices) * (2 if self._kind in shards.PLAINLY else len(names))
        self._tiles = [
            _size(folder, manifest.devices[0], weighed(voice(i)))
            for i in range(len(tiles(shape, manifest.weights)) if hub else 0)
        ]

    def passing(self, window: int | None) -> list[int]:
        """Bytes of the files that come and go."""
        count = len(self.blocks)
        stay = staying(count, count if window is None else window)
        return [size for place, size in enumerate(self.blocks) if place not in stay]

    def weights(self, window: int | None) -> int:
        """Of the layers' blocks, in memory."""
        passing = sorted(self.passing(window), reverse=True)
        staying = len(self.blocks) - len(passing)
        room = 0 if window is None else min(window, len(self.blocks)) - staying
        loaded = sum(self.blocks) - sum(passing) + sum(passing[:room])
        more = max(self.blocks) // 2 + RUNTIME + self._sessions * SESSION
        return int(loaded * self._grown(window)) + more

    def ends(self, window: int | None) -> int:
        """Of the LM head, in memory."""
        most = self._tiles if window is None else sorted(self._tiles)[-PAIR:]
        bare = self._kind in PLAINLY and window is not None
        mapped = 0 if bare or not most else max(most)  # while it is packed
        return int(sum(most) * self._grown(window)) + mapped

    def _grown(self, window: int | None) -> float:
        packed = self._kind == "fp16" and window is None
        return FOLDED if packed else GROWN[self._kind]


def _size(folder: Path, one: Device, name: str) -> int:
    path = folder / one.folder / name
    if name not in one.files or not path.is_file():
        raise ModelError(f"{path} is missing\nhelp: copy the whole directory")
    return path.stat().st_size
