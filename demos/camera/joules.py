"""What a frame would cost a small device's battery, as `splitrt plan` estimates it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from splitrt import Edge, Result

PLAN = ("--link", "wifi", "--json")


@dataclass(frozen=True, slots=True)
class Joules:
    """device: a profile's name.  plans: joules of a frame by its plan; none where unknown.

    byte: joules of sending one.  why: there is no estimate, in a sentence.
    """

    device: str
    plans: dict[str, float] = field(default_factory=dict)
    byte: float = 0.0
    why: str | None = None

    def of(self, result: Result) -> float | None:
        """Of one frame: its plan's, and of what was sent in vain."""
        known = self.plans.get(result.plan)
        if known is None or result.where != "edge":
            return known
        return known + self.byte * result.sent_bytes


def asked(model: Path, device: str) -> subprocess.CompletedProcess[str]:
    """What `splitrt plan` says of every plan."""
    command = [sys.executable, "-m", "splitrt.cli", "plan", str(model), "--device", device, *PLAN]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def joules(told: subprocess.CompletedProcess[str], device: str, edge: Edge) -> Joules:
    """From that; a model or a device it cannot tell of has no estimate."""
    if told.returncode:
        lines = told.stderr.strip().splitlines() or ["`splitrt plan` failed"]
        wrong = next((line for line in lines if line.startswith("error: ")), lines[-1])
        return Joules(device, why=wrong.removeprefix("error: "))
    rows = [row for row in json.loads(told.stdout)["plans"] if row["joules"] is not None]
    plans = {row["name"]: row["joules"] for row in rows}
    if not plans:
        return Joules(device, why=f"nothing is known of {device}'s watts")
    return Joules(device, plans, _byte(rows, edge))


def _byte(rows: list[dict], edge: Edge) -> float:
    """Joules of a byte: what the largest message costs more than the smallest of the same head."""
    sent = sorted((row for row in rows if row["where"] == "cloud"), key=lambda row: row["bytes"])
    if not sent:
        return 0.0
    width = {row["name"]: edge.manifest.plan(row["name"]).width for row in sent}
    most = sent[-1]
    least = next(row for row in sent if width[row["name"]] == width[most["name"]])
    more = most["bytes"] - least["bytes"]
    return max(0.0, (most["joules"] - least["joules"]) / more) if more else 0.0
