"""The verbs: demo, cuts, split, score, serve, edge, check."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from splitrt.errors import SplitrtError

if TYPE_CHECKING:
    from splitrt.core.manifest import Similar
    from splitrt.core.result import Result
    from splitrt.train.score import Score

app = typer.Typer(
    name="splitrt",
    help="Split inference: a model's head on the device, its tail on a server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

NEEDS = {
    "torch": "cloud", "safetensors": "cloud",
    "matplotlib": "train", "onnx": "train", "tomli_w": "train",
}  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Folder = Annotated[Path, typer.Argument(help="A model directory.", metavar="DIR")]
Tails = Annotated[
    list[Path] | None, typer.Option("--tail", help="Another tail of the same head; several may be.")
]
Whole = Annotated[
    str,
    typer.Argument(help="Where the model is: a callable returning it.", metavar="MODULE:CALLABLE"),
]
Shape = Annotated[str, typer.Option(help="What the model takes, with batch; the largest picture.")]
Dtype = Annotated[str, typer.Option(help="float32 or int64.")]
Smallest = Annotated[
    str | None, typer.Option(help="H,W of the smallest picture, if they change their size.")
]
Step = Annotated[int, typer.Option(help="Their height and width are multiples of it.")]
Fit = Annotated[
    str, typer.Option(help="Pictures of other sizes: exact (an error), letterbox, stretch.")
]
Beside = Annotated[
    list[str] | None,
    typer.Option(help="An input of the tail alone: NAME:DTYPE:SHAPE, without batch."),
]


Picture = Annotated[
    str | None, typer.Option(help="The --side that is a picture's height and width as it came.")
]


@app.command()
def demo(
    source: Annotated[str | None, typer.Option(help="A folder, a video, a camera.")] = None,
    as_json: Json = False,
) -> None:
    """Start a server and a device on this machine, send pictures, show what each plan does."""
    from splitrt.demo import run

    report = run(source, quiet=as_json)
    if as_json:
        _print_json(report.as_dict())
        return
    table = _table(
        f"{report.pictures} pictures, {report.model}: a device and a server on this machine",
        ["plan", "answered by", "right on tests", "agrees here", "bytes", "p50 ms", "p99 ms", ""],
    )
    for plan in report.plans:
        table.add_row(
            plan.name,
            plan.where,
            "-" if plan.accuracy is None else f"{plan.accuracy:.1%}",
            f"{plan.agreement:.0%}",
            f"{plan.bytes_mean:,.0f}",
            f"{plan.p50_ms:.1f}",
            f"{plan.p99_ms:.1f}",
            plan.meaning,
        )
    _show(table)
    _console().print(report.summary)


@app.command()
def cuts(
    whole: Whole,
    shape: Shape = "1,3,224,224",
    dtype: Dtype = "float32",
    smallest: Smallest = None,
    step: Step = 32,
    side: Beside = None,
    as_json: Json = False,
) -> None:
    """List the places where a model may be cut: one tensor crosses, and perhaps side data."""
    from splitrt.train.graph import trace
    from splitrt.train.whole import load

    takes = _takes(shape, dtype, (smallest, step, "exact"), side)
    found = trace(load(whole), takes.example(), takes.free).cuts
    if as_json:
        keys = ("name", "shape", "bytes", "head_macs", "head_params")
        _print_json({"cuts": [{key: getattr(place, key) for key in keys} for place in found]})
        return
    table = _table(
        f"{len(found)} legal cuts of {whole}",
        ["after", "what crosses", "bytes", "head MMAC", "head parameters"],
    )
    for place in found:
        table.add_row(
            place.name,
            "×".join(map(str, place.shape)),
            f"{place.bytes:,}",
            f"{place.head_macs / 1e6:,.1f}",
            f"{place.head_params:,}",
        )
    _show(table)


@app.command()
def split(
    whole: Whole,
    after: Annotated[str, typer.Option(help="The module after which to cut (see `cuts`).")],
    to: Annotated[Path, typer.Option(help="The model directory to write.")],
    shape: Shape = "1,3,224,224",
    dtype: Dtype = "float32",
    smallest: Smallest = None,
    step: Step = 32,
    fit: Fit = "exact",
    side: Beside = None,
    picture_size: Picture = None,
    channels: Annotated[int | None, typer.Option(help="Put in a bottleneck this wide.")] = None,
    widths: Annotated[
        str | None, typer.Option(help="A small head of several widths instead: 6,12,24 channels.")
    ] = None,
    frames: Annotated[Path | None, typer.Option(help="Pictures: a folder or an .npz.")] = None,
    epochs: Annotated[int, typer.Option(help="Of each of the two stages of distillation.")] = 10,
    pixels: Annotated[
        str, typer.Option(help="imagenet, unit or none: from a picture to the model's input.")
    ] = "imagenet",
    seed: int = 0,
) -> None:
    """Cut a model, distil a bottleneck if channels are given, write the model directory.

    Without --channels or --widths the cut is exact: plan f32 answers as the whole model does. A
    distillation that was interrupted goes on where it was when the same command is given again.
    """
    from splitrt.train.make import Narrow, make

    manifest = make(
        whole,
        after=after,
        to=to,
        takes=_takes(shape, dtype, (smallest, step, fit), side, picture_size),
        bottleneck=Narrow(channels, _shape(widths, "--widths") if widths else (), epochs, seed),
        frames=frames,
        pixels=pixels,
    )
    plans = ", ".join(plan.name for plan in manifest.plans)
    print(f"{to}: cut after {manifest.cut.after}, {_crossing(manifest)} cross; plans {plans}")


@app.command()
def score(
    folder: Folder,
    data: Annotated[
        Path,
        typer.Option("--data", "--frames", help="Labelled pictures: class folders, or an .npz."),
    ],
    limit: Annotated[int | None, typer.Option(help="Take only so many, evenly.")] = None,
    plan: Annotated[list[str] | None, typer.Option(help="Only these plans.")] = None,
    threads: Annotated[int, typer.Option(help="Of each half.")] = 1,
    plot: Annotated[Path | None, typer.Option(help="Draw it too: a .png or .svg file.")] = None,
    as_json: Json = False,
) -> None:
    """Accuracy, bytes and milliseconds of every plan, beside the whole model, JPEG and WebP."""
    from splitrt.core.manifest import Manifest
    from splitrt.train import read
    from splitrt.train import score as measure

    if plot is not None:
        from splitrt.train.plot import check, draw

        check(plot)  # before the work, not after it
    height, width = Manifest.load(folder).input.shape[:2]
    frames = read(data, height=height, width=width, limit=limit)
    found = measure(folder, frames, plans=plan or None, threads=threads)
    if plot is not None:
        draw(found, plot)
    if as_json:
        _print_json(found.as_dict())
    else:
        _show_score(found)


@app.command()
def serve(
    folder: Folder,
    port: int = 50700,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    tail: Tails = None,
    threads: Annotated[int | None, typer.Option(help="Of torch.")] = None,
) -> None:
    """Run the server's half until it is interrupted."""
    from splitrt.cloud import Server

    with Server(
        folder, port=port, host=host, tails=tail or (), device=device, threads=threads
    ) as server:
        print(f"tail of {folder} at {server.address}", flush=True)
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: server.stop())
        server.wait()


