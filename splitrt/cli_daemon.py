"""The verb of the service: daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

PLACE = Path("/etc/splitrt/daemon.toml")


def daemon(
    config: Annotated[
        Path, typer.Argument(help="What it runs: models, cameras.", metavar="FILE")
    ] = PLACE,
    check: Annotated[bool, typer.Option("--check", help="Prove the file, and end.")] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="Tell the daemon of this file to take it up anew.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Ask it how it is; JSON.")] = False,
    unit: Annotated[bool, typer.Option("--install-unit", help="Print a systemd unit.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON lines.")] = False,
) -> None:
    """Run splitrt as a service: models stay loaded, cameras run for ever, programs ask by a socket.

    SIGHUP takes up a changed file without losing a frame, SIGTERM answers what is in flight. The
    file's keys are explained in deploy/daemon.toml; SPLITRT_* variables go before them.
    """
    if sum((check, reload, status, unit)) > 1:
        raise typer.BadParameter("one of --check, --reload, --status, --install-unit at a time")
    if unit:
        from splitrt.daemon.unit import unit as written

        print(written(_program(), config), end="")
    elif check:
        _check(config)
    elif reload or status:
        _ask(config, reload)
    else:
        from splitrt.daemon.service import run

        run(config, "json" if log_json else None)


def _check(config: Path) -> None:
    """The file, and the models that it names."""
    from splitrt.core.manifest import Manifest
    from splitrt.daemon.told import read

    found = read(config, os.environ)
    for name, model in found.models.items():
        manifest = Manifest.load(model.path)
        print(f"models.{name}: {manifest.name}, {manifest.digest[:6].hex()}")
    for name, camera in found.cameras.items():
        print(f"cameras.{name}: {camera.source} by {camera.model}")


def _ask(config: Path, reload: bool) -> None:
    """The daemon of that file to reload, or how it is."""
    import json

    from splitrt.daemon.client import Way
    from splitrt.daemon.told import read

    with Way(read(config, os.environ).socket) as way:
        print("\n".join(way.reload()) if reload else json.dumps(way.status()))


def _program() -> list[str]:
    """What starts this splitrt again."""
    beside = Path(sys.executable).with_name("splitrt")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "splitrt.cli"]
