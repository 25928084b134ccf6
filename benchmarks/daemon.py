"""A day in miniature: the daemon at 10 frames a second over a link that misbehaves; is it flat?

python benchmarks/daemon.py [--minutes 30] [--json FILE]

A server, a relay and `splitrt daemon` in processes of their own. Every few seconds the link is cut,
slowed, swallowed, stalled, spoiled or refused, a camera goes away, the daemon reloads, the same or
with its model exchanged, or programs come and go at its socket. The verdict: each frame has one
line, in order; memory, descriptors and threads of the last quarter are those of the second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from splitrt import Pictures, SplitrtError, connect
from splitrt.relay import Relay

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models" / "cifar10-resnet"
FPS = 10
SAMPLE = 1.0  # seconds
GROWTH_MIB, GROWTH = 6.0, 0.03  # of resident memory; the larger of the two is allowed
SPARE = 4  # descriptors, threads
LATE = "too late for any head"  # the controller's word for a frame that the machine kept waiting
BELATED = 0.001  # of all frames
CONFIG = """
socket = "daemon.sock"
metrics_port = 0
log = "json"

[models.cifar]
path = "{model}"
cloud = "{cloud}"
deadline = 0.2
threads = 1
{more}

[cameras.door]
source = "camera"
model = "cifar"
fps = {fps}
repeat = true
output = "door.jsonl"

[cameras.yard]
source = "{pictures}"
model = "cifar"
fps = {fps}
repeat = true
output = "yard.jsonl"
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process held at one moment. seconds: since the daemon was ready."""

    seconds: float
    mib: float
    descriptors: int
    threads: int


def sample(pid: int, began: float) -> Sample:
    """From /proc."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = int(re.search(r"VmRSS:\s+(\d+)", status)[1])
    threads = int(re.search(r"Threads:\s+(\d+)", status)[1])
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Sample(time.monotonic() - began, kib / 1024, descriptors, threads)


class Day:
    """What happens to the daemon, in an order that the seed decides."""

    def __init__(
        self, folder: Path, relay: Relay, daemon: subprocess.Popen[str], seed: int
    ) -> None:
        self.folder, self.relay, self.daemon = folder, relay, daemon
        self.random, self.over = random.Random(seed), threading.Event()
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self.plans = 0

    def events(self) -> dict[str, Callable[[], None]]:
        """By name, each with its own end."""
        relay = self.relay
        return {
            "cut": relay.cut,
            "hole": lambda: self._while("hole", True, False, 5),
            "stall": lambda: self._while("stall", True, False, 3),
            "refuse": lambda: self._while("refuse", True, False, 4, cut=True),
            "slow": lambda: self._while("trace", 0.05, None, 6),
            "far": lambda: self._while("rtt", 0.4, 0.02, 6),
            "jitter": lambda: self._while("jitter", 0.15, 0.0, 6),
            "truncate": lambda: self._while("truncate", 3000, None, 4),
            "corrupt": relay.corrupt,
            "corrupt back": lambda: relay.corrupt(up=False),
            "duplicate": relay.duplicate,
            "camera gone": self._unplugged,
            "reload": self._reload,
            "another model": self._exchanged,
            "wrong file": self._refused,
            "callers": self._called,
        }

    def run(self) -> None:
        """Every event about as often, until it is over."""
        while not self.over.is_set():
            events = list(self.events().items())
            self.random.shuffle(events)
            for name, happen in events:
                if self.over.wait(self.random.uniform(2, 6)):
                    return
                try:
                    happen()
                except (SplitrtError, OSError) as error:
                    self.failures.append(f"{name}: {error}")
                self.done[name] += 1

    def _while(
        self, setting: str, on: object, off: object, seconds: float, *, cut: bool = False
    ) -> None:
        setattr(self.relay, setting, on)
        if cut:
            self.relay.cut()
        self.over.wait(seconds)
        setattr(self.relay, setting, off)

    def _unplugged(self) -> None:
        camera, away = self.folder / "camera", self.folder / "away"
        camera.rename(away)
        self.over.wait(3)
        away.rename(camera)

    def _reload(self) -> None:
        self.daemon.send_signal(signal.SIGHUP)

    def _exchanged(self) -> None:
        self.plans += 1
        write(self.folder, self.relay.address, temporal=bool(self.plans % 2))
        with connect(self.folder / "daemon.sock") as remote:
            changes = remote.reload()
        if changes != ["model cifar: changed"]:
            self.failures.append(f"another model: {changes}")

    def _refused(self) -> None:
        file = self.folder / "daemon.toml"
        before = file.read_text()
        file.write_text(before.replace("deadline", "deadlin"))
        try:
            with connect(self.folder / "daemon.sock") as remote:
                remote.reload()
            self.failures.append("a wrong file was taken up")
        except SplitrtError as error:
            if "did you mean 'deadline'" not in str(error):
                self.failures.append(f"wrong file: {error}")
        finally:
            file.write_text(before)

    def _called(self) -> None:
        """A program asks, streams and listens, and one leaves in the middle."""
        pictures = Pictures(ROOT / "splitrt" / "pictures")
        image = next(iter(pictures)).image
        with connect(self.folder / "daemon.sock") as remote:
            for _ in range(20):
                remote(image)
            if len(list(remote.stream(pictures))) != len(pictures):
                self.failures.append("a stream lost frames")
            for count, _ in enumerate(remote.watch("yard")):
                if count == FPS:
                    break
            for _ in remote.stream(pictures):
                break


