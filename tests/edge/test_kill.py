"""Killed servers, cut messages, lies: every frame ends once, in order, with its own answer."""

from __future__ import annotations

import multiprocessing
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import pytest

from splitrt import Edge, Frame, Result
from splitrt.cli import main
from splitrt.relay import Relay
from splitrt.wire import tail_pb2 as wire
from splitrt.wire.tail_pb2_grpc import TailServicer, TailStub, add_TailServicer_to_server
from tests.conftest import pictures

PICTURES = 97  # a prime: no order of faults keeps step with it
KILLS, FRAMES = 20, 2000
CLOSE = 1e-5  # between the same frame alone and in a batch
FORGED = 7.0  # what every forged number is
PRELOAD = [
    "splitrt.cli", "splitrt.cloud", "torch._dynamo", "torch._export.serde.serialize",
    "torch.fx.experimental.symbolic_shapes",
]  # fmt: skip


class Wanted(NamedTuple):
    """The answers of each picture when nothing fails: logits [PICTURES, 10]."""

    images: np.ndarray
    cloud: np.ndarray
    edge: np.ndarray


def coloured(count: int) -> np.ndarray:
    """Pictures of one colour each with some noise on it: the small model tells them apart."""
    colours = np.random.default_rng(1).integers(0, 256, (count, 1, 1, 3))
    return (0.75 * colours + 0.25 * pictures(count, seed=11).images).astype(np.uint8)


@pytest.fixture(scope="module")
def wanted(model_dir, server) -> Wanted:
    images = coloured(PICTURES)
    with Edge(model_dir, cloud=server.address, plan="q4") as edge:
        there = [edge(image) for image in images]
    with Edge(model_dir, plan="exit") as edge:
        here = [edge(image) for image in images]
    assert {result.where for result in there} == {"cloud"}
    cloud, local = (
        np.array([one.outputs["logits"] for one in results]) for results in (there, here)
    )
    flat = np.array([*cloud, *local])
    gaps = np.abs(flat[:, None] - flat[None]).max(2) + np.eye(len(flat))
    assert gaps.min() > 4 * CLOSE  # no two could be taken for each other
    return Wanted(images, cloud, local)


def shown(wanted: Wanted, count: int, before: Callable[[int], None]) -> Iterator[Frame]:
    """The pictures again and again; `before` each frame the test does what it likes."""
    for index in range(count):
        before(index)
        image = wanted.images[index % PICTURES]
        yield Frame(image, index, time.monotonic(), f"{index}")


def judged(wanted: Wanted, results: list[tuple[Frame, Result]], count: int) -> Counter[str]:
    """How many were answered where; each frame is there once, in order, with its own answer."""
    assert [frame.index for frame, _ in results] == list(range(count))
    for frame, result in results:
        place = frame.index % PICTURES
        assert result.where in ("edge", "cloud")
        own = (wanted.cloud if result.where == "cloud" else wanted.edge)[place]
        np.testing.assert_allclose(result.outputs["logits"], own, atol=CLOSE, rtol=0)
        assert result.where == "cloud" or result.reason
    return Counter(result.where for _, result in results)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def serve(folder: Path, port: int) -> None:
    """`splitrt serve`, in a process that has imported torch already."""
    words = ["serve", str(folder), "--port", str(port), "--threads", "1"]
    sys.argv = ["splitrt", *words]
    main()


