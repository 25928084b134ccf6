"""A server that lies to the device: no lie becomes an answer, and the device goes on."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from splitrt import Edge, ModelMismatch
from splitrt.wire import tail_pb2 as wire
from tests.attacks.frames import STREAM
from tests.edge.test_loopback import frames, soon

MOST = 2**32 - 1
WELCOME = wire.ToEdge(welcome=wire.Welcome(protocol=1, max_inflight=8)).SerializeToString()
Script = Callable[[Iterator[wire.ToServer], grpc.ServicerContext], Iterator[bytes]]


@contextmanager
def scripted(script: Script, port: int = 0) -> Iterator[str]:
    """A server whose streams run a script: messages in, raw bytes out."""
    handler = grpc.stream_stream_rpc_method_handler(script, wire.ToServer.FromString)
    service, method = STREAM.strip("/").split("/")
    server = grpc.server(ThreadPoolExecutor(4))
    table = grpc.method_handlers_generic_handler(service, {method: handler})
    server.add_generic_rpc_handlers((table,))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    yield f"127.0.0.1:{bound}"
    server.stop(0).wait()


@contextmanager
def lying(answers: Callable[[wire.Frame], list[wire.Answer]]) -> Iterator[str]:
    """A server that answers a frame with whatever `answers` makes of it."""

    def script(messages, context):
        next(messages)
        yield WELCOME
        for message in messages:
            for answer in answers(message.frame):
                yield told(answer)

    with scripted(script) as address:
        yield address


def told(answer: wire.Answer) -> bytes:
    return wire.ToEdge(answer=answer).SerializeToString()


def logits(seq: int, count: int = 10, shape: int = 10, value: float = 0.0, **more) -> wire.Answer:
    data = np.full(count, value, np.float32).tobytes()
    return wire.Answer(
        seq=seq, status=wire.OK, outputs=[wire.Tensor(shape=[shape], data=data)], **more
    )


def tensors(seq: int, *tensors: wire.Tensor) -> wire.Answer:
    return wire.Answer(seq=seq, status=wire.OK, outputs=tensors)


ANSWERS: dict[str, tuple[Callable[[wire.Frame], list[wire.Answer]], str]] = {
    "another shape": (lambda f: [logits(f.seq, 9, 9)], "shape"),
    "one number short": (lambda f: [logits(f.seq, 9)], "36 bytes, 40 wanted"),
    "one number long": (lambda f: [logits(f.seq, 11)], "44 bytes, 40 wanted"),
    "a huge shape": (lambda f: [logits(f.seq, 10, MOST)], "shape"),
    "a shape of zeros": (lambda f: [logits(f.seq, 0, 0)], "shape"),
    "many dimensions": (
        lambda f: [tensors(f.seq, wire.Tensor(shape=[1] * 500, data=bytes(40)))],
        "shape",
    ),
    "two dimensions of one": (
        lambda f: [tensors(f.seq, wire.Tensor(shape=[1, 10], data=bytes(40)))],
        "shape",
    ),
    "no shape": (lambda f: [tensors(f.seq, wire.Tensor(data=bytes(40)))], "shape"),
    "NaN": (lambda f: [logits(f.seq, value=np.nan)], "NaN"),
    "infinity": (lambda f: [logits(f.seq, value=np.inf)], "infinity"),
    "minus infinity": (lambda f: [logits(f.seq, value=-np.inf)], "infinity"),
    "no output": (lambda f: [wire.Answer(seq=f.seq, status=wire.OK)], "0 outputs"),
    "two outputs": (lambda f: [tensors(f.seq, *logits(1).outputs, *logits(1).outputs)], "2 outp"),
    "no status": (lambda f: [wire.Answer(seq=f.seq)], "failed"),
    "an unknown status": (lambda f: [wire.Answer(seq=f.seq, status=99)], "failed"),
    "a keyframe, please": (lambda f: [wire.Answer(seq=f.seq, status=wire.NEED_KEY)], "failed"),
    "stale": (lambda f: [wire.Answer(seq=f.seq, status=wire.STALE)], "another model"),
    "busy for 49 days": (
        lambda f: [wire.Answer(seq=f.seq, status=wire.BUSY, retry_after_ms=MOST)],
        "full",
    ),
    "a terminal's escapes": (
        lambda f: [wire.Answer(seq=f.seq, status=wire.INVALID, detail="\x1b[2Jno")],
        r"\?\[2Jno",
    ),
    "long words": (
        lambda f: [wire.Answer(seq=f.seq, status=wire.INVALID, detail="x" * 1500)],
        "x{300}",
    ),
    "100 MB": (lambda f: [logits(f.seq, 25_000_000, 25_000_000)], "no answer|larger than max"),
    "another frame's number": (lambda f: [logits(f.seq + 1000)], "no answer"),
    "number 0": (lambda f: [logits(0)], "no answer"),
    "nothing": (lambda f: [], "no answer"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_lying_server_gets_no_answer_accepted(model_dir, image, kind):
    answers, words = ANSWERS[kind]
    with lying(answers) as address:
        with Edge(model_dir, cloud=address, plan="q4", deadline=0.5) as edge:
            result = edge(image)
            assert (result.where, result.plan) == ("edge", "exit")
            assert re.search(words, result.reason), result.reason
            assert result.reason.isprintable() and len(result.reason) < 500
            assert all(r.where == "edge" for _, r in edge.stream(frames(3)))
    assert soon(no_threads)


def no_threads() -> bool:
    """Whether all of the device's threads have ended."""
    return not any(one.name in ("link", "link-watch", "head") for one in threading.enumerate())


