"""The link against itself: retries, closing, errors, and what the controller hears of it."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from splitrt import Edge, LinkDown, ModelMismatch
from splitrt.core.manifest import Manifest
from splitrt.demo import shipped
from splitrt.edge.link import Link
from splitrt.edge.parcel import Parcel
from splitrt.edge.pilot import Pilot
from splitrt.edge.trust import Trust
from splitrt.wire import tail_pb2 as wire
from splitrt.wire.tail_pb2_grpc import TailServicer, add_TailServicer_to_server
from tests.conftest import pictures

Frames = Callable[[wire.Frame], wire.Answer | None]


class Scripted(TailServicer):
    """Answers frames as told; None ends the stream."""

    def __init__(self, script: Frames) -> None:
        self.script = script

    def Stream(self, messages, context):
        next(messages)
        yield wire.ToEdge(welcome=wire.Welcome(protocol=1, max_inflight=8))
        for message in messages:
            if message.HasField("ping"):
                yield wire.ToEdge(pong=wire.Pong(seq=message.ping.seq))
                continue
            answer = self.script(message.frame)
            if answer is None:
                return
            yield wire.ToEdge(answer=answer)


def scripted(script: Frames) -> AbstractContextManager[str]:
    return serving(Scripted(script))


@contextmanager
def serving(servicer: TailServicer) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    add_TailServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def right(frame: wire.Frame, seconds: float = 0.0) -> wire.Answer:
    time.sleep(seconds)
    logits = wire.Tensor(shape=[10], data=np.zeros(10, np.float32).tobytes())
    return wire.Answer(seq=frame.seq, status=wire.OK, outputs=[logits])


def gone(frame: wire.Frame, seconds: float = 0.0) -> None:
    time.sleep(seconds)


def parcel(seconds: float = 30.0) -> Parcel:
    return Parcel(0, b"payload", time.monotonic() + seconds)


def soon(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(scope="module")
def pilot() -> Pilot:
    manifest = Manifest.load(shipped())
    return Pilot(manifest, {width.name: 0.01 for width in manifest.widths})


def test_an_answer_that_comes_at_once_leaves_no_frame_in_flight_behind(monkeypatch):
    with scripted(right) as address:
        with Edge(shipped(), cloud=address, deadline=20, threads=1) as edge:
            pilot, send = edge._course.pilot, edge._link.send

            def preempted(*args):
                pending = send(*args)
                pending.future.result(20)  # the answer is here before the head's thread goes on
                return pending

            monkeypatch.setattr(edge._link, "send", preempted)
            results = [edge(image) for image in pictures(20, seed=3).images]
            assert any(result.where == "cloud" for result in results)
            assert pilot.state.flights == () and pilot.state.up


def test_a_tail_that_is_slow_within_the_deadline_is_not_a_silent_link():
    with scripted(lambda frame: right(frame, 2.0)) as address:
        with Edge(shipped(), cloud=address, deadline=6, threads=1) as edge:
            results = [edge(image) for image in pictures(4, seed=3).images]
    assert any(result.where == "cloud" for result in results)


def test_a_frame_sent_to_a_second_server_is_given_time_there(model_dir):
    with scripted(lambda f: gone(f, 1.2)) as lost, scripted(lambda f: right(f, 0.9)) as other:
        link = Link(f"{lost},{other}", Manifest.load(model_dir))  # silent after 1.5 s
        try:
            arrival = link.send(parcel()).future.result(20)
            assert arrival.answer.status == wire.OK
        finally:
            link.close()


class Listener:
    """Writes down what it hears; a break may have to wait."""

    def __init__(self) -> None:
        self.heard, self.breaks, self.go_on = [], threading.Event(), threading.Event()
        self.go_on.set()

    def sent(self, seq, size, at):
        self.heard.append(("sent", seq, size))

    def answered(self, seq, answer, at):
        self.heard.append(("answered", seq))

    def opened(self, took):
        self.heard.append(("opened",))

    def broke(self):
        self.heard.append(("broke",))
        self.breaks.set()
        self.go_on.wait(20)

    def silence(self):
        return 5.0


def test_closing_between_two_servers_ends_the_frames_that_wait_for_the_second(model_dir):
    ear = Listener()
    ear.go_on.clear()
    with scripted(gone) as lost, scripted(right) as other:
        link = Link(f"{lost},{other}", Manifest.load(model_dir), ear=ear)
        pending = link.send(parcel())
        assert ear.breaks.wait(20)
        closing = threading.Thread(target=link.close)
        closing.start()
        assert soon(link._closed.is_set)
        ear.go_on.set()
        with pytest.raises(LinkDown):
            pending.future.result(5)
        closing.join(20)
        assert not link._thread.is_alive()


def test_closing_while_a_connection_is_being_made_ends_it(model_dir):
    made, go = threading.Event(), threading.Event()

    def channel(address, options, **more):
        if options:  # the first is only to see whether the address is one
            made.set()
            go.wait(20)
        return Trust().channel(address, options, **more)

    with scripted(right) as address:
        trust = SimpleNamespace(channel=channel, metadata=())
        link = Link(address, Manifest.load(model_dir), trust=trust)
        assert made.wait(20)
        closing = threading.Thread(target=link.close)
        closing.start()
        assert soon(link._closed.is_set)
        go.set()
        closing.join(20)
        assert not link._thread.is_alive()


def test_a_server_of_another_model_need_not_say_more(model_dir, image):
    class Silent(TailServicer):
        def Stream(self, messages, context):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "")

    with serving(Silent()) as address, Edge(model_dir, cloud=address, plan="q4") as edge:
        with pytest.raises(ModelMismatch, match=f"{address} holds another model"):
            edge(image)


def test_the_error_of_an_outage_does_not_hold_on_to_every_frame(model_dir):
    link = Link("127.0.0.1:1", Manifest.load(model_dir))
    depths = []
    for _ in range(3):
        with pytest.raises(LinkDown) as raised:
            link.send(parcel())
        depths.append(len(traceback.extract_tb(raised.value.__traceback__)))
    link.close()
    assert len(set(depths)) == 1


def test_a_frame_sent_again_is_told_and_costs_its_bytes_again(model_dir):
    ear = Listener()
    with scripted(gone) as lost, scripted(right) as other:
        link = Link(f"{lost},{other}", Manifest.load(model_dir), ear=ear)
        pending = link.send(parcel())
        pending.future.result(20)
        link.close()
    told = [one for one in ear.heard if one[0] in ("sent", "answered")]
    assert [one[:2] for one in told] == [("sent", 1), ("sent", 1), ("answered", 1)]
    assert sum(one[2] for one in told[:2]) == pending.sent_bytes
    assert [one[0] for one in ear.heard[:5]] == ["opened", "sent", "broke", "opened", "sent"]


def test_a_frame_that_expired_at_the_server_is_one_too_many(pilot):
    before, now = pilot.state.share, time.monotonic()
    pilot.sent(1, 300, now)
    pilot.answered(1, wire.Answer(seq=1, status=wire.EXPIRED), now + 0.02)
    assert pilot.state.share < before and pilot.state.flights == ()
    assert pilot.state.link.servers == ()


def test_no_server_holds_frames_back_for_days(pilot):
    now = time.monotonic()
    pilot.sent(2, 300, now)
    pilot.answered(2, wire.Answer(seq=2, status=wire.BUSY, retry_after_ms=2**32 - 1), now)
    assert now < pilot.state.hold <= now + 20


def test_a_server_cannot_claim_more_time_than_a_frame_took(pilot):
    now = time.monotonic()
    pilot.sent(3, 300, now)
    lie = wire.Answer(seq=3, status=wire.OK, queue_us=2**32 - 1, compute_us=2**32 - 1)
    pilot.answered(3, lie, now + 0.05)
    assert pilot.state.link.server < 0.06
