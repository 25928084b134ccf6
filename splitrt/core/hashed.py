"""A file's sha256; while `once` lasts, of one that did not change since not read again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeAlias

BLOCK = 1 << 20  # bytes
Known: TypeAlias = "dict[tuple[int, ...], str]"

_known: ContextVar[Known | None] = ContextVar("known", default=None)


def hashed(path: Path) -> str:
    """In hexadecimal digits."""
    known, state = _known.get(), _state(path)
    if known is not None and state in known:
        return known[state]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if known is not None:
        known[state] = digest.hexdigest()
    return digest.hexdigest()


@contextmanager
def once(known: Known) -> Iterator[None]:
    """For this thread: what is in `known` need not be read, and what is read comes into it."""
    token = _known.set(known)
    try:
        yield
    finally:
        _known.reset(token)


def _state(path: Path) -> tuple[int, ...]:
    """Another one as soon as the file is written to, or is another file."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
