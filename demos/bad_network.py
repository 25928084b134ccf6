"""A device on a link that worsens, fails and comes back; a line a second says what became of it.

python demos/bad_network.py            # about 40 s; --json for one object a line
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from splitrt import Edge, Frame, Pictures, Result, SplitrtError
from splitrt.relay import Relay

HERE = Path(__file__).parent.parent
MODEL = HERE / "models" / "cifar10-resnet"
RATE = 10  # frames a second
PATIENCE = 120  # seconds for the server to start


@dataclass(frozen=True, slots=True)
class Scene:
    """A part of the script: what it is called, when it begins in seconds, what the link is."""

    name: str
    begin: float
    mbps: float = 20.0
    hole: bool = False
    cut: bool = False


SCRIPT = (
    Scene("good, 20 Mbit/s", 0),
    Scene("thin, 0.5 Mbit/s", 8, mbps=0.5),
    Scene("black hole", 16, hole=True),
    Scene("good again", 21),
    Scene("cut and refused", 28, cut=True),
    Scene("good again", 29),
)
END = 38.0  # seconds


@dataclass(frozen=True, slots=True)
class Ended:
    """How one frame ended: in which second of the show, in which scene, and its result."""

    second: int
    scene: str
    frame: Frame
    result: Result


def main() -> None:
    """Run the script, print a line a second, and account for every frame."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deadline", type=float, default=0.25, help="seconds a frame may take")
    parser.add_argument("--seconds", type=float, default=END, help="of the whole script")
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    script = [replace(one, begin=one.begin * options.seconds / END) for one in SCRIPT]
    with served() as server, Relay(server, trace=script[0].mbps, rtt=0.04) as relay:
        ended = performed(relay, script, options)
    close(ended, round(RATE * options.seconds), options)


def performed(relay: Relay, script: list[Scene], options: argparse.Namespace) -> list[Ended]:
    """Every frame of the show, while another thread sets the link."""
    over, count = threading.Event(), round(RATE * options.seconds)
    with Edge(MODEL, cloud=relay.address, deadline=options.deadline, threads=1) as edge:
        begun = time.monotonic()
        director = threading.Thread(target=direct, args=(relay, script, begun, over))
        director.start()
        try:
            return list(show(edge, script, begun, count, options.json))
        finally:
            over.set()
            director.join()


def direct(relay: Relay, script: list[Scene], begun: float, over: threading.Event) -> None:
    """Set the link as the script says, until it ends."""
    for scene in script:
        if over.wait(max(0.0, begun + scene.begin - time.monotonic())):
            return
        relay.trace, relay.hole = scene.mbps, scene.hole
        relay.refuse = scene.cut
        if scene.cut:
            relay.cut()


def show(
    edge: Edge, script: list[Scene], begun: float, count: int, as_json: bool
) -> Iterator[Ended]:
    """Stream the frames; print each second when its last frame has ended."""
    heard = (
        Ended(int(frame.captured - begun), scene_at(script, frame.captured - begun), frame, result)
        for frame, result in edge.stream(photographs(begun, count))
    )
    for second, group in itertools.groupby(heard, lambda one: one.second):
        ended = list(group)
        line = told(second, ended)
        print(json.dumps(line) if as_json else readable(line), flush=True)
        yield from ended


def photographs(begun: float, count: int) -> Iterator[Frame]:
    """The demo's photographs again and again, RATE a second."""
    shots = itertools.cycle(list(Pictures(HERE / "splitrt" / "pictures")))
    for index, shot in enumerate(itertools.islice(shots, count)):
        time.sleep(max(0.0, begun + index / RATE - time.monotonic()))
        yield replace(shot, index=index, captured=time.monotonic())


def scene_at(script: list[Scene], seconds: float) -> str:
    return [scene for scene in script if scene.begin <= max(0.0, seconds)][-1].name


def told(second: int, ended: list[Ended]) -> dict[str, object]:
    """A second in numbers."""
    results = [one.result for one in ended]
    reasons = Counter(one.reason for one in results if one.reason)
    return {
        "second": second,
        "link": ended[-1].scene,
        "frames": len(ended),
        "plans": dict(Counter(one.plan for one in results)),
        "where": dict(Counter(one.where or "none" for one in results)),
        "p50_ms": round(median(one.timings.total for one in results), 1),
        "sent_bytes": sum(one.sent_bytes for one in results),
        "reason": reasons.most_common(1)[0][0] if reasons else None,
    }


def readable(line: dict) -> str:
    where = " ".join(f"{name} {count}" for name, count in sorted(line["where"].items()))
    plans = " ".join(f"{name}×{count}" for name, count in sorted(line["plans"].items()))
    why = f"  ({line['reason']})" if line["reason"] else ""
    return (
        f"{line['second']:3} s  {line['link']:17} {plans:28} {where:16} "
        f"p50 {line['p50_ms']:6.1f} ms  {line['sent_bytes']:6,} B{why}"
    )


def close(ended: list[Ended], count: int, options: argparse.Namespace) -> None:
    """The tally. SplitrtError if a frame is missing, there twice, or out of order."""
    if [one.frame.index for one in ended] != list(range(count)):
        raise SplitrtError(f"{len(ended)} frames ended out of {count}, or not in order")
    wheres = Counter(one.result.where or "none" for one in ended)
    late = sum(one.result.timings.total > 1000 * options.deadline for one in ended)
    tally = {
        "frames": count,
        "cloud": wheres["cloud"],
        "edge_sure": sum(one.result.where == "edge" and one.result.reason is None for one in ended),
        "edge_in_its_stead": sum(
            one.result.where == "edge" and one.result.reason is not None for one in ended
        ),
        "unanswered": wheres["none"],
        "after_deadline": late,
        "latest_ms": round(max(one.result.timings.total for one in ended), 1),
        "sent_bytes": sum(one.result.sent_bytes for one in ended),
    }
    if options.json:
        print(json.dumps({"tally": tally}))
        return
    print(
        f"\n{count} frames, each ended once and in order: {tally['cloud']} by the server, "
        f"{tally['edge_sure']} here because sure,\n{tally['edge_in_its_stead']} here in the "
        f"server's stead, {tally['unanswered']} unanswered. {late} ended after their deadline of "
        f"{1000 * options.deadline:.0f} ms, the latest after {tally['latest_ms']} ms."
    )


@contextmanager
def served() -> Iterator[str]:
    """`splitrt serve` in a process of its own; its address."""
    command = [sys.executable, "-m", "splitrt.cli", "serve", str(MODEL), "--port", "0"]
    process = subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.PIPE, text=True)
    alarm = threading.Timer(PATIENCE, process.kill)
    alarm.start()
    try:
        found = re.search(r" at (\S+)$", process.stdout.readline().strip())
        alarm.cancel()
        if found is None:
            raise SplitrtError("the server did not start\nhelp: try `splitrt serve` by itself")
        yield found.group(1)
    finally:
        alarm.cancel()
        process.terminate()
        process.wait()


if __name__ == "__main__":
    try:
        main()
    except SplitrtError as error:
        sys.exit(f"error: {error}")
