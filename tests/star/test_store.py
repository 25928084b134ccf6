"""A spoke's files: fetched once, gone on with after a cut, proved, and shared by processes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitrt import LinkDown, ModelError, PacketError, SplitrtError
from splitrt.core.manifest import NAME
from splitrt.core.shards import Device, Shards
from splitrt.edge.head import session
from splitrt.star.store import Store, home
from splitrt.star.work import wanted
from tests.star.toy import LONG, ROOT, until

STEP = 1000  # bytes of a piece
NEVER = threading.Event()


class Files:
    """A source of a device's files that counts, and breaks off where it is told to."""

    def __init__(self, folder: Path, one: Device) -> None:
        self.content = {
            sha256: (folder / one.folder / name).read_bytes() for name, sha256 in one.files.items()
        }
        self.asked: list[tuple[str, int]] = []
        self.sent = 0
        self.left = 1 << 40  # bytes until it breaks off

    def __call__(self, sha256: str, offset: int) -> Iterator[tuple[int, bytes]]:
        self.asked.append((sha256, offset))
        whole = self.content[sha256]
        yield len(whole), b""
        for start in range(offset, len(whole), STEP):
            piece = whole[start : start + STEP]
            if len(piece) > self.left:
                raise LinkDown("the link is cut")
            self.left -= len(piece)
            self.sent += len(piece)
            yield 0, piece


@pytest.fixture
def one(star: Shards) -> Device:
    return star.devices[1]


@pytest.fixture
def files(star_dir: Path, one: Device) -> Files:
    return Files(star_dir, one)


def kept(tmp_path: Path, star_dir: Path) -> tuple[Store, Path]:
    store = Store(tmp_path / "store")
    return store, store.model((star_dir / NAME).read_bytes())[0]


def test_a_shard_is_here_by_plain_names_and_loads(tmp_path, star_dir, star, one, files):
    """ONNX Runtime finds the weights beside the graph; links to elsewhere it would refuse."""
    store, folder = kept(tmp_path, star_dir)
    store.fill(folder, one, one.files, files, NEVER)
    for name in one.files:
        found = folder / one.folder / name
        assert not found.is_symlink()
        assert found.read_bytes() == (star_dir / one.folder / name).read_bytes()
    session(folder / one.folder / "feed-0.onnx", 1, "CPU", weights="feed-0.bin")
    assert Shards.load(folder) == star


def test_what_is_here_is_not_fetched_again_nor_what_is_alike(tmp_path, star_dir, star, files):
    store, folder = kept(tmp_path, star_dir)
    store.fill(folder, star.devices[1], wanted(star, 1), files, NEVER)
    assert all(offset == 0 for _, offset in files.asked)
    del files.asked[:]
    Store(tmp_path / "store").fill(folder, star.devices[1], wanted(star, 1), files, NEVER)
    assert files.asked == []
    other = star.devices[2]
    same = {name for name in other.files if other.files[name] in star.devices[1].files.values()}
    assert "turns.safetensors" in same
    store.fill(folder, other, same, files, NEVER)
    assert files.asked == []
    assert {path.name for path in (folder / other.folder).iterdir()} == same


@pytest.mark.parametrize("cut", [0, 1, 999, 1000, 5500, 20_000])
def test_a_cut_file_is_gone_on_with(tmp_path, star_dir, one, files, cut):
    store, folder = kept(tmp_path, star_dir)
    name = "feed-0.bin"
    size = len(files.content[one.files[name]])
    files.left = cut
    with pytest.raises(LinkDown):
        store.fill(folder, one, [name], files, NEVER)
    assert not (folder / one.folder / name).exists()
    before, files.left = files.sent, 1 << 40
    Store(tmp_path / "store").fill(folder, one, [name], files, NEVER)
    assert files.sent == size and files.asked[-1] == (one.files[name], before)


