"""The log: a line an event on standard error, as key=value or as JSON; journald keeps the level."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any, Literal

FIELDS = ("camera", "model")  # what `extra` may add
LEVELS = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}  # syslog's


class Line(logging.Formatter):
    """One record as one line. journal: with the level in front as systemd reads it, no time."""

    def __init__(self, kind: Literal["text", "json"], *, journal: bool) -> None:
        super().__init__()
        self.kind, self.journal = kind, journal

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        said: dict[str, Any] = {} if self.journal else {"at": _when(record.created)}
        said |= {"level": record.levelname.lower()}
        said |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        said |= {"message": record.getMessage(), "logger": record.name}
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        line = json.dumps(said) if self.kind == "json" else _pairs(said)
        return f"<{LEVELS.get(record.levelname, 6)}>{line}" if self.journal else line


def begin(kind: Literal["text", "json"]) -> None:
    """From now on all loggers write so."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Line(kind, journal="JOURNAL_STREAM" in os.environ))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


def _pairs(said: dict[str, Any]) -> str:
    """key=value; a value with other than plain characters in quotes, as JSON has them."""
    words = ((key, str(value)) for key, value in said.items())
    return " ".join(f"{key}={word if _plain(word) else json.dumps(word)}" for key, word in words)


def _plain(word: str) -> bool:
    return bool(word) and all(c.isalnum() or c in "._:/+-" for c in word)


def _when(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(1000 * (seconds % 1)):03d}Z"
