"""In operation: pings, health, and the end of a server that is at work."""

from __future__ import annotations

import socket
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitrt import SplitrtError
from splitrt.cloud import Server
from splitrt.cloud.call import PADDING, PING_BURST
from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire
from tests.attacks import frames, http2
from tests.edge.test_loopback import soon
from tests.line import Line


@pytest.fixture
def manifest(model_dir) -> Manifest:
    return Manifest.load(model_dir)


def held(server: Server) -> threading.Event:
    """Until it is set, the server's tail answers nothing."""
    go, branch = threading.Event(), next(iter(server.tail.branches.values()))
    branch.run = lambda *inputs: go.wait(20) and type(branch).run(branch, *inputs)
    return go


def test_a_ping_is_answered_among_frames(server, manifest):
    with Line(server.address, manifest) as line:
        line.ping(5, bytes(PADDING))
        assert line.get().pong.seq == 5
        line.frame(1)
        line.ping(6)
        kinds = sorted(line.get().WhichOneof("kind") for _ in range(2))
    assert kinds == ["answer", "pong"]


def test_answers_and_pongs_say_how_many_frames_wait(model_dir, manifest):
    with Server(model_dir, port=0, threads=1, max_batch=1) as server:
        go = held(server)
        with Line(server.address, manifest) as line:
            for seq in range(1, 7):
                line.frame(seq)
            assert soon(lambda: server.batcher.waiting == 5)  # one runs
            line.ping(9)
            assert line.get().pong.waiting == 5
            go.set()
            waiting = [line.get().answer.waiting for _ in range(6)]
        assert waiting[-1] == 0 and max(waiting) <= 5


