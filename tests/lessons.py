"""What tests of adapting share: revisions of known effect, learners and servers that do as told."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ClassVar

import grpc
import numpy as np

from splitrt.cloud.learn import Tally
from splitrt.cloud.subject import Subject
from splitrt.core import packet
from splitrt.core.manifest import Manifest
from splitrt.core.revision import Revision, wanted
from splitrt.edge import study
from splitrt.wire import adapt_pb2 as wire
from splitrt.wire.adapt_pb2_grpc import TeacherStub

LEARN = "/splitrt.wire.Teacher/Learn"
CLASSES, MAPS = 10, 4
FAVOUR = 1000.0  # what a revision adds to one class: it answers that one whatever it sees

Script = Callable[[Iterator[wire.ToTeacher], grpc.ServicerContext], Iterator[bytes]]


def favouring(manifest: Manifest, best: int = 3, number: int = 1, **other: float) -> Revision:
    """A revision by which every frame is of one class; edge=1.0: on no stream at all."""
    plan = manifest.plan(manifest.default_plan)
    width = manifest.width(plan)
    weights = {
        name: np.zeros(shape) for name, shape in wanted(CLASSES, width.shape[0], MAPS).items()
    }
    weights["scale"][:], weights["edge"][:] = 1.0, other.get("edge", -1.0)
    weights["bias"][best] = FAVOUR
    return Revision(number, manifest.contract, width.name, plan.name, weights)


def told(revision: Revision, **other: object) -> wire.ToPupil:
    """A revision as it travels."""
    fields = {
        "number": revision.number,
        "width": revision.width,
        "sha256": revision.sha256,
        "body": revision.encode(),
    }
    return wire.ToPupil(revision=wire.Revision(**{**fields, **other}))


def ready(rate: int = 20, unread: int = 8) -> wire.ToPupil:
    return wire.ToPupil(ready=wire.Ready(protocol=1, rate=rate, unread=unread, tail=b"t" * 32))


def start(manifest: Manifest, **other: object) -> wire.ToTeacher:
    plan = manifest.plan(manifest.default_plan)
    fields = {"hello": packet.hello(manifest), "width": manifest.width(plan).name}
    return wire.ToTeacher(start=wire.Start(**{**fields, **other}))


def sample(manifest: Manifest, seq: int = 1, **other: object) -> wire.ToTeacher:
    """A sample by the plan q8 of the tests' small model: all codes 0, not compressed."""
    plan = manifest.plan("q8")
    fields = {
        "seq": seq,
        "plan": manifest.plans.index(plan),
        "payload": b"\0" + bytes(manifest.width(plan).elements),
        "logits": np.arange(CLASSES, dtype="<f2").tobytes(),
    }
    return wire.ToTeacher(sample=wire.Sample(**{**fields, **other}))


class Parrot:
    """A learner that gives the same revision after so many samples each."""

    every = 3
    made: ClassVar[list[Parrot]] = []

    def __init__(self, subject: Subject, plan: str) -> None:
        self.subject, self.plan = subject, plan
        self.seen: list[tuple[bytes, np.ndarray, np.ndarray | None]] = []
        self.tally, self.reverts = Tally(), 0
        self.current: Revision | None = None
        self.made.append(self)

    def add(self, packed, logits, level=None) -> None:
        self.seen.append((packed, logits, level))
        if len(self.seen) % self.every == 0:
            self.current = favouring(self.subject.manifest)

    def revert(self) -> None:
        self.reverts += 1
        self.current = None

    @property
    def busy(self) -> bool:
        return False

    def step(self) -> Revision | None:
        raise AssertionError("it is never busy")


def eager(monkeypatch, *, rate: int = 20, learner: type = Parrot) -> None:
    """Every frame is worth telling, a learner of the tests learns, and nobody waits for long."""
    real = study.weigh
    monkeypatch.setattr(study, "weigh", lambda *seen: ("worth", real(*seen)[1]))
    monkeypatch.setattr("splitrt.cloud.server.learners", lambda: learner)
    monkeypatch.setattr("splitrt.cloud.lesson.RATE", rate)
    monkeypatch.setattr("splitrt.cloud.school.REST", 0.05)
    Parrot.made = []


@contextmanager
def teaching(script: Script, port: int = 0) -> Iterator[str]:
    """A server whose Learn calls run a script, messages in, messages out; it has no tail."""
    handler = grpc.stream_stream_rpc_method_handler(script, wire.ToTeacher.FromString, _serialized)
    service, method = LEARN.strip("/").split("/")
    server = grpc.server(ThreadPoolExecutor(8))
    table = grpc.method_handlers_generic_handler(service, {method: handler})
    server.add_generic_rpc_handlers((table,))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(0).wait()


def after_ready(*messages: wire.ToPupil | bytes, heard: list | None = None) -> Script:
    """Ready, those messages, then a Taken for each sample; what came is in `heard`."""

    def script(requests, context):
        heard_here = [] if heard is None else heard
        heard_here.append(next(requests))
        yield ready()
        yield from messages
        for request in requests:
            heard_here.append(request)
            if request.HasField("sample"):
                yield wire.ToPupil(taken=wire.Taken(seq=request.sample.seq))

    return script


class Class:
    """A device's call on bare gRPC: what is sent and what comes back, message by message."""

    def __init__(self, address: str, first: wire.ToTeacher, metadata=()) -> None:
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._outbox: queue.SimpleQueue[wire.ToTeacher | None] = queue.SimpleQueue()
        self.put(first)
        stub = TeacherStub(self.channel)
        self.call = stub.Learn(iter(self._outbox.get, None), timeout=60, metadata=metadata)
        try:
            self.ready = next(self.call).ready
        except grpc.RpcError:
            self.close()
            raise

    def __enter__(self) -> Class:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._outbox.put(None)
        self.channel.close()

    def put(self, message: wire.ToTeacher | None) -> None:
        """None: the device has done."""
        self._outbox.put(message)

    def until(self, kind: str) -> wire.ToPupil:
        """The next message of that kind."""
        return next(message for message in self.call if message.HasField(kind))

    def ended(self) -> tuple[str, str]:
        """(gRPC code, words) with which the server ends the call."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return "OK", ""


def _serialized(message: wire.ToPupil | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
