"""The rows of the table: which are measured, what was found, how they are shown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

GOALS = {"fp32": "350MB", "int4": "250MB"}  # memory of one of four devices, 1.1B
SAME = "1000MB"  # what TPI-LLM took with its memory scheduler on, 1.1B
KINDS = ("compute", "reduce", "wait", "load")


@dataclass(frozen=True, slots=True)
class Row:
    """One contender under one condition. delay: milliseconds one way.

    room: what a device gives: "" whole shards in memory; "350MB"; "window 2".
    """

    name: str
    model: str
    weights: str
    devices: int = 1
    delay: float = 0.0
    room: str = ""

    def __str__(self) -> str:
        delay = f"{self.delay:g} ms" if self.delay else "loopback"
        words = [self.model, self.name, self.weights, f"n={self.devices}", delay, self.room]
        return " ".join(word for word in words if word)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run gave. cold, first: ms to a process' first token at all, and of a later text.

    token: median ms of those after.  shares: ms a step of the hub, by kind.  peak: MB of the
    largest process.  way: how sums were made, and how many shards each device got.  load: of the
    machine, when it began.  why: it gave nothing.
    """

    cold: float = 0.0
    first: float | None = None
    token: float = 0.0
    shares: Mapping[str, float] = field(default_factory=dict)
    peak: float = 0.0
    ids: tuple[int, ...] = ()
    way: str = ""
    load: float = 0.0
    why: str = ""


def planned(models: Sequence[str], counts: Sequence[int], delays: Sequence[float]) -> Iterator[Row]:
    """All rows, transformers in fp32 first: its text is what others are compared with."""
    for model in models:
        yield Row("transformers", model, "fp32")
        yield Row("transformers", model, "bf16")
        yield Row("accelerate", model, "fp32", room="disk")
        for weights in ("fp32", "int4"):
            for devices in counts:
                for delay in delays if devices > 1 else delays[:1]:
                    yield from _devices(model, weights, devices, delay)


def _devices(model: str, weights: str, devices: int, delay: float) -> Iterator[Row]:
    row = Row("splitrt", model, weights, devices, delay)
    yield row
    yield from (_with(row, room=room) for room in _rooms(row))
    q40 = "f32" if weights == "fp32" else "q40"
    yield _with(row, name="distributed-llama", weights=q40)
    if weights == "fp32" and devices > 1 and delay <= 1:
        yield _with(row, name="gloo")
        yield _with(row, name="TPI-LLM")
        yield _with(row, name="TPI-LLM", room="window 2")


def _rooms(row: Row) -> list[str]:
    """The memory that devices get in further rows, where it is less than they would like."""
    if row.delay > 1:
        return []
    if row.model != "1.1B":
        return ["window 2"]
    goal = [GOALS[row.weights]] if row.devices == 4 else []
    return goal + ([SAME] if row.weights == "fp32" and not row.delay else [])


def _with(row: Row, **changes: Any) -> Row:
    return replace(row, **changes)


def missing(why: str) -> Figures:
    """Of what could not be run."""
    return Figures(why=why)


def middle(runs: Sequence[Figures]) -> Figures:
    """The medians of several runs; the largest peak; the text of the first."""
    done = [one for one in runs if not one.why]
    if not done:
        return runs[0]
    firsts = [one.first for one in done if one.first is not None]
    kinds = done[0].shares
    return Figures(
        cold=statistics.median(one.cold for one in done),
        first=statistics.median(firsts) if firsts else None,
        token=statistics.median(one.token for one in done),
        shares={kind: statistics.median(one.shares[kind] for one in done) for kind in kinds},
        peak=max(one.peak for one in done),
        ids=done[0].ids,
        way=done[0].way,
        load=max(one.load for one in done),
    )


def alike(ids: Sequence[int], wanted: Sequence[int]) -> str:
    """Whether two texts are the same, or as far as they are."""
    if not ids or not wanted:
        return "–"
    pairs = zip(ids, wanted, strict=False)
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), len(ids))
    return "yes" if tuple(ids) == tuple(wanted) else f"{same} of {len(wanted)}"


HEADS = (
    "model", "peer", "weights", "n", "one way", "room", "first, cold", "first", "ms/token",
    "compute · reduce · wait · load", "way", "peak MB", "text", "busy",
)  # fmt: skip


def printed(found: Mapping[Row, Figures]) -> str:
    """A table in Markdown; ms."""
    texts = {row: one.ids for row, one in found.items()}
    lines = [HEADS, ["---"] * len(HEADS)]
    lines += [_line(row, one, texts.get(standard(row), ())) for row, one in found.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def standard(row: Row) -> Row:
    """The row whose text this one should have: transformers', or of one device for rounded ones."""
    if row.weights in ("fp32", "f32"):
        return Row("transformers", row.model, "fp32")
    return Row("transformers" if row.weights == "bf16" else "splitrt", row.model, row.weights)


def _line(row: Row, one: Figures, text: Sequence[int]) -> list[str]:
    delay = f"{row.delay:g} ms" if row.delay else "loopback"
    known = [row.model, row.name, row.weights, str(row.devices), delay, row.room or "all"]
    if one.why:
        return [*known, one.why[:100], *[""] * (len(HEADS) - len(known) - 1)]
    told = ["–" if one.shares.get(kind) is None else f"{one.shares[kind]:.1f}" for kind in KINDS]
    return [
        *known,
        f"{one.cold:.0f}",
        "–" if one.first is None else f"{one.first:.0f}",
        f"{one.token:.1f}",
        " · ".join(told) if one.shares else "–",
        one.way or "–",
        f"{one.peak:.0f}",
        alike(one.ids, text),
        f"{one.load:.1f}",
    ]
