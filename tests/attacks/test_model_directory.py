"""Model directories that were made to harm: refused with a ModelError, before anything runs."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from safetensors.numpy import load, save

from splitrt import Edge
from splitrt.cloud.tail import Tail
from splitrt.core.codec import codecs
from splitrt.core.manifest import Manifest, prove, verified
from splitrt.core.tensors import Tensors
from splitrt.errors import ModelError

RAN: list[int] = []
MEMORY = 256 << 20  # bytes that a refusal may take: the largest manifest has 4 MiB


class Trap:
    """Unpickled, it runs."""

    def __reduce__(self):
        return RAN.append, (1,)


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "copy"))


def replaced(folder: Path, name: str, raw: bytes) -> Manifest:
    """The manifest after that file's bytes were replaced and its hash set right."""
    (folder / name).write_bytes(raw)
    text = (folder / "model.toml").read_text()
    digest = hashlib.sha256(raw).hexdigest()
    text, count = re.subn(rf'(?m)^"{re.escape(name)}" = ".*"$', f'"{name}" = "{digest}"', text)
    assert count == 1
    (folder / "model.toml").write_text(text)
    return Manifest.load(folder)


def wrong_hash(folder: Path) -> None:
    raw = (folder / "tail.pt2").read_bytes()
    (folder / "tail.pt2").write_bytes(raw + b"\0")


def sparse(folder: Path) -> None:
    with (folder / "tail.onnx").open("r+b") as file:
        file.truncate(10 << 30)


def linked(folder: Path) -> None:
    (folder / "head.onnx").rename(folder.parent / "head.onnx")
    (folder / "head.onnx").symlink_to(folder.parent / "head.onnx")


def a_folder(folder: Path) -> None:
    (folder / "head.onnx").unlink()
    (folder / "head.onnx").mkdir()


def a_pipe(folder: Path) -> None:

    (folder / "head.onnx").unlink()
    os.mkfifo(folder / "head.onnx")


def hidden(folder: Path) -> None:
    (folder / ".hidden").write_bytes(b"x")


def above(folder: Path) -> None:
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(text.replace('"head.onnx" =', '"../head.onnx" ='))


FOLDERS: dict[str, Callable[[Path], None]] = {
    "wrong hash": wrong_hash,
    "sparse 10 GiB": sparse,
    "symlink": linked,
    "a folder": a_folder,
    "a pipe": a_pipe,
    "extra file": lambda folder: (folder / "extra.bin").write_bytes(b"x") and None,
    "hidden file": hidden,
    "extra folder": lambda folder: (folder / "more").mkdir(),
    "../ member": above,
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_not_what_it_says_is_refused(copy, kind):
    FOLDERS[kind](copy)
    with pytest.raises(ModelError):
        prove(copy)


@pytest.mark.parametrize("kind", ["wrong hash", "sparse 10 GiB", "symlink", "a folder", "a pipe"])
def test_a_changed_file_is_refused_by_the_half_that_loads_it(copy, kind):
    FOLDERS[kind](copy)
    name = {"wrong hash": "tail.pt2", "sparse 10 GiB": "tail.onnx"}.get(kind, "head.onnx")
    with pytest.raises(ModelError):
        verified(copy, Manifest.load(copy), name)


TEXTS = {
    "more than 4 MiB": "#" * ((4 << 20) + 1),
    "nested arrays": "a = " + "[" * 100_000,
    "nested tables": "a = " + "{a=" * 100_000,
    "nested strings": 'a = """' + '"' * 100_000,
    "a key of many parts": "a" + ".a" * 100_000 + " = 1",
    "a header of many parts": "[" + ".".join(["a"] * 100_000) + "]",
    "many keys of many parts": "\n".join(f"b{i}" + ".a" * 101 + " = 1" for i in range(5000)),
    "a number of 5,000 digits": "format = " + "9" * 5000,
    "a number with underscores": "a = " + "1_" * 10_000 + "1",
    "NUL": 'a = "\0"',
    "a string without an end": 'a = "' + "x" * 1_000_000,
    "no date": "a = 9999-99-99",
    "infinity": "format = inf",
    "not a table": "[[format]]\n" * 1000,
    "nothing": "",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_manifest_that_would_take_time_or_memory_is_refused(copy, kind):
    (copy / "model.toml").write_text(TEXTS[kind])
    tracemalloc.start()
    try:
        with pytest.raises(ModelError):
            Manifest.load(copy)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [9, 100_000])
def test_a_shape_of_many_dimensions_is_refused(copy, count):
    text = (copy / "model.toml").read_text()
    (copy / "model.toml").write_text(text.replace("shape = [", "shape = [" + "1," * count, 1))
    with pytest.raises(ModelError, match="at most 8 items"):
        Manifest.load(copy)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(raw=st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode()))
