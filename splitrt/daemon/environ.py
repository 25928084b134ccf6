"""SPLITRT_* variables, laid over what the file says; which of the two said what is remembered."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from splitrt.errors import SplitrtError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Keys: TypeAlias = "tuple[str, ...]"

PREFIX, BETWEEN = "SPLITRT_", "__"
SECRETS = {"SPLITRT_TOKEN", "SPLITRT_API_KEY"}  # no keys: what they hold is in no file of ours


@dataclass(frozen=True, slots=True)
class Given:
    """Tables as both said them, and the variable behind each key that one set."""

    tables: dict[str, Any]
    variables: Mapping[Keys, str]

    def origin(self, keys: Keys, file: str) -> str:
        """Who said it: a variable's name, or the file."""
        for said, variable in self.variables.items():
            if said == keys[: len(said)]:
                return variable
        return file

    def value(self, keys: Keys) -> Any:
        """What was said there; None if nothing was."""
        found: Any = self.tables
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found


def laid(tables: Mapping[str, Any], environ: Mapping[str, str]) -> Given:
    """The file's tables with the variables over them: SPLITRT_A__B=1 is `b = 1` in table `a`."""
    found, variables = copy.deepcopy(dict(tables)), {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in SECRETS:
            continue
        keys: list[str] = []
        table: Any = found
        words = variable.removeprefix(PREFIX).split(BETWEEN)
        for word in words:
            if not isinstance(table, dict):
                raise SplitrtError(
                    f"{variable}: {'.'.join(keys)} is no table\nhelp: it holds no keys"
                )
            keys.append(_like(word, table))
            if len(keys) < len(words):
                table = table.setdefault(keys[-1], {})
        table[keys[-1]] = _read(environ[variable])
        variables[tuple(keys)] = variable
    return Given(found, variables)


def _like(word: str, table: Mapping[str, Any]) -> str:
    """The table's own key for a variable's word, which has no case, no dots and no hyphens."""
    plain = word.lower()
    same = (key for key in table if re.sub(r"[.-]", "_", key).lower() == plain)
    return next(same, plain)


def _read(text: str) -> Any:
    """A value as in TOML; what is none is a text."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text