@app.command()
def edge(
    folder: Folder,
    source: Annotated[str, typer.Option(help="A folder, a picture, a video, a camera.")],
    cloud: Annotated[str | None, typer.Option(help="The server's host:port.")] = None,
    deadline: Annotated[float | None, typer.Option(help="Seconds a frame may take.")] = None,
    plan: Annotated[
        list[str] | None,
        typer.Option(help="Pin a plan (auto: the gate decides); several go in turn."),
    ] = None,
    repeat: Annotated[int, typer.Option(help="Show a folder's pictures so many times.")] = 1,
    inflight: Annotated[int, typer.Option(help="Frames between capture and result.")] = 4,
    tail: Tails = None,
    filter: Annotated[bool, typer.Option(help="Drop frames with nothing of interest.")] = False,
    temporal: Annotated[bool, typer.Option(help="Send differences: for a still camera.")] = False,
    keyframe: Annotated[
        int, typer.Option(help="With --temporal: a whole frame every so many.")
    ] = 30,
    similar: Annotated[
        str | None,
        typer.Option(help="Re-use an answer up to this change, in grey levels; or `model`."),
    ] = None,
    interval: Annotated[int, typer.Option(help="With --similar: ask one frame in so many.")] = 30,
    threads: Annotated[int | None, typer.Option(help="Of ONNX Runtime.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Run the device's half over pictures or a camera; a line for every frame."""
    from splitrt.edge.capture import open_source
    from splitrt.edge.edge import Edge

    for name in plan or ["auto"]:
        pin = None if name == "auto" else name
        with Edge(
            folder,
            cloud=cloud,
            deadline=deadline,
            plan=pin,
            filter=filter,
            tails=tail or (),
            temporal=keyframe if temporal else False,
            similar=_similar(similar, interval),
            threads=threads,
        ) as device:
            for _ in range(repeat):
                for frame, result in device.stream(open_source(source), inflight=inflight):
                    answer = _answer(result, device.manifest.labels)
                    line = _json_line if as_json else _line
                    print(line(frame.name, name, answer, result), flush=True)


@app.command()
def check(folder: Folder) -> None:
    """Prove a model directory: hashes, names, sizes; the head runs; the halves fit."""
    from splitrt.check import check as prove

    for line in prove(folder):
        print(line)


def main() -> None:
    """Run a verb; an error of splitrt's own tree is a message, not a traceback."""
    try:
        app()
    except SplitrtError as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        if error.name not in NEEDS:
            raise
        sys.exit(
            f"error: this needs {error.name}\nhelp: pip install 'splitrt[{NEEDS[error.name]}]'"
        )


def _answer(result: Result, labels: list[str] | None) -> str:
    if not result.outputs:
        return "-"
    first = next(iter(result.outputs.values()))
    if first.ndim != 1:
        return "×".join(map(str, first.shape))
    best = int(first.argmax())
    return labels[best] if labels else str(best)


def _similar(text: str | None, interval: int) -> Similar | bool:
    """--similar X, --similar model, or neither."""
    from splitrt.core.manifest import Similar

    if text is None or text == "model":
        return text is not None
    try:
        return Similar(threshold=float(text), interval=interval)
    except ValueError:  # pydantic's, too
        raise SplitrtError(
            f"similar {text!r}, interval {interval}\n"
            "help: grey levels from 0 on, or `model`; an interval of 1 or more"
        ) from None


def _line(name: str, _: str, answer: str, result: Result) -> str:
    total, size = result.timings.total, result.sent_bytes
    why = f"  ({result.reason})" if result.reason else ""
    where = result.where or "none"
    return f"{name:24} {answer:12} {where:6} {result.plan:7} {size:7,} B {total:8.1f} ms{why}"


def _json_line(name: str, plan: str, answer: str, result: Result) -> str:
    line: dict[str, Any] = {
        "frame": name,
        "plan": plan,
        "went": result.plan,
        "answer": answer,
        "where": result.where,
        "reason": result.reason,
        "confidence": result.confidence,
        "sent_bytes": result.sent_bytes,
        "ms": round(result.timings.total, 3),
    }
    return json.dumps(line)


def _show_score(found: Score) -> None:
    kind = "accuracy" if found.labelled else "agreement"
    table = _table(
        f"{found.model} on {found.frames:,} pictures",
        ["plan", "answered by", kind, "bytes mean", "p95", "head ms", "total ms", ""],
    )
    table.add_row("whole", "-", f"{found.whole:.2%}", "-", "-", "-", f"{found.whole_ms:.1f}")
    for plan in found.plans:
        local = f" ({plan.share_edge:.0%} edge)" if plan.where == "cloud+edge" else ""
        table.add_row(
            plan.name,
            plan.where + local,
            f"{plan.accuracy:.2%}",
            f"{plan.bytes_mean:,.0f}",
            f"{plan.bytes_p95:,.0f}",
            f"{plan.head_ms:.1f}",
            f"{plan.total_ms:.1f}",
            "dominated" if plan.dominated else "",
            style="dim" if plan.dominated else None,
        )
    _show(table)
    _show_exit_curve(found, kind)
    _show_heads(found)
    if not found.baselines:
        return
    beside = _table(
        "beside it: whole pictures sent as files",
        ["codec", "quality", kind, "bytes mean", "without headers"],
    )
    for line in found.baselines:
        scan = "-" if line.scan_bytes_mean is None else f"{line.scan_bytes_mean:,.0f}"
        beside.add_row(
            line.codec, str(line.quality), f"{line.accuracy:.2%}", f"{line.bytes_mean:,.0f}", scan
        )
    _show(beside)


def _show_exit_curve(found: Score, kind: str) -> None:
    if found.exit_curve is None:
        return
    table = _table(
        f"the surest frames by the exit, the rest by {found.exit_curve.plan}",
        ["answered here", "confidence from", kind, "bytes mean", ""],
    )
    for mix in found.mixes:
        table.add_row(
            f"{mix.share:.0%}",
            "-" if mix.threshold is None else f"{mix.threshold:.2f}",
            f"{mix.accuracy:.2%}",
            f"{mix.bytes_mean:,.0f}",
            "still within 1 point of the whole" if mix == found.exit_curve.within else "",
        )
    _show(table)
    if found.exit_curve.within is None:
        _console().print(f"{found.exit_curve.lost}\n")


def _show_heads(found: Score) -> None:
    if not found.heads:
        return
    names = [f"{head.macs / 1e6:,.1f} MMAC" for head in found.heads]
    table = _table("ms of the head, estimated", ["device", *names])
    for device in found.heads[0].devices:
        table.add_row(device, *(str(head.devices[device]) for head in found.heads))
    _show(table)
    for line in found.warnings:
        _console().print(f"warning: {line}\n")


def _shape(text: str, option: str = "--shape") -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        wanted = "1,3,224,224" if option == "--shape" else "64,64"
        raise typer.BadParameter(f"{text!r} is no shape; write {wanted}", param_hint=option)
    return shape


def _takes(
    shape: str,
    dtype: str,
    changing: tuple[str | None, int, str],
    side: list[str] | None,
    picture: str | None = None,
) -> Any:
    """The options of `cuts` and `split` that say what a model takes.

    changing: --smallest, --step and --fit.
    """
    from splitrt.core.sizes import Sizes
    from splitrt.train.free import Free
    from splitrt.train.make import Takes, beside

    whole, sizes = _shape(shape), None
    smallest, step, fit = changing
    if smallest is not None:
        low = _shape(smallest, "--smallest")
        sizes = Sizes.between(low, whole[2:], step=step, fit=fit)
    return Takes(whole, dtype, Free(sizes, beside(side or []), picture))


def _crossing(manifest: Any) -> str:
    words = "×".join(map(str, manifest.cut.shape)) + " numbers"
    return words if manifest.sizes is None else f"{words} at most"


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        words = place == 0 or column in ("answered by", "what crosses", "", "codec")
        table.add_column(column, justify="left" if words else "right", no_wrap=column != "")
    return table


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def _show(table: Table) -> None:
    console = _console()
    console.print(table)
    console.print()


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


if __name__ == "__main__":
    main()
