"""daemon.toml and SPLITRT_* variables: what is right is read, what is wrong is named."""

from __future__ import annotations

import copy
import typing
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import tomllib
from pydantic import BaseModel

from splitrt.core.manifest import Similar
from splitrt.daemon.config import Config, Part
from splitrt.daemon.told import read
from splitrt.errors import SplitrtError
from tests.conftest import ROOT

RIGHT: dict[str, Any] = {
    "models": {"birds": {"path": "models/birds"}},
    "cameras": {"door": {"source": "/dev/video0", "model": "birds"}},
}
MODEL, CAMERA = ("models", "birds"), ("cameras", "door")
WRONG: dict[tuple[str, ...], Any] = {
    ("socket",): 3,
    ("metrics_port",): 70000,
    ("log",): "xml",
    ("grace",): 0.0,
    ("trace",): "yes",
    ("models",): {},
    ("cameras",): "door",
    (*MODEL, "path"): 7,
    (*MODEL, "cloud"): 50700,
    (*MODEL, "deadline"): "0.2",
    (*MODEL, "plan"): 1,
    (*MODEL, "filter"): "yes",
    (*MODEL, "tails"): "models/cats",
    (*MODEL, "temporal"): 0,
    (*MODEL, "similar"): -1.0,
    (*MODEL, "interval"): 0,
    (*MODEL, "adapt"): 1,
    (*MODEL, "caps"): 1000,
    (*MODEL, "caps", "bytes"): float("inf"),
    (*MODEL, "caps", "joules"): -2.0,
    (*MODEL, "caps", "watts"): "5",
    (*MODEL, "caps", "uj_per_byte"): True,
    (*MODEL, "trust"): "ca.pem",
    (*MODEL, "trust", "ca"): 1,
    (*MODEL, "trust", "cert"): [],
    (*MODEL, "trust", "key"): False,
    (*MODEL, "trust", "token_file"): 12,
    (*MODEL, "trust", "insecure_tokens"): 1,
    (*MODEL, "standin"): "no",
    (*MODEL, "threads"): 0,
    (*MODEL, "provider"): ["CPU"],
    (*CAMERA, "source"): "",
    (*CAMERA, "model"): 5,
    (*CAMERA, "fps"): -10.0,
    (*CAMERA, "inflight"): 65,
    (*CAMERA, "repeat"): "no",
    (*CAMERA, "output"): {},
}


