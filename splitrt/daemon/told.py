"""daemon.toml read and proved, with SPLITRT_* variables over it; errors name file, key, wanted."""

from __future__ import annotations

import difflib
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from splitrt.core.tls import small
from splitrt.daemon.config import STDOUT, Config, Part
from splitrt.daemon.environ import Given, Keys, laid
from splitrt.daemon.seen import API
from splitrt.edge.source import PAN
from splitrt.errors import SplitrtError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read(path: Path, environ: Mapping[str, str]) -> Config:
    """What file and environment say together; SplitrtError for the first thing that is wrong.

    SPLITRT_GRACE=5 is the key `grace`, SPLITRT_MODELS__BIRDS__DEADLINE=0.2 that of models.birds;
    they go before the file's. Paths in the file that are not absolute begin at its folder.
    """
    try:
        tables = tomllib.loads(small(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SplitrtError(f"{path} is no TOML: {error}\nhelp: see deploy/daemon.toml") from error
    given = laid(tables, environ)
    try:
        found = Config.model_validate(given.tables)
    except ValidationError as error:
        raise _named(path, given, error) from error
    if API in found.cameras:
        raise SplitrtError(
            f"{path}: a camera is named {API!r}, as are frames over the socket\nhelp: another name"
        )
    for name, camera in found.cameras.items():
        if camera.model not in found.models:
            keys = ("cameras", name, "model")
            said = f"{given.origin(keys, str(path))}: {'.'.join(keys)}"
            raise SplitrtError(
                f"{said} = {camera.model!r}, no model\nhelp: {nearest(camera.model, found.models)}"
            )
    return _placed(found, path.absolute().parent)


def nearest(word: str, words: typing.Iterable[str]) -> str:
    """A way out for who wrote `word`, where one of the words was wanted."""
    among = list(words)
    near = difflib.get_close_matches(word, among, 1)
    return f"did you mean {near[0]!r}?" if near else f"one of {', '.join(among)}"


def _named(path: Path, given: Given, error: ValidationError) -> SplitrtError:
    """The first thing that is wrong: who said it, the key, what was found and wanted."""
    first: Any = error.errors()[0]
    keys, wanted, siblings = _known([str(step) for step in first["loc"] if step != "[key]"])
    said, key = given.origin(keys, str(path)), ".".join(keys)
    if first["type"] == "extra_forbidden":
        return SplitrtError(f"{said}: no key {key!r}\nhelp: {nearest(keys[-1], siblings)}")
    if first["type"] == "missing":
        return SplitrtError(f"{said}: {key} is missing\nhelp: wanted is {wanted}")
    if "[key]" in first["loc"]:
        return SplitrtError(
            f"{said}: {keys[-1]!r} in {keys[0]} is no name\nhelp: letters, digits, . _ -, up to 64"
        )
    found = repr(given.value(keys))
    return SplitrtError(f"{said}: {key} = {found[:100]}\nhelp: wanted is {wanted}")


def _known(loc: Sequence[str]) -> tuple[Keys, str, tuple[str, ...]]:
    """(the keys of a place, without pydantic's own words; what the last wants; its siblings)."""
    part: type[Part] = Config
    keys: list[str] = []
    wanted, siblings, steps = "", tuple(part.model_fields), iter(loc)
    for step in steps:
        keys.append(step)
        siblings = tuple(part.model_fields)
        field = part.model_fields.get(step)
        if field is None:
            break
        wanted = field.description or ""
        arguments = typing.get_args(field.annotation)
        inner = arguments[-1] if arguments else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, Part)):
            break
        if arguments:  # a table of tables: next is a name
            name = next(steps, None)
            if name is None:
                break
            keys.append(name)
        part = inner
    return tuple(keys), wanted, siblings


def _placed(found: Config, folder: Path) -> Config:
    """Paths begin at the file's folder."""
    models = {}
    for name, model in found.models.items():
        trust = _moved(model.trust, folder, "ca", "cert", "key", "token_file")
        tails = [folder / one for one in model.tails]
        moved = _moved(model, folder, "path")
        models[name] = moved.model_copy(update={"trust": trust, "tails": tails})
    cameras = {}
    for name, camera in found.cameras.items():
        source, output = camera.source, camera.output
        update = {
            "source": _located(source, folder),
            "output": output if output in (None, STDOUT) else str(folder / output),
        }
        cameras[name] = camera.model_copy(update=update)
    socket = folder / found.socket
    return found.model_copy(update={"socket": socket, "models": models, "cameras": cameras})


def _located(source: str, folder: Path) -> str:
    """A camera's source, with the file's folder before what is a path."""
    if "://" in source:
        return source
    if source.startswith(PAN):
        return PAN + str(folder / source.removeprefix(PAN))
    return str(folder / source)


P = typing.TypeVar("P", bound=Part)


def _moved(part: P, folder: Path, *names: str) -> P:
    paths = {name: getattr(part, name) for name in names}
    update = {name: folder / path for name, path in paths.items() if path is not None}
    return part.model_copy(update=update)