def test_any_bytes_are_no_manifest(tmp_path_factory, raw):
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    (folder / "model.toml").write_bytes(raw)
    with pytest.raises(ModelError):
        Manifest.load(folder)


def test_every_line_of_a_manifest_may_be_missing(copy):
    """Optional ones leave a manifest, the others an error that says so."""
    lines = (copy / "model.toml").read_text().splitlines()
    seen = set()
    for place in range(len(lines)):
        (copy / "model.toml").write_text("\n".join(lines[:place] + lines[place + 1 :]))
        try:
            Manifest.load(copy)
            seen.add(True)
        except ModelError:
            seen.add(False)
    assert seen == {True, False}


def header(table: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; its header's length may lie."""
    raw = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def tensor(kind: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"full.q8.low": {"dtype": kind, "shape": shape, "data_offsets": [start, end]}}


LYING = {
    "nothing": b"",
    "a length of 2^63": header({}, length=2**63),
    "a length of 2^64 - 1": header({}, length=2**64 - 1),
    "a length beyond the end": header({}, length=100_000),
    "no JSON": header(b"\xff" * 10),
    "deep JSON": header(b'{"a":' * 50_000),
    "deep lists": header(b"[" * 50_000),
    "a list": header([1]),
    "more numbers than bytes": header(tensor("F32", [2**40], 0, 8), bytes(8)),
    "a product over 2^64": header(tensor("F32", [2**33, 2**33], 0, 8), bytes(8)),
    "empty, and huge": header(tensor("F32", [0, 2**62, 2**62], 0, 0)),
    "a thousand dimensions": header(tensor("F32", [1] * 1000, 0, 4), bytes(4)),
    "beyond the end": header(tensor("F32", [2], 0, 8), bytes(4)),
    "from the middle": header(tensor("F32", [2], 4, 12), bytes(12)),
    "backward": header(tensor("F32", [2], 8, 0), bytes(8)),
    "unread bytes": header(tensor("F32", [2], 0, 8), bytes(16)),
    "negative": header(tensor("F32", [-2], 0, 8), bytes(8)),
    "a kind that numpy lacks": header(tensor("BF16", [4], 0, 8), bytes(8)),
    "eight-bit floats": header(tensor("F8_E4M3", [8], 0, 8), bytes(8)),
    "an unknown kind": header(tensor("PICKLE", [8], 0, 8), bytes(8)),
    "a pickle": pickle.dumps(Trap()),
}


@pytest.mark.parametrize("kind", LYING)
def test_a_safetensors_file_with_a_lying_header_is_refused(copy, kind):
    manifest = replaced(copy, "scales.safetensors", LYING[kind])
    with pytest.raises(ModelError):
        _ = Tensors(copy, manifest, "scales.safetensors")["full.q8.low"]
    assert not RAN


def scales(folder: Path, **changes: np.ndarray) -> Manifest:
    tensors = load((folder / "scales.safetensors").read_bytes())
    return replaced(folder, "scales.safetensors", save({**tensors, **changes}))


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("step", [0, 1, 1, 1]),
        ("step", [-1, 1, 1, 1]),
        ("step", [np.nan, 1, 1, 1]),
        ("step", [np.inf, 1, 1, 1]),
        ("step", [3e38, 1, 1, 1]),
        ("step", [1e-50, 1, 1, 1]),  # 0 as float32
        ("step", [1e300, 1, 1, 1]),  # infinite as float32
        ("low", [np.nan, 1, 1, 1]),
        ("low", [-np.inf, 1, 1, 1]),
        ("low", [1, 1, 1]),
        ("step", [1, 1, 1, 1, 1]),
        ("low", [[1, 1, 1, 1]]),
    ],
)
def test_scales_that_are_none_are_refused(copy, part, values):
    manifest = scales(copy, **{f"full.q8.{part}": np.array(values, np.float64)})
    with pytest.raises(ModelError, match="scale"):
        Tail(copy, manifest, threads=1)


