"""Files are hashed once while that is wanted, and again as soon as they may have changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from splitrt.core import hashed as module
from splitrt.core.hashed import hashed, once


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(module.BLOCK + 7))
    return path


def wanted(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_hash_is_the_files(file):
    assert hashed(file) == wanted(file)
    with once({}):
        assert hashed(file) == hashed(file) == wanted(file)


def test_only_while_it_is_wanted_is_a_file_not_read_again(file, monkeypatch):
    known = {}
    with once(known):
        first = hashed(file)
    assert list(known.values()) == [first]
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("it was read again"))
    with once(known):
        assert hashed(file) == first
    with pytest.raises(pytest.fail.Exception):
        hashed(file)


def test_a_file_that_was_changed_or_exchanged_is_read_again(file, tmp_path):
    with once({}):
        first = hashed(file)
        file.write_bytes(file.read_bytes() + b"x")
        second = hashed(file)
        other = tmp_path / "other"
        other.write_bytes(b"y" * file.stat().st_size)
        told = file.stat()
        os.utime(other, ns=(told.st_atime_ns, told.st_mtime_ns))
        other.rename(file)
        third = hashed(file)
    assert third == wanted(file) and len({first, second, third}) == 3
