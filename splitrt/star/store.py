"""A spoke's files: each once, by its sha256, and by its plain name in the folder of its shard.

FOLDER/files/SHA256             what was fetched and proved; .part: as much of it as is here
FOLDER/models/SHA256/model.toml, .../spoke-1/feed-0.onnx     the same files, by hard links
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from splitrt.core.manifest import LARGEST_FILE, NAME
from splitrt.core.shards import Device, Shards
from splitrt.errors import LinkDown, ModelError, PacketError, SplitrtError

Source: TypeAlias = "Callable[[str, int], Iterator[tuple[int, bytes]]]"
SPARE = 16 << 20  # bytes that stay free on the disk
BLOCK = 1 << 20  # bytes read at once
AGAIN = 0.1  # seconds between two looks at another process's fetching


def home() -> Path:
    """Where files are kept unless told: $XDG_CACHE_HOME/splitrt/star."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache.startswith("/") else Path.home() / ".cache") / "splitrt" / "star"


class Store:
    """Files in a folder that several processes may share; what is there is never taken on trust.

    A source gives a file from an offset on, as (bytes of the whole file, next bytes). What was
    fetched when a source breaks off is kept, and is not fetched again. Nothing is deleted but what
    has not its own hash.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = home() if folder is None else Path(folder)
        self._known: dict[tuple[int, ...], str] = {}  # what was hashed as it still lies there
        with self._writing():
            for one in ("files", "models"):
                (self.folder / one).mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def free(self) -> int:
        """Bytes that files may take."""
        return max(0, shutil.disk_usage(self.folder).free - SPARE)

    def model(self, text: bytes) -> tuple[Path, Shards]:
        """A folder for the star of that model.toml, and what it says; ModelError if it is wrong."""
        folder = self.folder / "models" / hashlib.sha256(text).hexdigest()
        manifest = Shards.read(text, folder / NAME)
        with self._writing():
            folder.mkdir(exist_ok=True, mode=0o700)
            if not self._is(folder / NAME, folder.name):
                with _exchanged(folder / NAME) as fresh:
                    fresh.write_bytes(text)
        return folder, manifest

    def fill(
        self,
        folder: Path,
        one: Device,
        names: Iterable[str],
        source: Source,
        over: threading.Event,
    ) -> None:
        """Have those files of a device in its folder, each proved; fetch what is missing.

        LinkDown if the source breaks off or `over` is set, ModelError for a file that is another
        than the manifest says, SplitrtError if the disk is full.
        """
        with self._writing():
            (folder / one.folder).mkdir(exist_ok=True, mode=0o700)
            for name in names:
                if over.is_set():
                    raise LinkDown(f"{name} is not wanted any more")
                self._put(folder / one.folder / name, one.files[name], source, over)

    def _put(self, path: Path, sha256: str, source: Source, over: threading.Event) -> None:
        if self._is(path, sha256):
            return
        kept = self.folder / "files" / sha256
        if not self._is(kept, sha256):
            with _alone(kept.with_suffix(".part"), over) as part:
                if not self._is(kept, sha256):  # nobody else fetched it meanwhile
                    self._fetch(part, sha256, source, over)
                    self._known[_key(os.fstat(part.fileno()))] = sha256
                    os.replace(part.name, kept)
                else:
                    os.unlink(part.name)
        with _exchanged(path) as fresh:
            try:
                os.link(kept, fresh)
            except OSError:  # a file system without links
                shutil.copyfile(kept, fresh)

    def _fetch(self, part: BinaryIO, sha256: str, source: Source, over: threading.Event) -> None:
        """From where it was left; from the start if that gives another file."""
        for _ in range(2):
            digest, have = _read(part)
            size = have
            for turn, (whole, data) in enumerate(source(sha256, have)):
                if turn == 0:
                    size = whole
                    self._room(size, have)
                have += len(data)
                if have > size or over.is_set():
                    break
                part.write(data)
                part.flush()  # what a killed process had is gone on with
                digest.update(data)
            if have < size:
                raise LinkDown(
                    f"a file ended after {have} of {size} bytes\nhelp: it is tried again"
                )
            if have == size and digest.hexdigest() == sha256:
                os.fsync(part.fileno())
                return
            part.truncate(0)
        raise ModelError(
            f"a file has not the sha256 {sha256[:12]}… of the manifest, twice\n"
            "help: `splitrt check` the star's directory on the hub"
        )

    def _room(self, size: int, have: int) -> None:
        if size > LARGEST_FILE:
            raise PacketError(f"a file of {size} bytes\nhelp: {LARGEST_FILE >> 30} GiB at most")
        if size - have > self.free:
            raise SplitrtError(
                f"{self.folder} has room for {self.free >> 20} MiB more, a file needs "
                f"{(size - have) >> 20} MiB\nhelp: --store on a larger disk, or delete old models"
            )

    def _is(self, path: Path, sha256: str) -> bool:
        """Whether that is a plain file of that content; read once as long as nobody touches it."""
        if path.is_symlink() or not path.is_file():
            return False
        key = _key(path.stat())
        if key not in self._known:
            with path.open("rb") as file:
                self._known[key] = _read(file)[0].hexdigest()
        return self._known[key] == sha256

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self.folder
            raise SplitrtError(
                f"{where}: {error.strerror}\nhelp: --store where this user may write"
            ) from error


def _key(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _alone(path: Path, over: threading.Event) -> Iterator[BinaryIO]:
    """That file, open to read and append, for nobody else; it may have been renamed by others."""
    while True:
        with path.open("a+b") as file:
            while not _locked(file):
                if over.wait(AGAIN):
                    raise LinkDown(f"{path.name} is not wanted any more")
            if _same(file, path):
                yield file
                return


def _same(file: BinaryIO, path: Path) -> bool:
    """Whether that is still the file's name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the file, or the process
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _exchanged(path: Path) -> Iterator[Path]:
    """Where to write what then is at `path`, at once and whole."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    fresh.unlink(missing_ok=True)
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)  # of two links to one file neither replaces the other


def _read(file: BinaryIO) -> tuple[hashlib._Hash, int]:
    """The hash of a file from its start, to be gone on with, and its length."""
    digest, length = hashlib.sha256(), 0
    file.seek(0)
    while block := file.read(BLOCK):
        digest.update(block)
        length += len(block)
    return digest, length
