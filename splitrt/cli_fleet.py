"""`serve --ray`: many servers of one model, placed by Ray Serve."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from splitrt.errors import SplitrtError

PANEL = "Several servers, placed by Ray Serve"
ONLY = ("ray_address", "replicas", "busy", "stock_port")  # what nothing else uses

Ray = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="On a Ray cluster, each machine of which has the extra `ray` and the same files.",
        rich_help_panel=PANEL,
    ),
]
Address = Annotated[
    str,
    typer.Option(help="Its address, or auto; local starts one here.", rich_help_panel=PANEL),
]
Replicas = Annotated[
    str,
    typer.Option(help="A number, or from..to by load.", metavar="N | N..M", rich_help_panel=PANEL),
]
Busy = Annotated[
    float,
    typer.Option(help="With from..to: frames in flight of a replica.", rich_help_panel=PANEL),
]
Stock = Annotated[
    int | None,
    typer.Option(
        help="Ray's gRPC ingress for stock clients, unencrypted, on every address.",
        rich_help_panel=PANEL,
    ),
]


def alone(context: typer.Context) -> None:
    """SplitrtError for options that only --ray has a use for."""
    for name in ONLY:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise SplitrtError(f"{option} without --ray\nhelp: add --ray, or leave it out")


def serve(
    folder: Path,
    options: Mapping[str, Any],
    place: tuple[str, int, int | None],
    scale: tuple[str, float],
    watch: bool,
) -> None:
    """Run replicas until it is interrupted; then drain them.

    place: Ray's address, the port of the door, that of Ray's ingress.  scale: replicas, busy.
    """
    from splitrt.fleet.fleet import Fleet, Place
    from splitrt.fleet.scale import Scale, counted

    wanted = Scale(*counted(scale[0]), scale[1])
    with Fleet(folder, options, place=Place(*place), scale=wanted, watch=watch) as fleet:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: fleet.stop())
        signal.signal(signal.SIGHUP, lambda *_: fleet.reload_soon())
        if fleet.stock is not None:
            print(f"stock clients: {fleet.stock}", flush=True)
        where = ", ".join(fleet.replicas)
        print(f"{len(fleet.replicas)} replicas of {folder}: {where}", flush=True)
        print(f"devices: --cloud {fleet.address}", flush=True)
        fleet.wait()