class Killable:
    """A server on one port that can be killed and started again, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder, self.kills = folder, 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self.start()

    def __enter__(self) -> Killable:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def start(self) -> None:
        self._process = self._context.Process(
            target=serve, args=(self.folder, self.port), daemon=True
        )
        self._process.start()

    def restart(self) -> None:
        """SIGKILL, and another one on the same port."""
        assert self._process.is_alive()
        self._process.kill()
        self._process.join()
        self.kills += 1
        self.start()


def test_a_server_killed_twenty_times_in_a_stream_costs_no_frame(model_dir, wanted):
    lap = FRAMES // KILLS
    with Killable(model_dir) as server:
        with Edge(model_dir, cloud=f"127.0.0.1:{server.port}", plan="q4", deadline=1.0) as edge:

            def before(index: int) -> None:
                if index % lap == 0:
                    until(lambda: edge._link.up)
                if index % lap == lap // 2:
                    server.restart()

            results = list(edge.stream(shown(wanted, FRAMES, before)))
        assert server.kills == KILLS
    judged(wanted, results, FRAMES)
    for lap_begin in range(0, FRAMES, lap):
        wheres = {result.where for _, result in results[lap_begin : lap_begin + lap]}
        assert wheres == {"cloud", "edge"}


def test_messages_cut_in_the_middle_cost_no_frame(model_dir, server, wanted):
    dice, cuts = random.Random(5), 15
    with Relay(server.address) as relay:
        with Edge(model_dir, cloud=relay.address, plan="q4", deadline=1.0) as edge:

            def before(index: int) -> None:
                if index % 20 == 0:
                    relay.truncate = None
                    until(lambda: edge._link.up)
                if index % 20 == 10:
                    relay.truncate = dice.randrange(1, 400)

            results = list(edge.stream(shown(wanted, 20 * cuts, before)))
        assert relay.counts.accepted >= cuts
    found = judged(wanted, results, 20 * cuts)
    assert found["cloud"] >= 3 * cuts and found["edge"] > 0


@pytest.mark.parametrize("fault", ["duplicate", "corrupt"])
@pytest.mark.parametrize("up", [True, False])
def test_spoiled_bytes_cost_no_frame_and_the_link_comes_back(model_dir, server, wanted, fault, up):
    """TCP would have repaired this: what is promised is an end for each frame, and recovery."""
    with Relay(server.address) as relay:
        with Edge(model_dir, cloud=relay.address, plan="q4", deadline=0.5) as edge:

            def before(index: int) -> None:
                if index % 20 == 0:
                    until(lambda: edge._link.up)
                if index % 20 == 10:
                    getattr(relay, fault)(up=up)

            results = list(edge.stream(shown(wanted, 80, before)))
            until(lambda: edge(wanted.images[0]).where == "cloud" and relay.counts.spoiled == 4)
            after = list(edge.stream(shown(wanted, 80, lambda _: None)))
    assert [frame.index for frame, _ in results] == list(range(80))
    assert all(result.outputs for _, result in results)
    assert judged(wanted, after, 80)["cloud"] > 0


class Liar(TailServicer):
    """Passes frames to the real server and answers what it likes, when it likes."""

    def __init__(self, address: str) -> None:
        self.real = TailStub(grpc.insecure_channel(address))
        self.dice = random.Random(3)
        self.told: Counter[str] = Counter()

    def Stream(self, messages, context):
        hello = next(messages).hello
        yield wire.ToEdge(welcome=wire.Welcome(protocol=1, max_inflight=8))
        held: list[tuple[int, wire.Answer]] = []  # (after so many frames more, answer)
        for message in messages:
            true = self.real.Infer(wire.Request(hello=hello, frame=message.frame), timeout=20)
            held = [(wait - 1, answer) for wait, answer in held] + self.lie(true)
            for answer in [answer for wait, answer in held if wait <= 0]:
                yield wire.ToEdge(answer=answer)
            held = [(wait, answer) for wait, answer in held if wait > 0]

    def lie(self, true: wire.Answer) -> list[tuple[int, wire.Answer]]:
        """What to send for this one, each after so many frames more."""
        kinds = ["true", "turned", "twice", "unknown", "old", "garbage", "late", "nonsense"]
        kind = self.dice.choices(kinds, [4, 4, 2, 2, 2, 2, 1, 1])[0]
        self.told[kind] += 1
        seq = true.seq
        return {
            "true": [(0, true)],
            "turned": [(self.dice.randrange(1, 3), true)],
            "twice": [(0, true), (0, true), (0, forged(seq)), (2, forged(seq))],
            "unknown": [(0, forged(seq + 5000)), (0, forged(2**32 - 1)), (0, forged(0)), (0, true)],
            "old": [*[(0, forged(max(0, seq - ago))) for ago in (20, 40, 60)], (0, true)],
            "garbage": [(0, self.garbage(seq)), (0, true)],
            "late": [(12, true)],
            "nonsense": [(0, wire.Answer(seq=seq, status=99, detail="\x1b[2J" * 50))],
        }[kind]

    def garbage(self, seq: int) -> wire.Answer:
        data = np.full(10, FORGED, np.float32)
        data[self.dice.randrange(10)] = np.nan
        shape, raw = self.dice.choice([([10], data.tobytes()), ([9], bytes(36)), ([10], b"")])
        outputs = [wire.Tensor(shape=shape, data=raw)]
        return wire.Answer(seq=seq, status=wire.OK, outputs=outputs, queue_us=2**32 - 1)


def forged(seq: int) -> wire.Answer:
    """Well-formed, and nobody's."""
    data = np.full(10, FORGED, np.float32).tobytes()
    return wire.Answer(seq=seq, status=wire.OK, outputs=[wire.Tensor(shape=[10], data=data)])


@contextmanager
def lying(address: str) -> Iterator[tuple[str, Liar]]:
    liar, running = Liar(address), grpc.server(ThreadPoolExecutor(4))
    add_TailServicer_to_server(liar, running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield f"127.0.0.1:{port}", liar
    running.stop(0).wait()


def test_a_liar_mislabels_no_frame_and_delivers_none_twice(model_dir, server, wanted):
    with lying(server.address) as (address, liar):
        with Edge(model_dir, cloud=address, plan="q4", deadline=0.4) as edge:
            until(lambda: edge._link.up)
            results = list(edge.stream(shown(wanted, 300, lambda _: None)))
            strays = edge._link.strays
    assert min(liar.told.values()) > 0 and len(liar.told) == 8
    found = judged(wanted, results, 300)  # FORGED is in no answer of either kind
    assert found["cloud"] > 150 and found["edge"] > 0
    assert strays >= liar.told["twice"] + 3 * liar.told["unknown"]
