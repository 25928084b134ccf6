"""How many answers come in time when a fleet asks for more than the server can do?

python benchmarks/link/fleet.py --devices 20 60 --json FILE

Devices are asyncio tasks in a few processes and speak the wire; the server is `splitrt serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean

import grpc
import numpy as np
from blackhole import serving

from splitrt.core import control, packet
from splitrt.core.codec import codecs
from splitrt.core.control import Rules
from splitrt.core.manifest import Manifest
from splitrt.core.plan import Local, Option
from splitrt.wire import tail_pb2 as wire
from splitrt.wire.tail_pb2_grpc import TailStub

RATE, DEADLINE = 10, 0.25  # frames a second of each device; seconds a frame may take
WARM, LAST = 3.0, 3.0  # seconds that are not counted; that the last answers are waited for
LEAD = 4.0  # seconds until every process has connected
OUTSTANDING = (16, 48)  # frames in flight, to find the server's capacity
PLAN = "q4"
RULES = Rules()
LOCAL = Local(0.6)  # what the device could answer itself: sending is worth it if it is in time
WAYS = {"steered": (True, True), "eager": (False, True), "eager, no slack sent": (False, False)}


@dataclass(frozen=True, slots=True)
class Load:
    """What the devices of one process do.

    begin: time.monotonic() of the first frame.  seconds: counted, after WARM.  steered: by the
    controller; else every frame goes that the server's refusals allow.  slack: the server is told
    the time that is left, so that it can refuse.  closed: frames that each device keeps in flight,
    as fast as they are answered; 0: RATE frames a second.
    """

    folder: str
    address: str
    devices: int
    begin: float
    seconds: float
    seed: int
    steered: bool = False
    slack: bool = False
    closed: int = 0

    def counts(self, now: float) -> bool:
        return 0 <= now - self.begin - WARM < self.seconds


@dataclass(slots=True)
class Count:
    """What became of the frames that were captured, or answered in a closed loop, while it counts.

    late: answers that the server computed in vain.  lost: frames without any answer.
    took: milliseconds of each answer.
    """

    frames: int = 0
    sent: int = 0
    in_time: int = 0
    late: int = 0
    busy: int = 0
    expired: int = 0
    lost: int = 0
    took: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Found:
    """One fleet. Rates are a second; capacity is that of a closed loop, before and after.

    share: goodput, of what was asked or of the capacity, whichever is less.
    late: share of the answers that the server computed and that came after the deadline.
    """

    way: str
    devices: int
    asked: float
    capacity: float
    capacities: tuple[float, float]
    goodput: float
    share: float
    late: float
    sent: int
    busy: int
    expired: int
    lost: int
    p50_ms: float
    p99_ms: float


class Device:
    """One stream, its controller's state, and what became of its frames."""

    def __init__(self, load: Load, number: int, payload: bytes) -> None:
        self.load, self.payload, self.count = load, payload, Count()
        self._random = random.Random(1000 * load.seed + number)
        self._manifest = Manifest.load(load.folder)
        self._plan = [plan.name for plan in self._manifest.plans].index(PLAN)
        self._options = [Option(PLAN, len(payload) + 16, 0.0, 0.8)]
        self._state = control.start(self._options, mbps=100, rtt=0.002)
        self._seq = 0
        self._waiting: dict[int, float] = {}  # time.monotonic() of capture
        self._answered = asyncio.Condition()

    async def run(self) -> Count:
        """Connect, send what the load says, wait for the last answers."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.load.address, options=options) as channel:
            call = TailStub(channel).Stream()
            await call.write(wire.ToServer(hello=packet.hello(self._manifest)))
            welcome = await call.read()
            if not isinstance(welcome, wire.ToEdge) or not welcome.HasField("welcome"):
                sys.exit("error: the server did not say Welcome")
            reading = asyncio.create_task(self._read(call))
            try:
                await (self._closed(call) if self.load.closed else self._open(call))
            except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                words = f"{await call.code()} {await call.details()}"
                raise SystemExit(f"error: the server ended a stream: {words}") from None
            async with self._answered:
                none = self._answered.wait_for(lambda: not self._waiting)
                await asyncio.wait({asyncio.ensure_future(none)}, timeout=LAST)
            reading.cancel()
            call.cancel()
        self.count.lost = sum(self.load.counts(captured) for captured in self._waiting.values())
        return self.count

    async def _open(self, call: grpc.aio.StreamStreamCall) -> None:
        """A frame every 1 / RATE seconds, whatever becomes of it."""
        first = self.load.begin + self._random.random() / RATE
        for index in range(int((WARM + self.load.seconds) * RATE)):
            captured = first + index / RATE
            await asyncio.sleep(max(0.0, captured - time.monotonic()))
            self.count.frames += self.load.counts(captured)
            if self._goes(captured):
                await self._send(call, captured)

    async def _closed(self, call: grpc.aio.StreamStreamCall) -> None:
        """The next frame as soon as one is answered."""
        await asyncio.sleep(max(0.0, self.load.begin - time.monotonic()))
        until = self.load.begin + WARM + self.load.seconds
        while time.monotonic() < until:
            async with self._answered:
                await self._answered.wait_for(lambda: len(self._waiting) < self.load.closed)
            await self._send(call, time.monotonic())

    def _goes(self, captured: float) -> bool:
        """Whether the frame is sent: by the controller, or unless a refusal forbids it."""
        now, chance = time.monotonic(), self._random.random()
        left = captured + DEADLINE - now
        if not self.load.steered:
            state = self._state
            return left > 0 and now >= state.hold and chance < state.share
        decision, self._state = control.decide(
            self._state, self._options, LOCAL, left=left, now=now, chance=chance
        )
        return decision.option is not None

    async def _send(self, call: grpc.aio.StreamStreamCall, captured: float) -> None:
        now, self._seq = time.monotonic(), self._seq + 1
        slack = captured + DEADLINE - now if self.load.slack else None
        self._waiting[self._seq] = captured
        message = packet.frame(self._seq, self._plan, self.payload, slack)
        self._state = control.sent(self._state, self._seq, message.ByteSize(), now)
        self.count.sent += self.load.counts(captured)
        await call.write(message)

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        while isinstance(message := await call.read(), wire.ToEdge):
            now, answer = time.monotonic(), message.answer
            captured = self._waiting.pop(answer.seq)
            self._learn(answer, now)
            if self.load.counts(now if self.load.closed else captured):
                self._judge(answer.status, now - captured)
            async with self._answered:
                self._answered.notify_all()

    def _learn(self, answer: wire.Answer, now: float) -> None:
        if answer.status in (wire.BUSY, wire.EXPIRED):
            wait, chance = answer.retry_after_ms / 1000, self._random.random()
            self._state = control.refused(self._state, answer.seq, wait, now, chance)
            return
        server = (answer.queue_us + answer.open_us + answer.compute_us) / 1e6
        self._state = control.answered(self._state, answer.seq, now, server=server)

    def _judge(self, status: int, took: float) -> None:
        if status == wire.OK:
            self.count.in_time += took <= DEADLINE
            self.count.late += took > DEADLINE
            self.count.took.append(1000 * took)
        elif status == wire.BUSY:
            self.count.busy += 1
        elif status == wire.EXPIRED:
            self.count.expired += 1
        else:
            sys.exit(f"error: the server answered {wire.Status.Name(status)}")


def main() -> None:
    """Every fleet in every way; a line each, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--channels", type=int, default=128, help="of the tail: its weight")
    parser.add_argument("--json", type=Path, help="write the findings there, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up
    found = []
    with tempfile.TemporaryDirectory() as folder:
        heavy(Path(folder) / "heavy", options.channels)
        words = ["-m", "splitrt.cli", "serve", f"{folder}/heavy", "--threads", "1", "--port", "0"]
        context = multiprocessing.get_context("spawn")
        with (
            serving([sys.executable, *words]) as address,
            ProcessPoolExecutor(options.processes, context) as pool,
        ):
            load = Load(f"{folder}/heavy", address, 8, 0.0, options.seconds, 0)
            before = capacity(pool, options.processes, load)
            for devices in options.devices:
                for way in options.ways:
                    steered, slack = WAYS[way]
                    fleet = replace(load, devices=devices, steered=steered, slack=slack)
                    counts = driven(pool, options.processes, fleet)
                    after = capacity(pool, options.processes, load)
                    found.append(judged(way, fleet, counts, (before, after)))
                    before = after
                    print(readable(found[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")


def heavy(folder: Path, channels: int) -> None:
    """A model directory whose tail has most of the work; its weights are random."""
    import torch
    from torch import nn

    from splitrt.train import Frames, cut, export

    torch.set_num_threads(1)
    torch.manual_seed(0)
    wide = [nn.Conv2d(8, channels, 3, 1, 1), nn.ReLU()]
    for _ in range(3):
        wide += [nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU()]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
    whole = nn.Sequential(stem, nn.Sequential(*wide), nn.Sequential(*last)).eval()
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    split = cut(whole, after="0", channels=4, shape=(1, 3, 32, 32))
    export(split, folder, frames=Frames(images), pareto=False)


def capacity(pool: ProcessPoolExecutor, processes: int, load: Load) -> float:
    """Answers a second, the most of several depths of a closed loop without deadlines."""
    rates = []
    for outstanding in OUTSTANDING:
        each = max(1, outstanding // load.devices)
        counts = driven(pool, processes, replace(load, seconds=4.0, closed=each))
        rates.append(sum(len(count.took) for count in counts) / 4.0)
    return max(rates)


def driven(pool: ProcessPoolExecutor, processes: int, load: Load) -> list[Count]:
    """The load on all processes at once; its devices shared among them."""
    begin = time.monotonic() + LEAD
    shares = [load.devices // processes + (i < load.devices % processes) for i in range(processes)]
    parts = [
        replace(load, devices=share, begin=begin, seed=100 * place)
        for place, share in enumerate(shares)
    ]
    return [count for counts in pool.map(work, parts) for count in counts]


def work(load: Load) -> list[Count]:
    """The devices of one process."""

    async def together() -> list[Count]:
        manifest = Manifest.load(load.folder)
        codec = codecs(Path(load.folder), manifest)[PLAN]
        draw = np.random.default_rng(load.seed)
        codes = [draw.integers(0, 16, manifest.cut.shape).astype(np.uint8) for _ in range(8)]
        payloads = [codec.encode(one) for one in codes]
        devices = [Device(load, one, payloads[one % 8]) for one in range(load.devices)]
        return await asyncio.gather(*(device.run() for device in devices))

    return asyncio.run(together())


def judged(way: str, load: Load, counts: Sequence[Count], around: tuple[float, float]) -> Found:
    total = {name: sum(getattr(one, name) for one in counts) for name in ("in_time", "late")}
    took = sorted(ms for count in counts for ms in count.took) or [float("nan")]
    asked = sum(one.frames for one in counts) / load.seconds
    goodput, computed = total["in_time"] / load.seconds, sum(total.values())
    return Found(
        way=way,
        devices=load.devices,
        asked=asked,
        capacity=mean(around),
        capacities=around,
        goodput=goodput,
        share=goodput / min(asked, mean(around)),
        late=total["late"] / max(1, computed),
        sent=sum(one.sent for one in counts),
        busy=sum(one.busy for one in counts),
        expired=sum(one.expired for one in counts),
        lost=sum(one.lost for one in counts),
        p50_ms=took[len(took) // 2],
        p99_ms=took[int(0.99 * (len(took) - 1))],
    )


def readable(one: Found) -> str:
    return (
        f"{one.devices:3} devices, {one.way:22} asked {one.asked:5.0f}/s of "
        f"{one.capacities[0]:4.0f}–{one.capacities[1]:4.0f}/s: in time {one.goodput:5.1f}/s = "
        f"{one.share:.2f}, late work {100 * one.late:5.2f} %, p50 {one.p50_ms:4.0f} "
        f"p99 {one.p99_ms:5.0f} ms; of {one.sent} sent {one.busy} busy, "
        f"{one.expired} expired, {one.lost} lost"
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