def test_unknown_and_repeated_answers_are_counted_and_the_first_one_holds(model_dir, image):
    def answers(frame):
        return [
            logits(frame.seq + 7, value=3.0),
            logits(frame.seq, value=1.0),
            logits(frame.seq, value=2.0),
        ]

    with lying(answers) as address:
        with Edge(model_dir, cloud=address, plan="q4", deadline=5) as edge:
            for _ in range(3):
                assert edge(image).outputs["logits"].tolist() == [1.0] * 10
            assert soon(lambda: edge._link.strays == 6)


def test_answers_out_of_order_find_their_frames(model_dir, image):
    held: list[int] = []

    def answers(frame):
        held.append(frame.seq)
        if len(held) < 4:
            return []
        backward, held[:] = held[::-1], []
        return [logits(seq, value=float(seq)) for seq in backward]

    with lying(answers) as address:
        with Edge(model_dir, cloud=address, plan="q4", deadline=20) as edge:
            flights = [edge.launch(image, time.monotonic()) for _ in range(4)]
            landed = [edge.land(flight)[0].outputs["logits"][0] for flight in flights]
            assert landed == [flight.pending.seq for flight in flights]


def test_an_answer_that_comes_late_is_not_the_next_frames(model_dir, image):
    before: list[int] = []

    def answers(frame):
        late = [logits(seq, value=9.0) for seq in before]
        before[:] = [frame.seq] if not before else [*before, frame.seq]
        return late

    with lying(answers) as address:
        with Edge(model_dir, cloud=address, plan="q4", deadline=0.3) as edge:
            for _ in range(4):
                result = edge(image)
                assert (result.where, result.plan) == ("edge", "exit")
                assert "300 ms" in result.reason
            assert soon(lambda: edge._link.strays >= 3)


def test_times_that_a_server_claims_are_never_more_than_it_took(model_dir, image):
    with lying(lambda f: [logits(f.seq, queue_us=MOST, compute_us=MOST)]) as address:
        with Edge(model_dir, cloud=address, plan="q4", deadline=5) as edge:
            timings = edge(image).timings
    there = timings.server + timings.batch + timings.tail
    assert there > 0 and timings.link + there <= timings.total