def test_a_part_of_another_file_is_fetched_from_the_start(tmp_path, star_dir, one, files):
    store, folder = kept(tmp_path, star_dir)
    name = "feed-0.bin"
    sha256 = one.files[name]
    for wrong in (b"x" * 100, b"x" * (len(files.content[sha256]) + 5)):
        (tmp_path / "store" / "files" / f"{sha256}.part").write_bytes(wrong)
        store.fill(folder, one, [name], files, NEVER)
        assert files.asked[-2:] == [(sha256, len(wrong)), (sha256, 0)]
        (folder / one.folder / name).unlink()
        (tmp_path / "store" / "files" / sha256).unlink()


def test_a_changed_file_is_fetched_again(tmp_path, star_dir, one, files):
    store, folder = kept(tmp_path, star_dir)
    store.fill(folder, one, ["feed-0.bin"], files, NEVER)
    path = folder / one.folder / "feed-0.bin"
    right = path.read_bytes()
    path.write_bytes(right[:-1] + b"\0\0")
    store.fill(folder, one, ["feed-0.bin"], files, NEVER)
    assert path.read_bytes() == right and len(files.asked) == 2


def test_a_link_in_the_files_place_is_not_followed(tmp_path, star_dir, one, files):
    store, folder = kept(tmp_path, star_dir)
    (folder / one.folder).mkdir()
    (folder / one.folder / "feed-0.bin").symlink_to(star_dir / one.folder / "feed-0.bin")
    store.fill(folder, one, ["feed-0.bin"], files, NEVER)
    assert not (folder / one.folder / "feed-0.bin").is_symlink() and len(files.asked) == 1


def test_a_wrong_hash_is_tried_once_more_and_nothing_of_it_stays(tmp_path, star_dir, one, files):
    store, folder = kept(tmp_path, star_dir)
    sha256 = one.files["feed-0.bin"]
    files.content[sha256] = b"x" * 5000
    with pytest.raises(ModelError, match="has not the sha256"):
        store.fill(folder, one, ["feed-0.bin"], files, NEVER)
    assert files.asked == [(sha256, 0)] * 2
    assert list((folder / one.folder).iterdir()) == []
    assert all(path.stat().st_size == 0 for path in (tmp_path / "store" / "files").iterdir())


