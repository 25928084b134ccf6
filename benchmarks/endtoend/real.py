"""A little of it for real: server, relay and devices as processes, beside their replay.

A device here is faster than the one it stands for: it sleeps the rest of that one's head.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.endtoend.policies import Pinned, Policy, Steered
from benchmarks.endtoend.record import odd
from benchmarks.endtoend.replay import replay
from benchmarks.endtoend.rows import DEADLINE, STANDS
from benchmarks.endtoend.table import Table
from benchmarks.link.scene import PERIOD, Scene, scene
from splitrt import Edge, Frame
from splitrt.core import links
from splitrt.core.manifest import Manifest
from splitrt.relay import Relay

LINKS = ("1mbps", "lte-fair")
START = 180.0  # seconds for everything to start
WARM = 30  # frames that tell how long this machine's head takes


def compared(
    model: Path, data: Path, table: Table, name: str, seconds: float, seed: int
) -> list[dict[str, object]]:
    """Every policy on one link, all at the same time, each with a relay of its own."""
    whole = links.generate(links.link(name), max(300.0, seconds), seed)
    one = scene(whole, table, deadline=DEADLINE, seed=seed)
    frames = min(one.frames, round(seconds / PERIOD))
    one = replace(one, rtts=one.rtts[:frames], servers=one.servers[:frames], lossy=False)
    jpeg = table.jpegs[0]
    plans = {
        "exit": table.best_exit,
        f"jpeg{STANDS}": jpeg.name,
        f"split{STANDS}": table.default.name,
        "splitrt": "",
    }
    there = measured(model, data, table, plans, one)
    found = []
    for policy, plan in plans.items():
        option = next((o for o in (table.default, jpeg) if o.name == plan), None)
        made: Policy
        if option is not None:
            made = Pinned(table, option, hedged=True)
        else:
            made = Policy(table, plan=plan) if plan else Steered(table)
        told = replay(one, table, made)
        row = {"link": name, "policy": policy, "plan": plan, "frames": frames}
        row["real"], row["replay"] = there[policy], {k: getattr(told, k) for k in SHOWN}
        print(line(row), flush=True)
        found.append(row)
    return found


SHOWN = ("p50_ms", "p95_ms", "hit", "cloud", "accuracy", "bytes")


def line(row: dict[str, object]) -> str:
    """Real beside replayed."""
    pairs = ", ".join(f"{key} {row['real'][key]:.4g} / {row['replay'][key]:.4g}" for key in SHOWN)
    strange = f"{row['real']['strange']} of {row['real']['answers']} answers not as recorded"
    return f"{row['link']} {row['policy']}: real / replayed: {pairs}; {strange}"


def measured(
    model: Path, data: Path, table: Table, plans: dict[str, str], one: Scene
) -> dict[str, dict[str, float]]:
    """What became of each policy's frames."""
    head = table.exits[table.best_exit][0]
    with served(model) as address:
        relays = {policy: Relay(address, rtt=one.trace.rtt) for policy in plans}
        devices = {
            policy: Device(model, data, relays[policy], plan, one.frames, head)
            for policy, plan in plans.items()
        }
        try:
            for device in devices.values():
                device.ready()
            before = {policy: relay.counts.up for policy, relay in relays.items()}
            for policy, device in devices.items():
                relays[policy].trace = one.trace
                device.go()
            rows = {policy: device.rows() for policy, device in devices.items()}
            up = {policy: relays[policy].counts.up - before[policy] for policy in plans}
        finally:
            for device in devices.values():
                device.close()
            for relay in relays.values():
                relay.close()
    return {policy: summed(table, rows[policy], up[policy]) for policy in plans}


