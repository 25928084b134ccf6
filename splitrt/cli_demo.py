"""The verb `demo`: on this machine alone, a server and a device, or a star, and what they do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from splitrt import shown
from splitrt.errors import SplitrtError

KINDS = ("pictures", "camera", "chat", "star")
# Options by the kinds that take them.
TAKES = {
    "--source": ("pictures", "camera"),
    "--model": ("camera", "chat", "star"),
    "--page": ("chat",),
    "--json": ("pictures", "chat", "star"),
}


def demo(
    what: Annotated[
        str,
        typer.Argument(
            help="pictures; camera: a live page; chat: a story; star: one told by four devices."
        ),
    ] = "pictures",
    source: Annotated[
        str | None,
        typer.Option(
            help="A folder, a picture, a video, pan:photo.jpg, /dev/video0, rtsp://…, csi://0."
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Not with pictures: another model's or star's directory.")
    ] = None,
    page: Annotated[bool, typer.Option("--page", help="With chat: a page to talk on.")] = False,
    host: Annotated[str, typer.Option(help="Of the page; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page.")] = 8088,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Start a server and a device on this machine, send pictures, show what each plan does.

    `demo camera` opens a page with a live picture, its answers, and a link that one may worsen.
    `demo chat` tells a story across the cut, and compares it with asking for every token; with
    --page it opens a page to talk on, where the link to the server can be cut. `demo star` lets a
    hub and its spokes tell it together, and compares it with one device alone.
    """
    given = {
        "--source": source is not None, "--model": model is not None, "--page": page,
        "--json": as_json,
    }  # fmt: skip
    _proved(what, [name for name, there in given.items() if there])
    if page and as_json:
        raise typer.BadParameter("--json is for `demo chat` without --page")
    if what == "camera":
        _camera(source, model, host, port)
    elif page:
        from splitrt.edge.api import Door
        from splitrt.parlour import run

        run(model, Door(host, port))
    elif what == "pictures":
        _pictures(source, as_json)
    else:
        _story(what, model, as_json)


def _proved(what: str, given: list[str]) -> None:
    """BadParameter for a demo that there is not, or an option that it does not take."""
    if what not in KINDS:
        known = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
        raise typer.BadParameter(f"{what!r} is no demo; {known}", param_hint="WHAT")
    for name in given:
        if what not in TAKES[name]:
            of = ", ".join(f"`demo {kind}`" for kind in TAKES[name])
            raise typer.BadParameter(f"{name} is for {of}")


def _pictures(source: str | None, as_json: bool) -> None:
    from splitrt.demo import run

    found = run(source, quiet=as_json)
    if as_json:
        shown.as_json(found.as_dict())
    else:
        shown.report(found)


def _camera(source: str | None, model: Path | None, host: str, port: int) -> None:
    """The demo is an app of public names alone: this process becomes it."""
    import os

    import starlette  # noqa: F401  (what is missing is said here, not by a process that cannot)
    import uvicorn  # noqa: F401

    here = Path(__file__).parent
    places = (here / "demos" / "camera", here.parent / "demos" / "camera")  # a wheel's, a clone's
    app = next((place for place in places if place.is_dir()), None)
    if app is None:
        raise SplitrtError("the camera page is missing\nhelp: run from a clone, or the wheel")
    words = [f"--host={host}", f"--port={port}"]
    words += [] if source is None else [f"--source={source}"]
    words += [] if model is None else [f"--model={model}"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(app), *words])


def _story(what: str, model: Path | None, as_json: bool) -> None:
    from splitrt import story, together
    from splitrt.coloured import Ink

    ink = None if as_json else Ink()
    if what == "chat":
        found: Any = story.run(model, ink=ink)
    else:
        found = together.run(model, ink=ink)
    if as_json:
        shown.as_json(found.as_dict())
    elif what == "chat":
        print(found.summary)
    else:
        shown.together(found)