@pytest.mark.parametrize(
    ("size", "error", "told"),
    [(1 << 50, PacketError, "GiB at most"), (4 << 30, SplitrtError, "has room for")],
)
def test_a_huge_announced_size_takes_no_room(
    tmp_path, star_dir, one, monkeypatch, size, error, told
):
    free = shutil.disk_usage(tmp_path)._replace(free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    store, folder = kept(tmp_path, star_dir)
    with pytest.raises(error, match=told):
        store.fill(folder, one, ["feed-0.bin"], lambda *_: iter([(size, b"x")]), NEVER)
    part = tmp_path / "store" / "files" / f"{one.files['feed-0.bin']}.part"
    assert part.stat().st_size == 0


def test_more_than_was_announced_is_not_written(tmp_path, star_dir, one):
    store, folder = kept(tmp_path, star_dir)
    written = 0

    def endless(sha256: str, offset: int) -> Iterator[tuple[int, bytes]]:
        nonlocal written
        while True:
            written += 1
            yield 5000, bytes(1000)

    with pytest.raises(ModelError):
        store.fill(folder, one, ["feed-0.bin"], endless, NEVER)
    assert written == 12  # one too many, twice


def test_it_ends_when_it_is_told_to(tmp_path, star_dir, one, files):
    store, folder = kept(tmp_path, star_dir)
    over = threading.Event()

    def told(sha256: str, offset: int) -> Iterator[tuple[int, bytes]]:
        for piece in files(sha256, offset):
            if files.sent > 3000:
                over.set()
            yield piece

    with pytest.raises(LinkDown):
        store.fill(folder, one, wanted(Shards.load(folder), 1), told, over)
    assert len(files.asked) < 8


def test_other_models_stay(tmp_path, star_dir, one, files):
    store, folder = kept(tmp_path, star_dir)
    other = folder.parent / ("0" * 64) / "spoke-1"
    other.mkdir(parents=True)
    (other / "feed-0.bin").write_bytes(b"another's")
    (tmp_path / "store" / "files" / ("1" * 64)).write_bytes(b"another's")
    store.fill(folder, one, one.files, files, NEVER)
    assert (other / "feed-0.bin").read_bytes() == b"another's"
    assert (tmp_path / "store" / "files" / ("1" * 64)).exists()


HALF = """
import itertools, sys, threading, time
from pathlib import Path
from splitrt.core.manifest import NAME
from splitrt.star.store import Store
from tests.star.test_store import Files
origin, to = map(Path, sys.argv[1:])
store = Store(to)
folder, star = store.model((origin / NAME).read_bytes())
one = star.devices[1]
def half(sha256, offset):
    yield from itertools.islice(Files(origin, one)(sha256, offset), 4)
    print("half", flush=True)
    time.sleep(600)
store.fill(folder, one, ["feed-0.bin"], half, threading.Event())
"""


def test_a_killed_process_leaves_what_it_had_and_no_lock(tmp_path, star_dir, one, files):
    store, folder = kept(tmp_path, star_dir)
    command = [sys.executable, "-c", HALF, str(star_dir), str(tmp_path / "store")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"half\n"
        process.kill()
    store.fill(folder, one, ["feed-0.bin"], files, NEVER)
    assert files.asked == [(one.files["feed-0.bin"], 3 * STEP)]


BOTH = """
import sys, threading
from pathlib import Path
from splitrt.core.manifest import NAME
from splitrt.star.store import Store
from tests.star.test_store import Files
origin, to = map(Path, sys.argv[1:])
store = Store(to)
folder, star = store.model((origin / NAME).read_bytes())
one, never = star.devices[1], threading.Event()
source = Files(origin, one)
print("ready", flush=True)
sys.stdin.readline()
store.fill(folder, one, one.files, source, never)
print(source.sent)
"""


def test_processes_share_a_store_and_fetch_each_byte_once(tmp_path, star_dir, star, one):
    command = [sys.executable, "-c", BOTH, str(star_dir), str(tmp_path / "store")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) for _ in range(3)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    sent = [int(process.communicate("\n", timeout=LONG)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0, 0]
    folder = tmp_path / "store" / "models" / star.digest.hex() / one.folder
    contents = {sha256: (folder / name).read_bytes() for name, sha256 in one.files.items()}
    assert all(hashlib.sha256(raw).hexdigest() == sha256 for sha256, raw in contents.items())
    assert {path.name for path in folder.iterdir()} == set(one.files)
    assert sum(sent) == sum(map(len, contents.values()))
    assert not list((tmp_path / "store" / "files").glob("*.part"))


def test_who_waits_for_anothers_fetching_can_be_told_to_stop(tmp_path, star_dir, one, files):
    store, folder = kept(tmp_path, star_dir)
    holding, over = threading.Event(), threading.Event()

    def held(sha256: str, offset: int) -> Iterator[tuple[int, bytes]]:
        holding.set()
        over.wait(LONG)
        yield from files(sha256, offset)

    first = threading.Thread(target=store.fill, args=(folder, one, ["feed-0.bin"], held, NEVER))
    first.start()
    assert holding.wait(LONG)
    told = threading.Event()
    threading.Timer(0.3, told.set).start()
    with pytest.raises(LinkDown, match="not wanted"):
        Store(tmp_path / "store").fill(folder, one, ["feed-0.bin"], files, told)
    over.set()
    until(lambda: (folder / one.folder / "feed-0.bin").exists(), "the first did not go on")
    first.join()


def test_where_links_cannot_be_a_file_is_copied(tmp_path, star_dir, one, files, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    store, folder = kept(tmp_path, star_dir)
    store.fill(folder, one, ["feed-0.bin"], files, NEVER)
    assert (folder / one.folder / "feed-0.bin").stat().st_nlink == 1


def test_files_lie_in_the_users_cache_unless_told(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "splitrt" / "star"
    for wrong in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", wrong)
        assert home() == Path.home() / ".cache" / "splitrt" / "star"
