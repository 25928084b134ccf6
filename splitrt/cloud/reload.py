"""A model directory that changed: proved and loaded beside the one that serves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from splitrt.cloud.tail import Tail
from splitrt.core.manifest import prove
from splitrt.errors import ModelError

logger = logging.getLogger(__name__)

POLL = 1.0  # seconds between two looks at the files


def renewed(old: Tail, folders: Sequence[Path], *, room: int, threads: int | None) -> Tail | None:
    """The tail of what lies in the folders now; None if that is what `old` was made of.

    room: bytes that a message may have.  ModelError if it cannot be served; then `old` is as it
    was.
    """
    before = stamp(folders)
    manifests = [prove(folder) for folder in folders]
    if [manifest.digest for manifest in manifests] == list(old.branches):
        return None
    first, *others = folders
    tail = Tail(first, manifests[0], others=others, device=str(old.device), threads=threads)
    if stamp(folders) != before:
        raise ModelError(f"{first} changed while it was loaded\nhelp: load it again when it rests")
    if tail.largest_frame > room:
        raise ModelError(
            f"{first} has frames of up to {tail.largest_frame} bytes, and this server was started "
            f"for {room}\nhelp: start it again"
        )
    tail.succeed(old)
    return tail


def stamp(folders: Sequence[Path]) -> list[tuple[str, int, int, int]]:
    """What changes when a file does: (path, inode, size, time) of each."""
    found = []
    for folder in folders:
        try:
            files = sorted(folder.iterdir())
            stats = [path.stat() for path in files]
        except OSError:  # gone between two looks: that is a change, too
            continue
        found += [
            (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
            for path, stat in zip(files, stats, strict=True)
        ]
    return found


def watch(folders: Sequence[Path], over: threading.Event, reload: Callable[[], None]) -> None:
    """Call `reload` once whenever the files changed and rest again; until `over`."""
    tried = seen = stamp(folders)
    while not over.wait(POLL):
        now = stamp(folders)
        if now == seen and now != tried:
            tried = now
            reload()
        seen = now
