"""Exported programs: nothing in them is unpickled."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import pytest

from splitrt.cloud.program import load_program
from splitrt.errors import ModelError

RAN = []


class Trap:
    """Unpickled, it runs."""

    def __reduce__(self):
        return RAN.append, (1,)


def repacked(source, target, change):
    """A copy of the archive whose members went through change(name, bytes) -> bytes | None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            raw = change(member.filename, old.read(member))
            if raw is not None:
                new.writestr(member.filename, raw)
    return target


def test_a_plain_program_loads(model_dir):
    assert load_program(model_dir / "tail.pt2").module() is not None


def test_a_weight_that_is_a_pickle_is_refused_before_it_runs(model_dir, tmp_path):
    def change(name, raw):
        if name.endswith("weight_0"):
            return pickle.dumps(Trap())
        if name.endswith("model_weights_config.json"):
            table = json.loads(raw)
            first = next(iter(table["config"].values()))
            first["use_pickle"] = True
            return json.dumps(table).encode()
        return raw

    with pytest.raises(ModelError, match="pickle"):
        load_program(repacked(model_dir / "tail.pt2", tmp_path / "a.pt2", change))
    assert not RAN


@pytest.mark.parametrize(
    "member", ["tail/data/constants/opaque_obj_0", "tail/data/constants/custom_obj_0", "evil"]
)
def test_other_members_are_refused(model_dir, tmp_path, member):
    target = repacked(model_dir / "tail.pt2", tmp_path / "a.pt2", lambda _, raw: raw)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(member, pickle.dumps(Trap()))
    with pytest.raises(ModelError, match="pickle"):
        load_program(target)
    assert not RAN


def test_sample_inputs_that_are_not_empty_are_refused(model_dir, tmp_path):
    def change(name, raw):
        return pickle.dumps(Trap()) if "sample_inputs" in name else raw

    with pytest.raises(ModelError, match="pickle"):
        load_program(repacked(model_dir / "tail.pt2", tmp_path / "a.pt2", change))
    assert not RAN


def test_garbage_is_a_model_error(tmp_path):
    (tmp_path / "a.pt2").write_bytes(b"no zip")
    with pytest.raises(ModelError):
        load_program(tmp_path / "a.pt2")
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    (tmp_path / "b.pt2").write_bytes(empty.getvalue())
    with pytest.raises(ModelError):
        load_program(tmp_path / "b.pt2")