def write(folder: Path, cloud: str, *, temporal: bool = False) -> None:
    """daemon.toml, one of two."""
    more = "temporal = true" if temporal else ""
    pictures = ROOT / "splitrt" / "pictures"
    told = CONFIG.format(model=MODEL, cloud=cloud, more=more, pictures=pictures, fps=FPS)
    (folder / "daemon.toml").write_text(told)


@contextlib.contextmanager
def process(*words: object, cwd: Path, log: str) -> Iterator[subprocess.Popen[str]]:
    """A verb of splitrt's, ended by SIGTERM."""
    command = [sys.executable, "-m", "splitrt.cli", *map(str, words)]
    with (cwd / log).open("w") as file:
        running = subprocess.Popen(command, cwd=cwd, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield running
        finally:
            running.send_signal(signal.SIGTERM)
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def awaited(log: Path, words: str, running: subprocess.Popen[str]) -> str:
    """The log's line with these words."""
    until = time.monotonic() + 120
    while time.monotonic() < until and running.poll() is None:
        for line in log.read_text().splitlines():
            if words in line:
                return line
        time.sleep(0.1)
    raise SystemExit(f"no {words!r} in {log}:\n{log.read_text()}")


def judged(samples: list[Sample], folder: Path, day: Day, status: int) -> dict[str, object]:
    """The figures, and what is wrong with them."""
    quarter = samples[-1].seconds / 4
    second = [one for one in samples if quarter <= one.seconds < 2 * quarter]
    last = [one for one in samples if one.seconds >= 3 * quarter]
    wrong = list(day.failures)
    told: dict[str, object] = {}
    for name, spare in (("mib", None), ("descriptors", SPARE), ("threads", SPARE)):
        before, after = (
            statistics.median(getattr(o, name) for o in part) for part in (second, last)
        )
        allowed = max(GROWTH_MIB, GROWTH * before) if spare is None else spare
        peak = max(getattr(one, name) for one in samples)
        told[name] = {"second quarter": before, "last quarter": after, "peak": peak}
        if after - before > allowed:
            wrong.append(f"{name} grew from {before:.1f} to {after:.1f}")
    for camera in ("door", "yard"):
        lines = [json.loads(line) for line in (folder / f"{camera}.jsonl").open()]
        if [line["index"] for line in lines] != list(range(len(lines))):
            wrong.append(f"{camera}: frames are missing, twice or out of order")
        wheres = Counter(line["where"] or "none" for line in lines)
        causes = Counter(line["cause"] for line in lines)
        late = sum(line["ms"] > 250 for line in lines)
        told[camera] = {"frames": len(lines), "where": wheres, "cause": causes, "over 250 ms": late}
        none = [line["reason"] for line in lines if line["where"] is None]
        if len(none) > BELATED * len(lines) or set(none) - {LATE}:
            wrong.append(f"{camera}: {len(none)} frames without an answer: {Counter(none)}")
        if not wheres["cloud"]:
            wrong.append(f"{camera}: no frame ever went to the server")
    if status:
        wrong.append(f"the daemon ended with {status}")
    log = (folder / "daemon.log").read_text()
    if "Traceback" in log:
        wrong.append("a traceback in the daemon's log")
    return {**told, "events": day.done, "wrong": wrong}


def main() -> None:
    """Run the day, print the figures and the verdict; status 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="a new folder for logs and lines")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="splitrt-day-")) if options.keep is None else options.keep
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "splitrt" / "pictures", folder / "camera")
    serving = process("serve", MODEL, "--port", 0, "--threads", 1, cwd=folder, log="server.log")
    with serving as server:
        target = awaited(folder / "server.log", "tail of", server).split(" at ")[1].split()[0]
        with Relay(target, rtt=0.02) as relay:
            write(folder, relay.address)
            with process("daemon", "daemon.toml", cwd=folder, log="daemon.log") as daemon:
                awaited(folder / "daemon.log", "ready at", daemon)
                day, began = Day(folder, relay, daemon, options.seed), time.monotonic()
                happening = threading.Thread(target=day.run, name="day")
                happening.start()
                samples = []
                while time.monotonic() - began < 60 * options.minutes and daemon.poll() is None:
                    samples.append(sample(daemon.pid, began))
                    time.sleep(SAMPLE)
                day.over.set()
                happening.join()
    found = judged(samples, folder, day, daemon.returncode)
    found = {"minutes": options.minutes, "seed": options.seed, **found}
    for name, value in found.items():
        print(f"{name}: {json.dumps(value)}")
    print("flat, and every frame has its line" if not found["wrong"] else "NOT AS IT SHOULD BE")
    if options.json is not None:
        told = {**found, "samples": [asdict(one) for one in samples]}
        options.json.write_text(json.dumps(told, indent=1))
    if options.keep is None:
        shutil.rmtree(folder)
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
