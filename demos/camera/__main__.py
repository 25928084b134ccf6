"""A page with a camera's live picture and answers, and a link that one may worsen.

splitrt demo camera                    # or: python demos/camera --source /dev/video0
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn
from board import Board
from device import Device, opened
from dials import Dials
from joules import Joules, asked, joules
from web import app

from splitrt import Edge, ModelError, SplitrtError
from splitrt.relay import Relay
from splitrt.served import served, shipped

MBPS, RTT = 20.0, 0.03  # of the link at first
LEAVING = 1  # seconds for a page's last request


def main() -> None:
    """Start a server, a link and a device, and show them until Ctrl-C."""
    options = read()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(options.host, options.port))
        source = opened(options.source, options.rate)
        model = folder(options.model)
        address = stack.enter_context(served(model))
        workers = stack.enter_context(ThreadPoolExecutor(1))
        costs = workers.submit(asked, model, options.device)  # while the server loads
        relay = stack.enter_context(Relay(address(), trace=MBPS, rtt=RTT))
        edge = stack.enter_context(
            Edge(model, cloud=relay.address, deadline=options.deadline, threads=1)
        )
        told = joules(costs.result(), options.device, edge)
        show(edge, source, relay, told, listener)


def show(edge: Edge, source, relay: Relay, costs: Joules, listener: socket.socket) -> None:
    """Run device and page until SIGINT or SIGTERM, or until the source fails."""
    dials = Dials(relay)
    board = Board(edge, dials, costs)
    host, port = listener.getsockname()[:2]
    with contextlib.ExitStack() as stack:
        page = server(app(board, dials, local=host in ("127.0.0.1", "::1")))
        board.over = lambda: page.should_exit
        device = stack.enter_context(Device(edge, source, board, page))
        for name in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them once more at its end
            stack.callback(signal.signal, name, signal.signal(name, lambda *_: None))
        there = f"[{host}]" if ":" in host else host
        print(f"camera page at http://{there}:{port}/  (Ctrl-C ends)", flush=True)
        page.run(sockets=[listener])
    if device.failure is not None:
        raise device.failure


def server(pages) -> uvicorn.Server:
    """What runs the page."""
    return uvicorn.Server(
        uvicorn.Config(
            pages, http="h11", ws="none", lifespan="off", access_log=False, log_level="warning",
            timeout_graceful_shutdown=LEAVING, server_header=False, proxy_headers=False,
        )
    )  # fmt: skip


def folder(model: Path | None) -> Path:
    """A model's, or the shipped one's. ModelError before a process is started for nothing."""
    if model is None:
        return shipped()
    if not (model / "model.toml").is_file():
        raise ModelError(f"{model} has no model.toml\nhelp: --model DIR, made by `splitrt split`")
    return model


@contextlib.contextmanager
def listening(host: str, port: int):
    """A socket there. SplitrtError if it cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise SplitrtError(
            f"{host}:{port} cannot be bound: {error}\nhelp: another --port, or 0 for a free one"
        ) from error
    with listener:
        yield listener


def read() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="camera", description=__doc__.split("\n")[0])
    parser.add_argument("--source", help="a folder, video, pan:photo.jpg, /dev/video0, rtsp://…")
    parser.add_argument("--model", type=Path, help="a model directory; else the shipped one")
    parser.add_argument("--deadline", type=float, default=0.25, help="seconds a frame may take")
    parser.add_argument("--rate", type=float, default=10.0, help="frames a second")
    parser.add_argument("--device", default="pi-4", help="whose joules are estimated: a profile")
    parser.add_argument("--port", type=int, default=8088, help="of the page; 0: a free one")
    parser.add_argument("--host", default="127.0.0.1", help="of the page; 0.0.0.0 lets others in")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # before the page was there, or uvicorn's, after it
        sys.exit(130)
    except SplitrtError as error:
        sys.exit(f"error: {error}")
