"""What is counted, and that a fault of the server's own tells the peer nothing."""

from __future__ import annotations

import threading

import grpc
import pytest

from splitrt.cloud import front as module
from splitrt.cloud.tally import Tally
from splitrt.core import packet
from splitrt.wire import tail_pb2 as wire
from tests.attacks import frames


def test_every_answer_counts_once_from_whatever_thread():
    tally, answers = Tally(), []
    replies = [tally.awaited(answers.append) for _ in range(400)]
    assert tally.inflight == 400 and not tally.read()

    def work(part: list) -> None:
        for reply in part:
            reply(packet.refusal(1, wire.BUSY, "full"))

    threads = [threading.Thread(target=work, args=[replies[n::4]]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(tally.read()) == {"BUSY": 400} and len(answers) == 400
    assert tally.inflight == 0


def test_the_counts_are_frozen_and_of_their_time():
    tally = Tally()
    tally.add("OK")
    before = tally.read()
    tally.add("OK")
    assert (before["OK"], tally.read()["OK"]) == (1, 2)
    with pytest.raises(TypeError):
        before["OK"] = 7


def test_a_fault_in_a_handler_is_counted_and_its_words_stay_here(server, monkeypatch):
    def fault(*_):
        raise RuntimeError("secret /etc/path")

    before = server.tally.get("INTERNAL", 0)
    with grpc.insecure_channel(server.address) as channel:
        monkeypatch.setattr(module.packet, "agree", fault)
        with pytest.raises(grpc.RpcError) as raised:
            frames.infer(channel, frames.good(server.manifest))
        assert raised.value.code() == grpc.StatusCode.INTERNAL
        assert raised.value.details() == "the server failed"
        with pytest.raises(grpc.RpcError) as raised:
            frames.stream(channel, [frames.hello(server.manifest)])
        assert raised.value.details() == "the server failed"
        monkeypatch.undo()
        assert frames.infer(channel, frames.good(server.manifest)).status == wire.OK
    assert server.tally["INTERNAL"] == before + 2
