"""The hub's files, for spokes that fetch them by their sha256; no other file is ever opened."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from splitrt.core.shards import Shards
from splitrt.errors import ModelError
from splitrt.star.call import PIECE
from splitrt.wire import star_pb2 as wire


class Depot:
    """The files that a star's manifest names."""

    def __init__(self, folder: str | Path, manifest: Shards) -> None:
        self._paths = {
            bytes.fromhex(sha256): Path(folder) / one.folder / name
            for one in manifest.devices
            for name, sha256 in one.files.items()
        }

    def path(self, sha256: bytes) -> Path | None:
        """Of the file with that sha256; None: the manifest names none."""
        return self._paths.get(sha256)

    async def pieces(self, path: Path, offset: int) -> AsyncIterator[wire.Piece]:
        """From there to the end; one without data, but with the size, if that is the end.

        ModelError if the file is not there.
        """
        file = await asyncio.to_thread(_opened, path)
        try:
            size = os.fstat(file.fileno()).st_size
            data = await asyncio.to_thread(_at, file, offset)
            yield wire.Piece(size=size, data=data)
            while data:
                offset += len(data)
                data = await asyncio.to_thread(_at, file, offset)
                if data:
                    yield wire.Piece(data=data)
        finally:
            file.close()


def _opened(path: Path) -> BinaryIO:
    if path.is_symlink() or not path.is_file():
        told = f"the hub has no {path.parent.name}/{path.name}"
        raise ModelError(f"{told}\nhelp: copy the whole directory there")
    return path.open("rb", buffering=0)


def _at(file: BinaryIO, offset: int) -> bytes:
    return os.pread(file.fileno(), PIECE, min(offset, 1 << 62))