@pytest.mark.parametrize(
    ("part", "array"),
    [
        ("frequencies", np.zeros((4, 3, 3, 16), np.uint16)),
        ("frequencies", np.full((4, 3, 3, 16), 256, np.float32)),
        ("frequencies", np.full((4, 3, 3, 16), 256, np.int64)),
        ("frequencies", np.uint16(256)),
        ("frequencies", np.full((4, 0, 0, 16), 256, np.uint16)),
        ("frequencies", np.full((1 << 16, 2, 2, 16), 256, np.uint16)),
        ("contexts", np.zeros(0, np.uint8)),
        ("contexts", np.zeros((4, 4), np.uint8)),
        ("contexts", np.full(16, 255, np.uint8)),
        ("contexts", np.zeros(300, np.uint8)),
        ("contexts", np.zeros(16, np.float32)),
    ],
)
def test_tables_that_are_none_are_refused(copy, part, array):
    tensors = load((copy / "tables.safetensors").read_bytes())
    assert tensors["full.q4.frequencies"].shape[-1] == 16
    changed = {**tensors, f"full.q4.{part}": np.asarray(array)}
    manifest = replaced(copy, "tables.safetensors", save(changed))
    with pytest.raises(ModelError, match="table"):
        codecs(copy, manifest)


def outside(folder: Path, location: str) -> Manifest:
    """head.onnx whose first weight is to be read from another file."""
    model = onnx.load_from_string((folder / "head.onnx").read_bytes())
    weight = next(one for one in model.graph.initializer if one.raw_data)
    (folder / "weights").write_bytes(weight.raw_data)
    (folder.parent / "weights").write_bytes(weight.raw_data)
    length = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        weight.external_data.add(key=key, value=value)
    return replaced(folder, "head.onnx", model.SerializeToString())


@pytest.mark.parametrize("location", ["../weights", "/etc/passwd", "weights", "link", "", "."])
def test_weights_outside_of_the_onnx_file_are_refused(copy, monkeypatch, location):
    """Even beside it: the manifest has no hash of them. Wherever the device was started."""
    outside(copy, location)
    (copy / "link").symlink_to(copy.parent / "weights")
    for place in (copy, copy.parent):
        monkeypatch.chdir(place)
        with pytest.raises(ModelError, match="does not load"):
            Edge(copy)


@pytest.mark.parametrize("raw", [b"", b"no model", b"\x08" * 1000, pickle.dumps(Trap())])
def test_an_onnx_file_that_is_none_is_refused(copy, raw):
    replaced(copy, "head.onnx", raw)
    with pytest.raises(ModelError):
        Edge(copy)
    assert not RAN


def repacked(path: Path, change: Callable[[str, bytes], bytes]) -> bytes:
    """The archive after its members went through change(name, bytes)."""
    target = path.with_suffix(".new")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))
    raw = target.read_bytes()
    target.unlink()
    return raw


def pickled(name: str, raw: bytes) -> bytes:
    if name.endswith("model_weights_config.json"):
        table = json.loads(raw)
        next(iter(table["config"].values()))["use_pickle"] = True
        return json.dumps(table).encode()
    return pickle.dumps(Trap()) if name.endswith("weight_0") else raw


def grown(name: str, raw: bytes) -> bytes:
    """Weights that claim to be larger than their bytes."""
    if not name.endswith("model_weights_config.json"):
        return raw
    table = json.loads(raw)
    for entry in table["config"].values():
        entry["tensor_meta"]["sizes"] = [{"as_int": 1 << 20}] * 2
    return json.dumps(table).encode()


def deep(name: str, raw: bytes) -> bytes:
    return b"[" * 100_000 if name.endswith("models/model.json") else raw


def member(name: str) -> Callable[[Path], bytes]:
    def added(path: Path) -> bytes:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, pickle.dumps(Trap()))
        return path.read_bytes()

    return added


PROGRAMS: dict[str, Callable[[Path], bytes]] = {
    "a pickle": lambda path: pickle.dumps(Trap()),
    "a weight that is a pickle": lambda path: repacked(path, pickled),
    "weights larger than their bytes": lambda path: repacked(path, grown),
    "a graph that is deep": lambda path: repacked(path, deep),
    "../ member": member("../../outside"),
    "absolute member": member("/tmp/outside"),
    "extra pickle": member("tail/data/constants/custom_obj_0"),
    "a torch.save file": member("archive/data.pkl"),
    "cut in half": lambda path: path.read_bytes()[: path.stat().st_size // 2],
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_that_hides_something_is_refused_before_it_runs(copy, kind):
    manifest = replaced(copy, "tail.pt2", PROGRAMS[kind](copy / "tail.pt2"))
    with pytest.raises(ModelError):
        Tail(copy, manifest, threads=1)
    assert not RAN


def test_an_honest_directory_still_loads(copy):
    prove(copy)
    assert Tail(copy, Manifest.load(copy), threads=1).largest > 0
    with Edge(copy) as edge:
        assert edge.manifest.name == "small"