@pytest.mark.parametrize(
    ("pings", "padding", "code"),
    [
        (1, PADDING + 1, grpc.StatusCode.INVALID_ARGUMENT),
        (100 * int(PING_BURST), 0, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_pings_that_are_too_many_or_too_large_end_that_stream(
    server, manifest, pings, padding, code
):
    with Line(server.address, manifest) as good, Line(server.address, manifest) as bad:
        for seq in range(pings):
            bad.ping(seq, bytes(padding))
        with pytest.raises(grpc.RpcError) as raised:
            list(bad)
        assert raised.value.code() == code
        good.frame(1)
        assert good.get().answer.status == wire.OK


def test_who_says_nothing_is_sent_away_and_who_pings_stays(model_dir, manifest, monkeypatch):
    from splitrt.cloud import reception

    monkeypatch.setattr(reception, "IDLE", 2.0)
    monkeypatch.setattr(reception, "WATCH", 0.05)
    with Server(model_dir, port=0, threads=1) as server:
        with Line(server.address, manifest) as silent, Line(server.address, manifest) as alive:
            with pytest.raises(grpc.RpcError) as raised:
                stay = threading.Event()
                pinging = threading.Thread(
                    target=lambda: [alive.ping(seq) for seq in range(1000) if not stay.wait(0.1)]
                )
                pinging.start()
                list(silent)
            assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert alive.get().HasField("pong") and len(server._front.streams) == 1
            stay.set()
            pinging.join()


def test_health_names_the_server_and_its_model(server, manifest):
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", manifest.name):
            asked = health_pb2.HealthCheckRequest(service=name)
            assert stub.Check(asked, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            stub.Check(health_pb2.HealthCheckRequest(service="another"), timeout=10)
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_server_that_ends_says_so_first_and_loses_no_frame(model_dir, manifest):
    """Devices that send on and on, each the next frame when one is answered."""
    server = Server(model_dir, port=0, threads=1, grace=20)
    said: list[int] = []
    sent, told = [0] * 4, [[] for _ in range(4)]

    def watch() -> None:
        with grpc.insecure_channel(server.address) as channel:
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            try:
                for response in watching:
                    said.append(response.status)
                    if response.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                        answered.append(sum(map(len, told)))
            except grpc.RpcError:
                return

    def send(place: int) -> None:
        with Line(server.address, manifest) as line:
            while sent[place] < 3:
                sent[place] += 1
                line.frame(sent[place])
            for message in line:
                told[place].append(message.answer)
                if message.answer.status == wire.OK and not leaving.is_set():
                    sent[place] += 1
                    line.frame(sent[place])

    answered: list[int] = []
    leaving = threading.Event()
    threads = [threading.Thread(target=watch)]
    threads += [threading.Thread(target=send, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    assert soon(lambda: said and all(len(one) > 10 for one in told))
    closing = threading.Thread(target=server.close)
    closing.start()
    assert soon(lambda: answered)
    assert soon(lambda: sum(map(len, told)) > answered[0] + 20)  # it serves on
    leaving.set()
    for thread in [closing, *threads]:
        thread.join(30)
        assert not thread.is_alive()
    assert said == [1, 2]  # SERVING, NOT_SERVING
    for place in range(4):
        assert sorted(answer.seq for answer in told[place]) == list(range(1, sent[place] + 1))
        assert {answer.status for answer in told[place]} == {wire.OK}


def test_a_closing_server_takes_no_new_device_and_ends_a_quiet_one_at_once(model_dir, manifest):
    server = Server(model_dir, port=0, threads=1, grace=30)
    go, stop = held(server), threading.Thread(target=server.close)
    with Line(server.address, manifest) as line, Line(server.address, manifest) as idle:
        line.frame(1)
        assert soon(lambda: server.batcher._running is not None)
        started = time.monotonic()
        stop.start()
        assert list(idle) == [] and time.monotonic() - started < 20
        with pytest.raises(grpc.RpcError) as raised:
            Line(server.address, manifest)
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        go.set()
        assert [message.answer.status for message in line] == [wire.OK]
    stop.join(20)
    assert not stop.is_alive()


def test_devices_that_never_rest_are_refused_in_the_end(model_dir, manifest):
    server = Server(model_dir, port=0, threads=1, grace=2)
    statuses = []

    def send() -> None:
        with Line(server.address, manifest) as line:
            line.frame(1)
            for message in line:
                statuses.append((message.answer.status, message.answer.retry_after_ms))
                line.frame(len(statuses) + 1)

    sending = threading.Thread(target=send)
    sending.start()
    assert soon(lambda: len(statuses) > 5)
    server.close()
    sending.join(20)
    assert not sending.is_alive()
    assert statuses[0] == (wire.OK, 0) and statuses[-1] == (wire.BUSY, 1000)


def alive(line: socket.socket) -> None:
    """Answer the server's pings until it hangs up."""
    said, over = b"", False
    while not over:
        piece, over = http2.heard(line, 0.2)
        said += piece
        while len(said) >= 9 + (size := int.from_bytes(said[:3], "big")):
            if said[3] == http2.PING and not said[4]:
                http2.sent(line, http2.frame(http2.PING, 1, payload=said[9 : 9 + size]))
            said = said[9 + size :]


def test_who_ends_and_reads_nothing_is_sent_away_too(model_dir, manifest, monkeypatch):
    """Its last answer can never be written: for ever the call would keep its place."""
    from splitrt.cloud import reception

    monkeypatch.setattr(reception, "IDLE", 1.0)
    monkeypatch.setattr(reception, "WATCH", 0.05)
    with Server(model_dir, port=0, threads=1) as server:
        line = http2.greeted(server.address, http2.setting(http2.INITIAL_WINDOW, 0))
        http2.sent(line, http2.call(1, frames.STREAM))
        http2.sent(line, http2.message(1, frames.hello(manifest)))
        for _ in range(100):
            http2.sent(line, http2.message(1, frames.framed(frames.request(manifest, b"x"))))
        assert soon(lambda: sum(server.tally.values()) == 100) and server.devices == 1
        http2.sent(line, http2.frame(http2.DATA, http2.END_STREAM, 1))
        threading.Thread(target=alive, args=(line,), daemon=True).start()
        assert soon(lambda: server.devices == 0, 15)
        http2.hung_up(line)


def test_a_model_that_fails_its_first_batches_is_an_error_of_the_server(model_dir, monkeypatch):
    def enough(self, largest: int) -> int:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("splitrt.cloud.tail.Tail.enough", enough)
    told = []

    def start() -> None:
        with pytest.raises(RuntimeError, match="out of memory"):
            Server(model_dir, port=0, threads=1)
        told.append(True)

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    starting.join(20)
    assert told


@pytest.mark.parametrize("grace", [float("nan"), float("inf"), -1.0])
def test_a_grace_that_is_no_time_is_an_error(model_dir, grace):
    with pytest.raises(SplitrtError, match="grace"):
        Server(model_dir, port=0, threads=1, grace=grace)


def test_devices_that_do_not_go_on_do_not_keep_others(server, manifest):
    """The oldest was asked and stays: the next one is asked then."""
    with (
        Line(server.address, manifest, moves=True) as stays,
        Line(server.address, manifest, moves=True) as goes,
    ):
        server.send_on(1)
        assert stays.get().leave
        server.send_on(1)
        assert goes.get().leave


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_inflight": -1}])
def test_a_server_that_could_take_nothing_is_refused(model_dir, wrong):
    with pytest.raises(SplitrtError, match="1 or more"):
        Server(model_dir, port=0, **wrong)
