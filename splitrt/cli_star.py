"""The verb of several devices that hold one model: star."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitrt import shown
from splitrt.cli_chat import Talk, prompts, secret
from splitrt.coloured import Ink

if TYPE_CHECKING:
    from splitrt.star import Star, Way

logger = logging.getLogger(__name__)

UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}


def star(
    folder: Annotated[
        Path | None,
        typer.Argument(help="What `splitrt split --star` wrote: this is the hub.", metavar="DIR"),
    ] = None,
    join: Annotated[
        str | None, typer.Option(help="HOST:PORT of the hub: this is a spoke.", metavar="HOST:PORT")
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(
            help="Where this spoke waits until a hub names it by --spokes.", metavar="HOST:PORT"
        ),
    ] = None,
    spokes: Annotated[
        str | None,
        typer.Option(
            help="The hub: HOST:PORT of each spoke that waits, with commas; or how many are to "
            "join. By default one less than the folder was split for.",
        ),
    ] = None,
    listen: Annotated[str, typer.Option(help="The hub: where spokes join.")] = "127.0.0.1:50710",
    sums_port: Annotated[
        int, typer.Option(help="The hub: where sums are made, for a firewall; 0: a free port.")
    ] = 0,
    patience: Annotated[
        float, typer.Option(help="The hub: seconds to wait for spokes; then it begins with fewer.")
    ] = 60.0,
    reduce: Annotated[
        str | None, typer.Option(help="star or mesh; by default the faster, as measured.")
    ] = None,
    wire: Annotated[
        str | None,
        typer.Option(
            help="How sums travel: f32, f16, q8; by default the fastest; with weights that are "
            "not rounded, f32."
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Blocks of weights that are loaded at once.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What this device gives, for instance 300MB.")
    ] = None,
    longest: Annotated[
        int | None, typer.Option(min=2, help="Positions of a text, fewer than the model's.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of ONNX Runtime.")] = 1,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say which device would hold what.")
    ] = False,
    prompt: Annotated[str | None, typer.Option(help="Say this, print the answer, end.")] = None,
    most: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Of an answer; else what fits.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0: always the best token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Of the likeliest tokens, so much.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    drafts: Annotated[
        int | None,
        typer.Option(min=0, help="Tokens of a step, looked up in the text; else as many as pay."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="The spoke: where fetched files are kept.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of this device; else its host's.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="This device's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Who vouches for the others, PEM.")] = None,
    secret_file: Annotated[
        Path | None, typer.Option(help="What all devices know; or set SPLITRT_STAR_SECRET.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object an answer.")] = False,
) -> None:
    """Hold one model with several devices: the hub talks with you, spokes hold parts of it.

    On each spoke `splitrt star --join hub:50710`; on the hub `splitrt star DIR --listen
    0.0.0.0:50710 --spokes 3`. A spoke fetches its part from the hub.
    """
    from splitrt.core.sample import Sampling
    from splitrt.star import Room, Seal, Star, serve

    if sum(one is not None for one in (folder, join, wait)) != 1:
        raise typer.BadParameter("one of DIR (the hub), --join or --wait (a spoke)")
    level = logging.WARNING if as_json else logging.INFO
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=level)
    seal = Seal(tls_cert, tls_key, tls_ca, secret(secret_file, "SPLITRT_STAR_SECRET"))
    room = Room(threads, longest, window, None if memory is None else parsed(memory))
    if folder is None:
        serve(join=join, wait=wait, store=store, seal=seal, room=room, name=name)
        return
    from splitrt.edge.teller import Teller  # the hub's alone: these need the extra `chat`
    from splitrt.edge.tokens import Words

    words, sampling = Words(folder), Sampling(temperature, top_p, seed)
    found = Star(
        folder,
        listen=listen,
        sums_port=sums_port,
        ways=_ways(reduce, wire),
        sampling=sampling,
        drafts=drafts,
        room=room,
        seal=seal,
    )
    with found:
        count = _invited(found, spokes)
        if plan:
            found.roster.wait(count, patience)
            planned = found.plan()
            shown.as_json(planned.as_dict()) if as_json else print(planned)
            return
        found.gather(count, patience)
        talk = Talk(Teller(words, found), None if as_json else Ink(), most)
        if prompt is not None:
            talk.say(prompt)
            return
        for text in prompts():
            talk.say(text)


def _invited(star: Star, spokes: str | None) -> int:
    """How many spokes are wanted; those that are named are asked to come."""
    count = len(star.manifest.devices) - 1
    if spokes is not None and spokes.isdecimal():
        count = int(spokes)
    elif spokes is not None:
        named = [one.strip() for one in spokes.split(",")]
        count = len(named)
        for one in named:
            star.roster.invite(one)
    logger.info("the hub of %s at %s waits for %d spokes", star.folder, star.address, count)
    return count


def _ways(reduce: str | None, wire: str | None) -> tuple[Way, ...] | None:
    """Those that were asked for; None: what the weights allow."""
    from splitrt.star import WAYS, Way

    if reduce is None and wire is None:
        return None
    Way(reduce or "star", wire or "f32")  # names what is wrong
    return tuple(
        way for way in WAYS if way.kind == (reduce or way.kind) and way.wire == (wire or "f32")
    )


def parsed(text: str) -> int:
    """Bytes: 300MB, 1.5 GB, 2000000."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)i?b?\s*", text.lower())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size, such as 300MB", param_hint="--memory")
    return int(float(found[1]) * UNITS[found[2]])
