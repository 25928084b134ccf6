"""What was sent for every position of a conversation: kept, so that it can be sent again.

The bytes and not what they were made of: computed once more, a row would not be quite the same.
"""

from __future__ import annotations

from tempfile import SpooledTemporaryFile

from splitrt.core.rows import BEGIN, chained

SPILL = 8 << 20  # bytes in memory; more are in a temporary file without a name


class Log:
    """The payload of `n` positions, `size` bytes each, and the hash after every one."""

    def __init__(self, size: int, spill: int = SPILL) -> None:
        self.size, self.n = size, 0
        self._hashes = bytearray(BEGIN)
        self._file = SpooledTemporaryFile(max_size=spill)  # noqa: SIM115, closed by `close`

    @property
    def on_disk(self) -> bool:
        """Whether it has become too large for the memory."""
        return bool(getattr(self._file, "_rolled", False))

    def append(self, payload: bytes) -> None:
        """Rows for the positions from `n` on."""
        found = chained(self.at(self.n), payload, self.size)
        self._file.seek(self.n * self.size)
        self._file.write(payload)
        self._hashes += b"".join(found)
        self.n += len(found)

    def read(self, start: int, stop: int) -> bytes:
        """The payload of the positions start to stop - 1."""
        self._file.seek(start * self.size)
        return self._file.read((stop - start) * self.size)

    def at(self, n: int) -> bytes:
        """16 bytes: the hash of the first n positions."""
        return bytes(self._hashes[len(BEGIN) * n : len(BEGIN) * (n + 1)])

    def truncate(self, n: int) -> None:
        """Forget the positions from n on."""
        self.n = min(self.n, n)
        del self._hashes[len(BEGIN) * (self.n + 1) :]

    def close(self) -> None:
        self._file.close()