def summed(table: Table, rows: list[dict], up: int) -> dict[str, float]:
    """Rows of one device as an Outcome's words; strange: the server's answers not as recorded."""
    records = table.records
    assert records is not None  # compared was given pictures
    after = np.array([row["ms"] for row in rows])
    hits = after <= 1000 * DEADLINE
    cloud = np.array([row["where"] == "cloud" for row in rows])
    right = np.array([row["answer"] == records.labels[row["index"]] for row in rows])
    answered = [row for row in rows if row["where"] == "cloud"]
    return {
        "p50_ms": float(np.percentile(after, 50)),
        "p95_ms": float(np.percentile(after, 95)),
        "hit": float(hits.mean()),
        "cloud": float((hits & cloud).mean()),
        "accuracy": float((hits & right).mean()),
        "bytes": up / len(rows),
        "latest_ms": float(after.max()),
        "answers": len(answered),
        "strange": sum(
            row["answer"] != int(records.answers[row["plan"]][row["index"]]) for row in answered
        ),
    }


class Device:
    """A process that opens an Edge, says so, waits for a word, and sends its frames."""

    def __init__(
        self, model: Path, data: Path, relay: Relay, plan: str, frames: int, head: float
    ) -> None:
        words = ["--model", model, "--data", data, "--at", relay.address, "--plan", plan]
        words += ["--frames", frames, "--head", head]
        command = [sys.executable, "-m", "benchmarks.endtoend.real", *map(str, words)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes)
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)

    def ready(self) -> None:
        """Wait until it is."""
        alarm = threading.Timer(START, self.process.kill)
        alarm.start()
        said = self.process.stdout.readline()
        alarm.cancel()
        if said != "ready\n":
            sys.exit(f"error: a device did not start: {said!r}")

    def go(self) -> None:
        """Let it send; what it says is read at once, or it would wait for its pipe to empty."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self._reader.start()

    def rows(self) -> list[dict]:
        """How each frame ended, once all have."""
        self._reader.join()
        return [json.loads(said) for said in self._said]

    def _read(self) -> None:
        self._said += self.process.stdout

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def served(model: Path) -> Iterator[str]:
    """A server as a process; its address."""
    command = [sys.executable, "-m", "splitrt.cli", "serve", str(model), "--port", "0"]
    process = subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.PIPE, text=True)
    alarm = threading.Timer(START, process.kill)
    alarm.start()
    try:
        found = re.search(r" at (\S+)$", process.stdout.readline().strip())
        if found is None:
            sys.exit("error: the server did not start\nhelp: try `splitrt serve` by itself")
        yield found[1]
    finally:
        alarm.cancel()
        process.terminate()
        process.wait()


def main() -> None:
    """A device: one line a frame."""
    parser = argparse.ArgumentParser()
    for word in ("--model", "--data"):
        parser.add_argument(word, type=Path, required=True)
    parser.add_argument("--at", required=True)
    parser.add_argument("--plan", required=True)
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--head", type=float, required=True)
    options = parser.parse_args()
    images, _ = odd(Manifest.load(options.model), options.data, options.frames)
    rest = max(0.0, options.head - own_head(options.model, images))
    plan = options.plan or None
    at_edge = plan is not None and Manifest.load(options.model).plan(plan).place == "edge"
    cloud = None if at_edge else options.at
    with Edge(options.model, cloud=cloud, deadline=DEADLINE, plan=plan, threads=1) as edge:
        edge(images[0])  # the first frame waits for the connection
        time.sleep(1.0)
        print("ready", flush=True)
        sys.stdin.readline()
        for frame, result in edge.stream(paced(images, rest)):
            answer = int(result.outputs["logits"].argmax()) if result.outputs else -1
            told = {"index": frame.index, "ms": result.timings.total, "where": result.where}
            told |= {"plan": result.plan, "answer": answer, "reason": result.reason}
            print(json.dumps(told), flush=True)


def own_head(model: Path, images: np.ndarray) -> float:
    """Seconds of the widest head and its exit on this machine."""
    with Edge(model, threads=1) as edge:
        return float(np.median([edge(image).timings.head for image in images[:WARM]])) / 1000


def paced(images: np.ndarray, rest: float) -> Iterator[Frame]:
    """Ten pictures a second; each comes late by the rest of the head's time."""
    begun = time.monotonic()
    for index, image in enumerate(images):
        captured = begun + index * PERIOD
        time.sleep(max(0.0, captured + rest - time.monotonic()))
        yield Frame(image, index, captured, str(index))


if __name__ == "__main__":
    main()
