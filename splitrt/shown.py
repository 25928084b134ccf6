"""What the verbs print: tables and lines for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from splitrt.core import boxes
from splitrt.core.rows import TOKEN, Rows

if TYPE_CHECKING:
    from splitrt.cloud import Server
    from splitrt.core.forecast import Outlook
    from splitrt.core.language import Language
    from splitrt.core.manifest import Manifest
    from splitrt.core.profile import Profile
    from splitrt.core.result import Result
    from splitrt.demo import Report
    from splitrt.together import Together
    from splitrt.train.graph import Cut
    from splitrt.train.score import Score


def serving(folder: str, server: Server) -> list[str]:
    """What a server serves and where; of a language model also what each way to send costs."""
    figures = [] if server.metrics is None else [f"figures at http://{server.metrics}/metrics"]
    if not server.language:
        return [*figures, f"tail of {folder} at {server.address}"]
    scheduler = server.scheduler
    manifest, layers = scheduler.layers.manifest, scheduler.layers
    depth = manifest.shape.layers
    lines = [*figures, f"layers {layers.first + 1} to {depth} of {folder} at {server.address}"]
    for resume in manifest.resume:
        held = layers.bytes_of(resume)
        if resume == "tokens":
            sent, what = TOKEN, f"its tokens: the text comes here, all {depth} layers run here"
        else:
            sent = Rows(manifest.codec, manifest.shape.hidden).size
            what = f"rows of {manifest.codec}: the text stays there, {depth - manifest.cut} layers"
            what += f" of {depth} run here"
        lines.append(f"{resume}: {sent:,} bytes a position up, {held:,} held; {what}")
    lines.append(
        f"room for {scheduler.resident:,} positions, {scheduler.parked:,} more parked; "
        f"a session without a call is kept for {scheduler.room.ttl:g} s"
    )
    return lines


def report(found: Report) -> None:
    """What the demo found."""
    table = _table(
        f"{found.pictures} pictures, {found.model}: a device and a server on this machine",
        ["plan", "answered by", "right on tests", "agrees here", "bytes", "p50 ms", "p99 ms", ""],
    )
    for plan in found.plans:
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
    _console().print(found.summary)


def together(found: Together) -> None:
    """What each device of a star spent on a token."""
    table = _table(
        f"{found.name}: {len(found.devices)} processes here",
        ["device", "shards", "compute ms", "reduce ms", "wait ms", "peak MB"],
    )
    for one in found.devices:
        times = (f"{ms:.2f}" for ms in (one.compute, one.reduce, one.wait))
        table.add_row(one.name, " ".join(map(str, one.shards)), *times, f"{one.peak / 1e6:.0f}")
    _show(table)
    _console().print(found.summary)


def cuts(whole: str, found: Sequence[Cut]) -> None:
    """Every legal cut."""
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


def exits(found: Language) -> None:
    """How often each exit of a language model says what the last layer says, and how sure it is."""
    table = _table(
        f"{found.name}: exits on held-out text",
        ["exit after", "confidence from", "share", "accepted", "calibration error"],
    )
    for one in found.exits:
        known = one.accepted is not None and one.ece is not None
        figures = (f"{one.accepted:.1%}", f"{one.ece:.3f}") if known else ("-", "-")
        table.add_row(f"layer {one.layer}", "all", "100%", *figures)
        for part in one.bins:
            table.add_row("", f"{part.low:.2f}", f"{part.share:.0%}", f"{part.accepted:.1%}", "")
    _show(table)


def answer(result: Result, labels: list[str] | None) -> str:
    """The class, or the shape of an answer that is none."""
    if not result.outputs:
        return "-"
    first = next(iter(result.outputs.values()))
    if first.ndim != 1:
        return "×".join(map(str, first.shape))
    best = int(first.argmax())
    return labels[best] if labels else str(best)


def seen(manifest: Manifest, result: Result, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
    """What a frame's answer is in words, and further entries of its JSON line.

    Of a detector how many boxes there are and the best one; size: the picture's (height, width).
    """
    if manifest.boxes is None or not result.outputs:
        return answer(result, manifest.labels), {}
    things = boxes.found(manifest, result, size)
    return things.words(manifest.labels), {"boxes": things.entries(manifest.labels)}


def line(name: str, _: str, answer: str, result: Result, __: dict[str, Any]) -> str:
    """A frame's end, for people."""
    total, size = result.timings.total, result.sent_bytes
    why = f"  ({result.reason})" if result.reason else ""
    where = result.where or "none"
    return f"{name:24} {answer:20} {where:6} {result.plan:9} {size:7,} B {total:8.1f} ms{why}"


def json_line(name: str, plan: str, answer: str, result: Result, further: dict[str, Any]) -> str:
    """A frame's end, for programs."""
    line: dict[str, Any] = {
        "frame": name,
        "plan": plan,
        "went": result.plan,
        "answer": answer,
        "where": result.where,
        "reason": result.reason,
        "confidence": result.confidence,
        "sent_bytes": result.sent_bytes,
        "revision": result.revision,
        "ms": round(result.timings.total, 3),
    }
    return json.dumps(line | further)


def score(found: Score) -> None:
    """Plans, exit curve, devices, baselines."""
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
    _exit_curve(found, kind)
    _heads(found)
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


def _exit_curve(found: Score, kind: str) -> None:
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


def _heads(found: Score) -> None:
    if not found.heads:
        return
    names = [f"{head.macs / 1e6:,.1f} MMAC" for head in found.heads]
    table = _table("ms of the head, estimated", ["device", *names])
    for device in found.heads[0].devices:
        table.add_row(device, *(str(head.devices[device]) for head in found.heads))
    _show(table)
    for line in found.warnings:
        _console().print(f"warning: {line}\n")


def profile(found: Profile) -> None:
    """What was measured of a device."""
    table = _table(
        f"{found.name}: {found.cpu}, {found.cores} cores",
        ["part", "name", "threads", "p50 ms", "p95 ms"],
    )
    for one in found.measured:
        table.add_row(
            one.part, one.name, str(one.threads), f"{one.p50_ms:.3f}", f"{one.p95_ms:.3f}"
        )
    _show(table)
    said = {"MiB at most": "peak_memory_mb", "W idle": "idle_w", "W with a head": "head_w"}
    for unit, key in said.items():
        figure = getattr(found, key)
        if figure is not None:
            print(f"{_marked(f'{figure.value:.1f}', figure.estimated)} {unit} ({figure.source})")


def outlook(found: Outlook, title: str) -> None:
    """What each plan would cost."""
    table = _table(
        title, ["plan", "answered by", "expected ms", "bytes", "joules", "accuracy", "hit", "worth"]
    )
    for plan in found.plans:
        table.add_row(
            plan.name,
            plan.where,
            _marked(f"{plan.expected_ms:,.1f}", plan.ms_estimated),
            f"{plan.bytes:,.0f}",
            "-" if plan.joules is None else _marked(f"{plan.joules:.4f}", plan.joules_estimated),
            "-" if plan.accuracy is None else f"{plan.accuracy:.2%}",
            f"{plan.hit:.1%}",
            f"{plan.worth:.2%}",
            style="bold" if plan.name == found.best else None,
        )
    _show(table)
    print(f"best: {found.best}\nlink: {found.link}")
    for line in found.estimated:
        print(f"est. {line}")


def _marked(text: str, estimated: bool) -> str:
    return f"{text} est." if estimated else text


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


def as_json(value: object) -> None:
    """One object, indented."""
    print(json.dumps(value, indent=2))