def every(part: type[BaseModel] = Config, before: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """All keys that there are, with the names that RIGHT gives a model and a camera."""
    found = set()
    for name, field in part.model_fields.items():
        found.add((*before, name))
        arguments = typing.get_args(field.annotation)
        inner = arguments[-1] if arguments else field.annotation
        if isinstance(inner, type) and issubclass(inner, Part):
            names = (name, *RIGHT[name]) if arguments else (name,)
            found |= every(inner, (*before, *names))
    return found


def changed(keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    tables = copy.deepcopy(RIGHT)
    table = tables
    for key in keys[:-1]:
        table = table.setdefault(key, {})
    table[keys[-1]] = value
    return tables


def said(folder: Path, tables: dict[str, Any], **environ: str) -> str:
    """What the reader of a wrong file is told."""
    (folder / "daemon.toml").write_text(tomli_w.dumps(tables))
    with pytest.raises(SplitrtError) as caught:
        read(folder / "daemon.toml", environ)
    return str(caught.value)


def test_the_table_of_wrong_values_has_every_key():
    assert every() == set(WRONG)


@pytest.mark.parametrize("keys", WRONG, ids=".".join)
def test_a_wrong_value_is_named_with_its_file_its_key_and_what_was_wanted(tmp_path, keys):
    told = said(tmp_path, changed(keys, WRONG[keys]))
    first, help = told.splitlines()
    assert first.startswith(f"{tmp_path / 'daemon.toml'}: {'.'.join(keys)}")
    assert help.startswith("help: wanted is ") and len(help) > len("help: wanted is ")


@pytest.mark.parametrize("keys", [one for one in WRONG if one[-1] not in ("models", "cameras")])
def test_a_misspelt_key_gets_the_nearest_name(tmp_path, keys):
    wrong = (*keys[:-1], f"{keys[-1]}s")
    told = said(tmp_path, changed(wrong, 1))
    assert f"no key '{'.'.join(wrong)}'" in told
    assert f"did you mean '{keys[-1]}'?" in told


@pytest.mark.parametrize("keys", [("models", "birds", "path"), ("cameras", "door", "source")])
def test_a_missing_key_is_named(tmp_path, keys):
    tables = copy.deepcopy(RIGHT)
    del tables[keys[0]][keys[1]][keys[2]]
    told = said(tmp_path, tables)
    assert f"{'.'.join(keys)} is missing" in told and "help: wanted is " in told


def test_a_camera_of_no_model_gets_the_nearest_name(tmp_path):
    told = said(tmp_path, changed((*CAMERA, "model"), "brids"))
    assert "cameras.door.model = 'brids', no model" in told and "did you mean 'birds'?" in told


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    tables = changed(("models", name), {"path": "m"})
    assert "is no name\nhelp: letters, digits" in said(tmp_path, tables)


def test_a_camera_is_not_named_as_the_socket_is(tmp_path):
    tables = changed(("cameras", "api"), RIGHT["cameras"]["door"])
    assert "help: another name" in said(tmp_path, tables)


@pytest.mark.parametrize("text", [b"a = ", b"\xff", b"[" * 100_000], ids=["half", "bytes", "deep"])
def test_what_is_no_toml_is_said_to_be_none(tmp_path, text):
    (tmp_path / "daemon.toml").write_bytes(text)
    with pytest.raises(SplitrtError, match="is no TOML"):
        read(tmp_path / "daemon.toml", {})


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SplitrtError, match=r"daemon\.toml cannot be read"):
        read(tmp_path / "daemon.toml", {})


def test_paths_begin_at_the_files_folder(tmp_path):
    tables = changed((*MODEL, "tails"), ["a", "/b"])
    tables["models"]["birds"]["trust"] = {"ca": "ca.pem"}
    tables["cameras"] = {
        "film": {"source": "films/a.mp4", "model": "birds", "output": "film.jsonl"},
        "street": {"source": "rtsp://x/1", "model": "birds", "output": "stdout"},
    }
    (tmp_path / "daemon.toml").write_text(tomli_w.dumps({"socket": "s", **tables}))
    found = read(tmp_path / "daemon.toml", {})
    birds = found.models["birds"]
    assert found.socket == tmp_path / "s" and birds.path == tmp_path / "models" / "birds"
    assert birds.tails == [tmp_path / "a", Path("/b")] and birds.trust.ca == tmp_path / "ca.pem"
    film, street = found.cameras["film"], found.cameras["street"]
    assert film.source == str(tmp_path / "films" / "a.mp4")
    assert film.output == str(tmp_path / "film.jsonl")
    assert (street.source, street.output, street.live) == ("rtsp://x/1", "stdout", True)


def test_variables_go_before_the_file_and_are_named_when_wrong(tmp_path):
    tables = changed(("models", "my-cats"), {"path": "cats", "deadline": 1.0})
    (tmp_path / "daemon.toml").write_text(tomli_w.dumps(tables))
    environ = {
        "SPLITRT_GRACE": "5",
        "SPLITRT_MODELS__MY_CATS__DEADLINE": "0.25",
        "SPLITRT_MODELS__BIRDS__CLOUD": "gpu-box:50700",
        "SPLITRT_MODELS__BIRDS__CAPS__BYTES": "2e4",
        "SPLITRT_TOKEN": "secret",
        "PATH": "/bin",
    }
    found = read(tmp_path / "daemon.toml", environ)
    assert found.grace == 5 and found.models["my-cats"].deadline == 0.25
    options = found.models["birds"].options(environ)
    assert options["cloud"] == "gpu-box:50700" and options["caps"].bytes == 2e4
    assert options["trust"].token == "secret"
    for variable, text, told in (
        ("SPLITRT_GRACE", "soon", "SPLITRT_GRACE: grace = 'soon'\nhelp: wanted is seconds"),
        ("SPLITRT_GRAEC", "5", "no key 'graec'\nhelp: did you mean 'grace'?"),
        ("SPLITRT_GRACE__X", "5", "SPLITRT_GRACE__X: no key|grace = {'x': 5}"),
        ("SPLITRT_MODELS__BIRDS__PATH__X", "5", "models.birds.path is no table"),
        ("SPLITRT_CAMERAS__DOOR__FPS", "0", "SPLITRT_CAMERAS__DOOR__FPS: cameras.door.fps = 0"),
        ("SPLITRT_CAMERAS__DOOR__MODEL", "x", "SPLITRT_CAMERAS__DOOR__MODEL: cameras.door.model"),
    ):
        with pytest.raises(SplitrtError) as caught:
            read(tmp_path / "daemon.toml", {variable: text})
        assert any(one in str(caught.value) for one in told.split("|")), str(caught.value)


def test_options_reach_the_edge_as_it_wants_them(tmp_path):
    tables = changed((*MODEL, "similar"), 2.0)
    tables["models"]["birds"] |= {"interval": 10, "temporal": 15, "trust": {"token_file": "t"}}
    (tmp_path / "t").write_text("from the file\n")
    (tmp_path / "daemon.toml").write_text(tomli_w.dumps(tables))
    options = read(tmp_path / "daemon.toml", {}).models["birds"].options({"SPLITRT_TOKEN": "x"})
    assert options["similar"] == Similar(threshold=2.0, interval=10)
    assert options["temporal"] == 15 and options["trust"].token == "from the file"


def test_the_documented_file_has_every_key_with_its_default():
    text = (ROOT / "deploy" / "daemon.toml").read_text()
    found = read(ROOT / "deploy" / "daemon.toml", {})
    lines = text[text.index("socket = ") :].splitlines()
    everything = [
        line[2:] if line.startswith("# ") and " = " in line.split("#")[1] else line
        for line in lines
    ]
    tables = tomllib.loads("\n".join(everything))

    birds, door = tables["models"]["birds"], tables["cameras"]["door"]
    model, camera = found.models["birds"], found.cameras["door"]
    for table, part in (
        (tables, found), (birds, model), (birds["caps"], model.caps), (birds["trust"], model.trust),
        (door, camera),
    ):  # fmt: skip
        assert set(table) == set(type(part).model_fields)
    bare = Config.model_validate(RIGHT, strict=False)
    assert found.grace == bare.grace and found.log == bare.log and found.socket == bare.socket
    same = {"path": model.path}
    assert model == bare.models["birds"].model_copy(update=same)
    assert camera == bare.cameras["door"]
