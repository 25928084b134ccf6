"""What must hold after every bad input, in one place.

A known-good request gives the same logits bit for bit; repeating the input leaves memory, threads
and descriptors as they were; replies name no path, class or traceback; others in the batch are
answered; exactly one counter moves for each input, and the gauges are back at their base.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import grpc

from splitrt.cloud.batch import Batcher, Job
from splitrt.core import packet
from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire
from tests.attacks import frames
from tests.attacks.victim import Victim

TIMES = 200
GROWTH = 32 << 20  # bytes of memory that 200 inputs may leave behind
SECRET = re.compile(r"Traceback|\.py\b|/|\\|0x[0-9a-f]{6}|[a-z]Error\b|Exception|object at")


def discreet(words: str) -> bool:
    """Whether a reply names no path, class or traceback."""
    return SECRET.search(words) is None


@contextmanager
def unharmed(
    victim: Victim, moved: Mapping[str, int] | None = None, growth: int = GROWTH
) -> Iterator[None]:
    """Around an attack: afterwards the server is as before, and the counters moved as told.

    moved: counters and by how many; None where that depends on who was faster.
    growth: bytes of memory that it may leave behind.
    """
    logits, base = victim.known_good(), victim.look()
    yield
    ended = victim.rested(base) if moved is None else victim.settled(base, moved)
    assert ended.memory - base.memory < growth, f"{(ended.memory - base.memory) >> 20} MiB more"
    assert victim.known_good() == logits
    victim.settled(ended, {"OK": 2})  # and no counter moved late


def refused(victim: Victim, raw: bytes, name: str = "INVALID") -> None:
    """A unary request that is refused by that status or gRPC code: alone, and 200 times."""
    for times in (1, TIMES):
        with unharmed(victim, {name: times}):
            for _ in range(times):
                found, words = told(victim.channel, raw)
                assert found == name, words
                assert words and discreet(words), words


def refused_between_good_ones(victim: Victim, raw: bytes) -> None:
    """The same frame in a stream: it alone is refused, and the stream goes on."""
    good = frames.good(victim.manifest)
    messages = [
        frames.hello(victim.manifest),
        frames.framed(good, seq=1),
        frames.framed(raw, seq=2),
        frames.framed(good, seq=3),
    ]
    with unharmed(victim, {"OK": 2, "INVALID": 1}):
        answers = [one.answer for one in frames.stream(victim.channel, messages)[1:]]
        assert {a.seq: a.status for a in answers} == {1: wire.OK, 2: wire.INVALID, 3: wire.OK}
        assert len(answers) == 3
        assert all(discreet(answer.detail) for answer in answers)


def told(channel: grpc.Channel, raw: bytes) -> tuple[str, str]:
    """(status or gRPC code, the words) of the answer to a unary request."""
    try:
        answer = frames.infer(channel, raw)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    if answer.status != wire.OK:
        assert not answer.outputs
    return wire.Status.Name(answer.status), answer.detail


def ended(channel: grpc.Channel, messages: list[bytes]) -> tuple[str, str]:
    """(gRPC code, the words) with which the server ends a stream before its time."""
    try:
        answers = frames.stream(channel, messages)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError(f"the stream went on: {answers}")


class Company:
    """A batcher that is held until a whole batch waits: a bad frame among good ones for sure."""

    def __init__(self, batcher: Batcher, manifest: Manifest) -> None:
        self.batcher, self.manifest = batcher, manifest

    def answers(self, *requests: bytes) -> list[wire.Answer]:
        """The answers to these requests' frames, which all wait when the batch begins."""
        held, go, done = threading.Event(), threading.Event(), threading.Event()
        found: dict[int, wire.Answer] = {}

        def hold(_: wire.Answer) -> None:
            held.set()
            go.wait(60)

        def reply(answer: wire.Answer) -> None:
            found[answer.seq] = answer
            if len(found) == len(requests):
                done.set()

        good = self._job(frames.good(self.manifest), 0)
        self.batcher.submit(replace(good, reply=hold))
        assert held.wait(60)
        for seq, raw in enumerate(requests):
            self.batcher.submit(replace(self._job(raw, seq), reply=reply))
        go.set()
        assert done.wait(60)
        return [found[seq] for seq in range(len(requests))]

    def harmless(self, raw: bytes) -> None:
        """The bad frame is refused, and the good ones around it are answered as without it."""
        good = frames.good(self.manifest)
        first, last = self.answers(good, good)
        before, bad, after = self.answers(good, raw, good)
        assert bad.status == wire.INVALID
        assert first.status == last.status == before.status == after.status == wire.OK
        assert before.batch == after.batch == 2
        assert list(first.outputs) == list(before.outputs)
        assert list(last.outputs) == list(after.outputs)

    def _job(self, raw: bytes, seq: int) -> Job:
        frame = wire.Request.FromString(raw).frame
        return Job(
            seq=seq,
            plan=packet.plan_of(self.manifest, frame).name,
            payload=frame.payload,
            arrived=time.monotonic(),
            expires=None,
            reply=lambda _: None,
            size=packet.size_of(self.manifest, frame),
            side=packet.side_of(self.manifest, frame),
        )
