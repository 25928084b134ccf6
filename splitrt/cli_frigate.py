"""The verb `frigate`: a detector for Frigate's `zmq` plugin."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from splitrt import cli_chat


def frigate(
    folder: Annotated[Path, typer.Argument(help="A detector's directory.", metavar="DIR")],
    cloud: cli_chat.Cloud = None,
    bind: Annotated[
        str, typer.Option(help="Where Frigate asks: tcp://127.0.0.1:5555, or ipc:///a/path.")
    ] = "tcp://127.0.0.1:5555",
    deadline: Annotated[
        float, typer.Option(help="Seconds for a picture; Frigate itself gives up after 0.2.")
    ] = 0.15,
    plan: Annotated[str | None, typer.Option(help="Pin a plan.")] = None,
    config: Annotated[
        bool, typer.Option("--config", help="Print what Frigate's configuration needs, and end.")
    ] = False,
    tls_ca: cli_chat.Ca = None,
    cert: cli_chat.Cert = None,
    key: cli_chat.Key = None,
    token_file: cli_chat.TokenFile = None,
    insecure_tokens: cli_chat.Insecure = False,
    threads: Annotated[int | None, typer.Option(help="Of ONNX Runtime.")] = None,
) -> None:
    """Be a detector of an unmodified Frigate: its pictures go by this device to the server.

    Without an answer in time the device answers itself: by the model's exit, its local tail, or
    with no boxes. Whoever reaches the endpoint may ask: the protocol knows no identity.
    """
    import logging

    from splitrt.core.manifest import Manifest
    from splitrt.edge.finder import Finder
    from splitrt.edge.frigate import Booth, settings

    if config:
        print(settings(Manifest.load(folder), bind), end="")
        return
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    trust = cli_chat.trusted(tls_ca, cert, key, token_file, insecure_tokens)
    how = {"deadline": deadline, "plan": plan, "trust": trust, "threads": threads}
    over = threading.Event()
    with Finder(folder, cloud, **how) as finder, Booth(finder, finder.manifest.name) as booth:
        there = booth.open(bind)
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: over.set())
        if cloud is not None:
            print(f"without an answer of {cloud}: {finder.stands_in}", flush=True)
        print(f"{finder.manifest.name} for Frigate at {there}", flush=True)
        booth.run(over)
        print(", ".join(f"{n} {kind}" for kind, n in (finder.counts + booth.counts).items()))
