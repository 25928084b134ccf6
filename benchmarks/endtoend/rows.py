"""Every policy on every link and device, as rows; and what the rows say side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.endtoend.policies import Pinned, Policy, Steered
from benchmarks.endtoend.record import WHOLE
from benchmarks.endtoend.replay import PATIENCE, WIRE, Outcome, replay
from benchmarks.endtoend.table import Table
from benchmarks.link.scene import SERVER, Scene, scene
from splitrt.core import links
from splitrt.core.forecast import crossing
from splitrt.core.plan import Option

LINKS = ("0.5mbps", "1mbps", "5mbps", "20mbps", "100mbps", "lte-poor", "lte-fair", "lte-good")
LINKS += ("lte-best",)
DEADLINE = 0.25  # seconds
STANDS = " + exit"  # of a policy whose exit stands in


@dataclass(frozen=True, slots=True)
class Row:
    """One policy on one link and device. plan: what is pinned, or the quality that was best."""

    table: str
    device: str
    link: str
    policy: str
    plan: str
    outcome: Outcome

    def as_dict(self) -> dict[str, object]:
        """For JSON, flat."""
        told = asdict(self)
        return {**told, **told.pop("outcome")}


def played(table: Table, device: str, name: str, *, seconds: float, seed: int) -> list[Row]:
    """Every policy on one link of that name."""
    trace = links.generate(links.link(name), seconds, seed)
    one = scene(trace, table, deadline=DEADLINE, seed=seed)
    found = [
        Row(table.name, device, name, policy, plan, replay(one, table, made))
        for policy, plan, made in policies(table)
    ]
    return found + [
        max(
            (
                Row(table.name, device, name, policy, jpeg.name, _pinned(one, table, jpeg, stands))
                for jpeg in table.jpegs
            ),
            key=lambda row: worth(table, row),
        )
        for policy, stands in (("jpeg", False), (f"jpeg{STANDS}", True))
    ]


def policies(table: Table) -> Iterator[tuple[str, str, Policy]]:
    """(name, its plan, a fresh one) of all but JPEG."""
    for plan, name in ((table.best_exit, "exit"), (WHOLE, WHOLE)):
        yield name, plan, Policy(table, plan=plan)
    for name, stands in (("split", False), (f"split{STANDS}", True)):
        yield name, table.default.name, Pinned(table, table.default, hedged=stands)
    yield "splitrt", "", Steered(table)


def worth(table: Table, row: Row) -> float:
    """What the best JPEG is chosen by: accuracy, or without a model what is assumed of it."""
    out = row.outcome
    if out.accuracy is not None:
        return out.accuracy
    jpeg = next(one for one in table.jpegs if one.name == row.plan)
    stands = table.exits[table.best_exit][1] if row.policy.endswith(STANDS) else 0.0
    return out.cloud * jpeg.accuracy + (1 - out.cloud) * stands


def alone(table: Table, name: str, *, seconds: float, seed: int) -> dict[str, float]:
    """Median milliseconds of frames that have the link and the device for themselves."""
    trace = links.generate(links.link(name), seconds, seed)

    def median(option: Option, head: float) -> float:
        there = crossing(trace, option.bytes + WIRE)
        return 1000 * min(PATIENCE, float(np.median(head + there + trace.rtt + SERVER)))

    jpegs = {jpeg.name: median(jpeg, 0.0) for jpeg in table.jpegs}
    return {
        "whole": 1000 * table.whole,
        "split": median(table.default, table.default.head),
        **jpegs,
    }


def reductions(found: dict[str, dict[str, float]]) -> Iterator[str]:
    """What the split saves of the whole model's and of each JPEG's median milliseconds."""
    for link, ms in found.items():
        saved = (
            f"{100 * (ms['split'] / ms[name] - 1):+.0f} % {name}" for name in ms if name != "split"
        )
        yield f"{link:9} one at a time: split {ms['split']:.1f} ms, {', '.join(saved)}"


def lines(rows: Iterable[Row]) -> Iterator[str]:
    """A table, a row a line."""
    yield (
        f"{'link':9} {'policy':12} {'plan':9} {'p50 ms':>7} {'p95 ms':>7} {'hit %':>6} "
        f"{'cloud %':>7} {'right %':>7} {'B/frame':>8} {'mJ/frame':>8}"
    )
    for row in rows:
        out = row.outcome
        right = "-" if out.accuracy is None else f"{100 * out.accuracy:.1f}"
        yield (
            f"{row.link:9} {row.policy:12} {row.plan:9} {_ms(out.p50_ms):>7} {_ms(out.p95_ms):>7} "
            f"{100 * out.hit:6.1f} {100 * out.cloud:7.1f} {right:>7} {out.bytes:8.0f} {out.mj:8.2f}"
        )


def _pinned(one: Scene, table: Table, jpeg: Option, stands: bool) -> Outcome:
    return replay(one, table, Pinned(table, jpeg, hedged=stands))


def _ms(milliseconds: float) -> str:
    return "never" if milliseconds >= 1000 * PATIENCE else f"{milliseconds:.1f}"