def after_welcome(*raw: bytes, times: int = 1) -> Script:
    """Welcome, those bytes, then silence."""

    def script(messages, context):
        next(messages)
        yield WELCOME
        for _ in range(times):
            yield from raw
        yield from (b"" for message in messages if message is None)

    return script


def welcome(**fields: int) -> bytes:
    return wire.ToEdge(welcome=wire.Welcome(**{"protocol": 1, **fields})).SerializeToString()


def instead(*raw: bytes) -> Script:
    def script(messages, context):
        yield from raw
        yield from (b"" for message in messages if message is None)

    return script


def ending(code: grpc.StatusCode, words: str) -> Script:
    def script(messages, context):
        context.abort(code, words)
        yield b""

    return script


SCRIPTS: dict[str, Script] = {
    "no welcome": instead(),
    "an answer before the welcome": instead(told(logits(1))),
    "noise instead of a welcome": instead(b"\xff\xff\xff"),
    "noise after the welcome": after_welcome(b"\xff\xff\xff"),
    "empty messages": after_welcome(b"", times=1000),
    "pongs that nobody asked for": after_welcome(
        wire.ToEdge(pong=wire.Pong(seq=7, waiting=MOST)).SerializeToString(), times=1000
    ),
    "a thousand welcomes": after_welcome(WELCOME, times=1000),
    "room for nothing": instead(welcome(max_inflight=0)),
    "room for everything": instead(welcome(max_inflight=MOST, bases=MOST)),
    "ten thousand answers to nothing": after_welcome(told(logits(MOST)), times=10_000),
    "a message of 10 MB": after_welcome(bytes(10_000_000)),
    "a long reason": ending(grpc.StatusCode.RESOURCE_EXHAUSTED, "x" * 3000),
    "escapes in the reason": ending(grpc.StatusCode.INTERNAL, "\x1b[2J\n\n\x07no"),
    "no reason": ending(grpc.StatusCode.UNKNOWN, ""),
    "unimplemented": ending(grpc.StatusCode.UNIMPLEMENTED, "no"),
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_server_that_breaks_the_protocol_leaves_the_device_answering(model_dir, image, kind):
    with scripted(SCRIPTS[kind]) as address:
        with Edge(model_dir, cloud=address, plan="q4", deadline=0.4, temporal=True) as edge:
            for _ in range(3):
                result = edge(image)
                assert (result.where, result.plan) == ("edge", "exit")
                assert result.reason and result.reason.isprintable()
                assert len(result.reason) < 500
    assert soon(no_threads)


def test_a_server_of_another_model_is_said_whatever_words_it_uses(model_dir, image):
    reason = "../../etc \x1b[2J" + "x" * 1000
    with scripted(ending(grpc.StatusCode.FAILED_PRECONDITION, reason)) as address:
        with Edge(model_dir, cloud=address, plan="q4", deadline=1) as edge:
            with pytest.raises(ModelMismatch) as raised:
                edge(image)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500


def test_after_a_liar_the_true_server_on_the_port_is_found(model_dir, image):
    from splitrt.cloud import Server

    with scripted(SCRIPTS["noise after the welcome"]) as address:
        edge = Edge(model_dir, cloud=address, plan="q4", deadline=2)
        assert edge(image).where == "edge"
    with edge, Server(model_dir, port=int(address.rsplit(":", 1)[1]), threads=1):
        assert soon(lambda: edge(image).where == "cloud")


def test_what_a_liar_sends_leaves_no_memory(model_dir: Path, image):
    import tracemalloc

    with lying(lambda f: [logits(f.seq + step) for step in range(1, 200)]) as address:
        with Edge(model_dir, cloud=address, plan="q4", deadline=0.05) as edge:
            soon(lambda: edge._link.up)
            for _ in range(3):
                edge(image)
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(40):
                edge(image)
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            assert soon(lambda: edge._link.strays >= 1000)
    assert grown < 2 << 20
