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
    from splitrt.core.result import Result
    from splitrt.train.score import Score

app = typer.Typer(
    name="splitrt",
    help="Split inference: a model's head on the device, its tail on a server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

NEEDS = {"torch": "cloud", "safetensors": "cloud", "onnx": "train", "tomli_w": "train"}

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Folder = Annotated[Path, typer.Argument(help="A model directory.", metavar="DIR")]
Whole = Annotated[
    str,
    typer.Argument(help="Where the model is: a callable returning it.", metavar="MODULE:CALLABLE"),
]
Shape = Annotated[str, typer.Option(help="What the model takes, with batch.")]


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
        ["plan", "answered by", "agrees with whole model", "bytes sent", "p50 ms", "p99 ms", ""],
    )
    for plan in report.plans:
        table.add_row(
            plan.name,
            plan.where,
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
    dtype: Annotated[str, typer.Option(help="float32 or int64.")] = "float32",
    as_json: Json = False,
) -> None:
    """List the places where a model may be cut: one tensor crosses."""
    from splitrt.train.graph import trace
    from splitrt.train.whole import example, load

    found = trace(load(whole), example(_shape(shape), dtype)).cuts
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
    dtype: Annotated[str, typer.Option(help="float32 or int64.")] = "float32",
    channels: Annotated[int | None, typer.Option(help="Put in a bottleneck this wide.")] = None,
    frames: Annotated[Path | None, typer.Option(help="Pictures: a folder or an .npz.")] = None,
    epochs: Annotated[int, typer.Option(help="Of each of the two stages of distillation.")] = 10,
    pixels: Annotated[
        str, typer.Option(help="imagenet, unit or none: from a picture to the model's input.")
    ] = "imagenet",
    seed: int = 0,
) -> None:
    """Cut a model, distil a bottleneck if channels are given, write the model directory.

    Without --channels the cut is exact: plan f32 answers as the whole model does. With them, a
    run that was interrupted goes on where it was when the same command is given again.
    """
    from splitrt.train.make import make

    manifest = make(
        whole,
        after=after,
        to=to,
        example=(_shape(shape), dtype),
        bottleneck=(channels, epochs, seed),
        frames=frames,
        pixels=pixels,
    )
    plans = ", ".join(plan.name for plan in manifest.plans)
    print(f"{to}: cut after {manifest.cut.after}, {_crossing(manifest)} cross; plans {plans}")


@app.command()
def score(
    folder: Folder,
    data: Annotated[Path, typer.Option(help="Labelled pictures: class folders, or an .npz.")],
    limit: Annotated[int | None, typer.Option(help="Take only so many, evenly.")] = None,
    plan: Annotated[list[str] | None, typer.Option(help="Only these plans.")] = None,
    threads: Annotated[int, typer.Option(help="Of each half.")] = 1,
    as_json: Json = False,
) -> None:
    """Accuracy, bytes and milliseconds of every plan, beside the whole model, JPEG and WebP."""
    from splitrt.core.manifest import Manifest
    from splitrt.train import read
    from splitrt.train import score as measure

    height, width = Manifest.load(folder).input.shape[:2]
    frames = read(data, height=height, width=width, limit=limit)
    found = measure(folder, frames, plans=plan or None, threads=threads)
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
    threads: Annotated[int | None, typer.Option(help="Of torch.")] = None,
) -> None:
    """Run the server's half until it is interrupted."""
    from splitrt.cloud import Server

    with Server(folder, port=port, host=host, device=device, threads=threads) as server:
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
    threads: Annotated[int | None, typer.Option(help="Of ONNX Runtime.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Run the device's half over pictures or a camera; a line for every frame."""
    from splitrt.edge.capture import open_source
    from splitrt.edge.edge import Edge

    for name in plan or ["auto"]:
        pin = None if name == "auto" else name
        with Edge(folder, cloud=cloud, deadline=deadline, plan=pin, threads=threads) as device:
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


def _line(name: str, _: str, answer: str, result: Result) -> str:
    total, size = result.timings.total, result.sent_bytes
    why = f"  ({result.reason})" if result.reason else ""
    where = result.where or "none"
    return f"{name:24} {answer:12} {where:6} {result.plan:6} {size:7,} B {total:8.1f} ms{why}"


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
        ["plan", "answered by", kind, "bytes mean", "p95", "head ms", "total ms"],
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
        )
    _show(table)
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


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise typer.BadParameter(f"{text!r} is no shape; write 1,3,224,224", param_hint="--shape")
    return shape


def _crossing(manifest: Any) -> str:
    return "×".join(map(str, manifest.cut.shape)) + " numbers"


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
