"""The device's end of a session: what it sends, what it survives, what it does not believe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

import numpy as np
import pytest

from splitrt.core.language import Language
from splitrt.core.sample import Sampling
from splitrt.edge.session import Session, Terms
from splitrt.errors import LinkDown, LinkError, ModelMismatch, PacketError
from splitrt.relay import Relay
from splitrt.wire import decode_pb2 as wire
from tests.edge import toy

LONG = 30.0  # seconds, where nothing is to be given up


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Language:
    return Language.load(toy.directory(tmp_path_factory.mktemp("models") / "toy"))


def opened(address: str, manifest: Language, patience: float = LONG, seed: int = 0) -> Session:
    terms = Terms("f32", "hidden", toy.LONGEST, Sampling(seed=seed))
    return Session(address, manifest, terms, patience=patience)


def rows(count: int, seed: int = 0) -> bytes:
    size = 4 * toy.HIDDEN
    return (
        np.random.default_rng(seed)
        .standard_normal(count * toy.HIDDEN, "f4")
        .tobytes()[: count * size]
    )


def expected(session: Session, seed: int = 0) -> int:
    return toy.spoken(session.log.at(session.log.n), seed)


def soon(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.005)
    return False


def test_rows_go_up_by_themselves_and_a_question_needs_none(manifest):
    server = toy.ToyServer()
    with toy.serving(server) as (address, _):
        session = opened(address, manifest)
        for seed in range(5):
            session.append(rows(10, seed))
        assert soon(lambda: server.rows == 50)
        assert session.ask().future.result(20).token == expected(session)
        assert server.rows == 50 and server.nacked == 0
        session.close()
    assert server.sessions == {}


def test_a_verdict_takes_the_rows_of_wrong_drafts_out_of_the_log(manifest):
    with toy.serving(toy.ToyServer()) as (address, _):
        session = opened(address, manifest)
        session.append(rows(3))
        first = expected(session)
        session.append(rows(4, 1))
        reply = session.ask([first, 0, 0, 0]).future.result(20)
        assert reply.n == session.log.n == 3 + reply.accepted and reply.accepted in (1, 2)
        session.append(rows(1, 2))
        assert session.ask().future.result(20).token == expected(session)
        session.close()


def test_what_is_cut_here_is_cut_there(manifest):
    server = toy.ToyServer()
    with toy.serving(server) as (address, _):
        session = opened(address, manifest)
        session.append(rows(20))
        session.ask().future.result(20)
        for n in (15, 3):
            session.truncate(n)
            session.append(rows(2, n))
            assert session.ask().future.result(20).token == expected(session)
        assert server.nacked == 0 and server.opened == 1
        session.close()


def test_a_stream_that_breaks_is_resumed_and_nothing_is_sent_twice(manifest):
    server = toy.ToyServer()
    with toy.serving(server) as (address, _), Relay(address) as relay:
        session = opened(relay.address, manifest)
        session.append(rows(40))
        session.ask().future.result(20)
        for seed in range(5):
            relay.cut()
            session.append(rows(1, seed))
            assert session.ask().future.result(20).token == expected(session)
        assert server.rows == 45 and server.opened == 1 and session.opened == 6
        session.close()


def test_a_server_that_forgot_everything_gets_the_stored_bytes(manifest):
    with toy.serving(toy.ToyServer()) as (address, running):
        port = int(address.rpartition(":")[2])
        session = opened(address, manifest)
        session.append(rows(40))
        session.ask().future.result(20)
        running.stop(0).wait()
        with toy.serving(fresh := toy.ToyServer(), port):
            assert session.ask().future.result(20).token == expected(session)
            assert fresh.rows == 40 and fresh.opened == 1
            session.close()


def test_the_next_server_takes_over(manifest):
    second = toy.ToyServer()
    with toy.serving(toy.ToyServer()) as (one, running), toy.serving(second) as (two, _):
        session = opened(f"{one},{two}", manifest)
        session.append(rows(40))
        session.ask().future.result(20)
        running.stop(0).wait()
        session.append(rows(1, 1))
        assert session.ask().future.result(20).token == expected(session)
        assert second.rows == 41 and session.address == two
        session.close()


def test_a_black_hole_is_noticed_by_silence_and_another_server_asked(manifest):
    with toy.serving(toy.ToyServer()) as (one, _), toy.serving(toy.ToyServer()) as (two, _):
        with Relay(one) as relay:
            session = opened(f"{relay.address},{two}", manifest)
            session.append(rows(4))
            session.ask().future.result(20)
            relay.hole = True
            session.append(rows(1, 1))
            assert session.ask().future.result(20).token == expected(session)
            assert session.address == two
            session.close()


def test_without_any_server_a_question_ends_after_the_patience(manifest):
    with toy.serving(toy.ToyServer()) as (address, running):
        session = opened(address, manifest, patience=0.3)
        session.append(rows(4))
        session.ask().future.result(20)
        running.stop(0).wait()
        with pytest.raises(LinkDown, match=address):
            session.ask().future.result(20)
        assert session.log.n == 4
        session.close()


def test_a_server_that_is_slow_but_beats_is_waited_for(manifest):
    def slow(message):
        if message.HasField("verdict"):
            threading.Timer(2.5, late.set).start()
            pending.append(message)
            return []
        if pending and late.is_set():
            return [message, pending.pop()]
        return [message]

    pending, late = [], threading.Event()
    with toy.serving(server := toy.ToyServer(slow)) as (address, _):
        session = opened(address, manifest)
        session.append(rows(4))
        assert session.ask().future.result(20).token == expected(session)
        assert server.asked == 1 and session.opened == 1
        session.close()


def test_a_cancelled_question_leaves_a_session_that_goes_on(manifest):
    server = toy.ToyServer(lambda message: (time.sleep(0.05), [message])[1])
    with toy.serving(server) as (address, _):
        session = opened(address, manifest)
        session.append(rows(6))
        session.ask().future.result(20)
        for seed in range(4):
            session.append(rows(3, seed))
            pending = session.ask([1, 2])
            assert soon(lambda asked=pending: asked.seq > 0)
            session.cancel()
            with pytest.raises(CancelledError):
                pending.future.result(20)
            assert session.log.n == 7 + seed
            assert session.ask().future.result(20).token == expected(session)
        session.close()
    assert server.nacked == 0


def test_other_sampling_is_another_session_of_the_same_rows(manifest):
    server = toy.ToyServer()
    with toy.serving(server) as (address, _):
        session = opened(address, manifest)
        session.append(rows(30))
        session.ask().future.result(20)
        session.renew(Sampling(seed=7))
        assert session.ask().future.result(20).token == expected(session, seed=7)
        assert server.opened == 2 and server.rows == 60
        session.close()


LIES = {
    "more drafts than were asked": lambda verdict: setattr(verdict, "accepted", 9),
    "positions that it cannot hold": lambda verdict: setattr(verdict, "n", verdict.n + 1),
    "fewer positions": lambda verdict: setattr(verdict, "n", verdict.n - 1),
    "a token that there is not": lambda verdict: setattr(verdict, "token", toy.VOCAB),
    "a count of rollbacks from nowhere": lambda verdict: setattr(verdict, "gen", verdict.gen + 2),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_always_is_an_error(manifest, lie):
    def spoiled(message):
        if message.HasField("verdict"):
            LIES[lie](message.verdict)
        return [message]

    with toy.serving(toy.ToyServer(spoiled)) as (address, _):
        session = opened(address, manifest)
        session.append(rows(5))
        with pytest.raises(PacketError, match="cannot be"):
            session.ask([1, 2]).future.result(20)
        session.close()


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_once_is_asked_again(manifest, lie):
    left = [1]

    def spoiled(message):
        if message.HasField("verdict") and left:
            left.pop()
            LIES[lie](message.verdict)
        return [message]

    with toy.serving(toy.ToyServer(spoiled)) as (address, _):
        session = opened(address, manifest)
        session.append(rows(5))
        assert session.ask().future.result(20).token == expected(session)
        session.close()


def test_a_server_that_lies_before_it_has_taken_the_session_up_is_left(manifest):
    asked, lies = [], []

    def spoiled(message):
        if message.HasField("verdict"):
            asked.append(message.verdict.seq)
            return []
        if not asked:
            return [message]
        lies.append(wire.FromDecoder(verdict=wire.Verdict(seq=asked[0], n=99)))
        return lies[-1:]

    with toy.serving(toy.ToyServer(spoiled)) as (one, _), toy.serving(toy.ToyServer()) as (two, _):
        with Relay(one) as relay:
            session = opened(f"{relay.address},{two}", manifest)
            session.append(rows(5))
            pending = session.ask()
            assert soon(lambda: asked)
            relay.cut()
            assert pending.future.result(20).token == expected(session)
            assert session.address == two and len(lies) == 1
            session.close()


def test_an_answer_that_comes_twice_or_to_no_question_is_passed_over(manifest):
    def doubled(message):
        stray = wire.FromDecoder(verdict=wire.Verdict(seq=999, n=1, token=5))
        return [stray, message, message]

    with toy.serving(toy.ToyServer(doubled)) as (address, _):
        session = opened(address, manifest)
        for seed in range(10):
            session.append(rows(2, seed))
            assert session.ask().future.result(20).token == expected(session)
        assert session.strays >= 10 and session.opened == 1
        session.close()


def test_an_opened_that_claims_rows_nobody_sent_is_not_believed(manifest):
    left = [1]

    def spoiled(message):
        if message.HasField("opened") and left:
            left.pop()
            message.opened.n = 3
        return [message]

    with toy.serving(toy.ToyServer(spoiled)) as (address, _):
        session = opened(address, manifest)
        session.append(rows(5))
        assert session.ask().future.result(20).token == expected(session)
        session.close()


def test_a_log_that_differs_is_sent_anew(manifest):
    server = toy.ToyServer()
    with toy.serving(server) as (address, _), Relay(address) as relay:
        session = opened(relay.address, manifest)
        session.append(rows(9))
        session.ask().future.result(20)
        (held,) = server.sessions.values()
        held.logs[-1] = b"x" * 16
        relay.cut()
        assert session.ask().future.result(20).token == expected(session)
        assert server.opened == 2 and server.rows == 18
        session.close()


def test_no_room_is_waited_for(manifest):
    left = [1, 1, 1]

    def full(message):
        if message.HasField("opened") and left:
            left.pop()
            return [wire.FromDecoder(nack=wire.Nack(reason=wire.NO_MEMORY, retry_ms=50))]
        return [message]

    with toy.serving(toy.ToyServer(full)) as (address, _):
        session = opened(address, manifest)
        session.append(rows(5))
        assert session.ask().future.result(20).token == expected(session)
        session.close()


def test_another_model_is_said_at_once(manifest):
    class Other(toy.ToyServer):
        def Session(self, messages, context):
            import grpc

            next(messages)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the server holds another model")
            yield

    with toy.serving(Other()) as (address, _):
        session = opened(address, manifest)
        session.append(rows(5))
        with pytest.raises(ModelMismatch, match="another model"):
            session.ask().future.result(20)
        session.close()


def test_a_question_past_the_log_has_words(manifest):
    with toy.serving(toy.ToyServer()) as (address, _):
        session = opened(address, manifest)
        with pytest.raises(PacketError, match="0 of 0 positions"):
            session.ask()
        session.append(rows(2))
        with pytest.raises(PacketError, match="2 of 2 positions"):
            session.ask([1, 2])
        session.close()


def test_no_address_is_an_error(manifest):
    with pytest.raises(LinkError, match="host:port"):
        opened(" , ", manifest)


def test_pieces_that_land_twice_or_are_cut_off_break_nothing(manifest):
    server = toy.ToyServer()
    with toy.serving(server) as (address, _), Relay(address) as relay:
        session = opened(relay.address, manifest)
        session.append(rows(30))
        for seed in range(6):
            session.ask().future.result(20)
            if seed % 2:
                relay.duplicate(up=seed % 3 == 0)
            else:
                relay.truncate = 40  # the next message is cut off in its middle
            session.append(rows(3, seed))
            pending = session.ask()
            assert soon(lambda: relay.truncate is None or not session.up)
            relay.truncate = None
            assert pending.future.result(30).token == expected(session)
        session.close()


def test_a_thin_link_with_a_long_backlog_is_not_silent(manifest):
    """300 kB at 0.8 Mbit/s take three seconds, twice the silence that is given up."""
    server = toy.ToyServer()
    with toy.serving(server) as (address, _), Relay(address, trace=0.8, rtt=0.05) as relay:
        terms = Terms("f32", "hidden", 8000)
        session = Session(relay.address, manifest, terms, patience=LONG)
        for seed in range(50):
            session.append(rows(96, seed))
        assert session.ask().future.result(30).token == expected(session)
        assert session.opened == 1 and server.rows == 4800
        session.close()
