"""What was wanted of the star before it was built, beside what a run found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rows import Figures, Row

# ms/token of TPI-LLM with four devices as it was measured beforehand, by model and one-way ms, all
# weights resident; and through its window. A run that has TPI-LLM's rows compares with those.
RESIDENT = {("58M", 0): 113.0, ("58M", 1): 205.0, ("1.1B", 0): 803.0, ("1.1B", 1): 586.0}
WINDOWED = {"58M": 300.0, "1.1B": 2843.0}
FASTER = {0: 5.0, 1: 3.0}  # times, by one-way ms
ROOMS = {"58M": "window 2", "1.1B": "1000MB"}


@dataclass(frozen=True, slots=True)
class Goal:
    """figure: a name in Figures.  most: ms or MB."""

    row: Row
    figure: str
    most: float
    why: str = ""


def goals(found: Mapping[Row, Figures]) -> Iterator[Goal]:
    """All of them, whether or not their rows were run."""
    for (model, delay), ms in RESIDENT.items():
        row = Row("splitrt", model, "fp32", 4, float(delay))
        peer = _peer(found, Row("TPI-LLM", model, "fp32", 4, float(delay)), ms)
        why = f"{FASTER[delay]:g} times as fast as TPI-LLM's {peer:.0f}"
        yield Goal(row, "token", peer / FASTER[delay], why)
    for model, ms in WINDOWED.items():
        row = Row("splitrt", model, "fp32", 4, room=ROOMS[model])
        peer = _peer(found, Row("TPI-LLM", model, "fp32", 4, room="window 2"), ms)
        yield Goal(row, "token", peer / 5, f"5 times as fast as TPI-LLM's {peer:.0f}")
    for devices, ms in ((2, 70.0), (4, 60.0)):
        yield Goal(Row("splitrt", "1.1B", "int4", devices, 1.0), "token", ms)
    for weights, mb in (("fp32", 350), ("int4", 250)):
        yield Goal(Row("splitrt", "1.1B", weights, 4), "first", 300.0)
        yield Goal(Row("splitrt", "1.1B", weights, 4, room=f"{mb}MB"), "peak", float(mb))


def compared(found: Mapping[Row, Figures]) -> str:
    """A table in Markdown of the goals whose rows were run."""
    lines = ["| goal | wanted, at most | found | met |", "| --- | --- | --- | --- |"]
    for goal in goals(found):
        one = found.get(goal.row)
        value = None if one is None or one.why else getattr(one, goal.figure)
        if value is None:
            continue
        unit = "MB" if goal.figure == "peak" else "ms"
        name = {"token": "a token", "first": "first token", "peak": "largest device"}[goal.figure]
        why = f" ({goal.why})" if goal.why else ""
        met = "yes" if value <= goal.most else "**no**"
        lines.append(f"| {goal.row}, {name} | {goal.most:.4g} {unit}{why} | {value:.4g} | {met} |")
    return "\n".join(lines)


def _peer(found: Mapping[Row, Figures], row: Row, before: float) -> float:
    """Of this run, if it is there."""
    one = found.get(row)
    return before if one is None or one.why else one.token
