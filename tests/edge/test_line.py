"""A stream that is opened again and again: how it ends."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc

from splitrt.edge.line import Ends, Line
from splitrt.edge.trust import Trust
from splitrt.wire import decode_pb2 as wire
from splitrt.wire.decode_pb2_grpc import DecoderServicer, add_DecoderServicer_to_server
from tests.edge.test_link import soon


class Holding(DecoderServicer):
    """Says one word, then only listens."""

    def Session(self, messages, context):
        yield wire.FromDecoder(beat=wire.Beat(seq=1))
        yield from (message for message in messages if message is None)


def test_a_line_that_is_closed_while_it_connects_opens_nothing():
    made, go, changed = threading.Event(), threading.Event(), threading.Condition()

    def channel(address, options, **more):
        if options:  # the first is only to see whether the address is one
            made.set()
            go.wait(20)
        return Trust().channel(address, options, **more)

    ends = Ends(
        first=lambda sid: wire.ToDecoder(),
        due=lambda: None,
        soon=lambda: 60.0,
        hear=lambda message, address, sid: line.open(address, b"session"),
        down=lambda: None,
    )
    server = grpc.server(ThreadPoolExecutor(2))
    add_DecoderServicer_to_server(Holding(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    trust = SimpleNamespace(channel=channel, metadata=())
    line = Line(f"127.0.0.1:{port}", trust, changed, ends)
    line.start()
    assert made.wait(20)
    line.over = True
    closing = threading.Thread(target=line.close)
    closing.start()
    assert soon(lambda: line._epoch == 1)
    go.set()
    closing.join(20)
    alive = line._thread.is_alive()
    server.stop(0).wait()
    assert not alive
