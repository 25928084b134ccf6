"""Too late, too long, too slow, too many at once, gone."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Iterator

import grpc
import pytest

from splitrt.wire import tail_pb2 as wire
from tests.attacks import frames, http2
from tests.attacks.unharmed import TIMES, discreet, told, unharmed

MOST = 2**32 - 1


def numbered(victim, count: int) -> Iterator[bytes]:
    """A stream's messages: good frames from 1."""
    yield frames.hello(victim.manifest)
    message = wire.ToServer.FromString(frames.framed(frames.good(victim.manifest)))
    for seq in range(1, count + 1):
        message.frame.seq = seq
        yield message.SerializeToString()


def test_a_deadline_that_is_over_is_expired_and_an_hour_is_fine(victim):
    good = wire.Request.FromString(frames.good(victim.manifest))
    for slack, name in ((1, "EXPIRED"), (MOST, "OK")):
        good.frame.slack_us = slack
        with unharmed(victim, {name: TIMES}):
            for _ in range(TIMES):
                found, words = told(victim.channel, good.SerializeToString())
                assert found == name and discreet(words)


@pytest.mark.parametrize("seconds", [0, 1e-9, 0.001])
def test_a_call_whose_own_deadline_is_over_is_let_go(victim, seconds):
    call = victim.channel.unary_unary(frames.INFER)
    with unharmed(victim):
        for _ in range(TIMES):
            try:
                call(frames.good(victim.manifest), timeout=seconds)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("timeout", ["99999999H", "1n", "0S", "-1S", "1e9S", "x", ""])
def test_a_century_and_nonsense_as_deadlines_of_a_call(victim, timeout):
    good = frames.good(victim.manifest)
    with unharmed(victim):
        for _ in range(20):
            line = http2.greeted(victim.address)
            start = http2.call(1, frames.INFER, **{"grpc-timeout": timeout})
            http2.sent(line, start + http2.message(1, good, flags=http2.END_STREAM))
            http2.heard(line, 0.01)
            http2.hung_up(line)


def test_calls_that_are_cancelled_while_they_are_queued_are_let_go(victim):
    with unharmed(victim), grpc.insecure_channel(victim.address) as other:
        call = other.unary_unary(frames.INFER)
        for wait in (0.0, 0.001, 0.003):
            flights = [call.future(frames.good(victim.manifest), timeout=60) for _ in range(TIMES)]
            time.sleep(wait)
            for flight in flights:
                flight.cancel()


def test_devices_that_vanish_are_forgotten(victim):
    """Without a word, with frames on their way: closed sockets, and cancelled streams."""
    with unharmed(victim):
        for _ in range(TIMES // 4):
            with grpc.insecure_channel(victim.address) as other:
                call = other.stream_stream(frames.STREAM)(numbered(victim, 5), timeout=60)
                call.cancel()
        for _ in range(TIMES):
            line = http2.greeted(victim.address)
            http2.sent(line, http2.call(1, frames.STREAM))
            for raw in numbered(victim, 5):
                http2.sent(line, http2.message(1, raw))
            http2.hung_up(line)


def test_too_many_at_once_are_busy_and_all_are_answered(victim):
    with unharmed(victim):
        answers = [one.answer for one in frames.stream(victim.channel, numbered(victim, 300))[1:]]
        assert sorted(answer.seq for answer in answers) == list(range(1, 301))
        assert {answer.status for answer in answers} <= {wire.OK, wire.BUSY}


def test_ten_thousand_at_once_are_answered_or_the_stream_is_ended_with_a_reason(victim):
    with unharmed(victim):
        found = []
        try:
            call = victim.channel.stream_stream(frames.STREAM)(
                numbered(victim, 10_000), timeout=120
            )
            found.extend(
                wire.ToEdge.FromString(raw).answer for raw in itertools.islice(call, 1, None)
            )
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.details() == "answers not read"
        else:
            assert len(found) == 10_000
        assert {answer.status for answer in found} <= {wire.OK, wire.BUSY}
        assert len({answer.seq for answer in found}) == len(found)


def test_a_thousand_calls_at_once_are_answered(victim):
    good = frames.good(victim.manifest)
    with unharmed(victim), grpc.insecure_channel(victim.address) as other:
        call = other.unary_unary(frames.INFER)
        flights = [call.future(good, timeout=120) for _ in range(1000)]
        found = [_code(flight) for flight in flights]
        assert set(found) <= {"OK", "BUSY", "UNAVAILABLE"}  # the last: over a hundred at once
        assert "OK" in found


def test_who_never_reads_its_replies_is_left_with_a_bound(victim):
    """A window of no bytes: the server can say nothing. Its memory is bounded all the same."""
    with unharmed(victim):
        before = victim.look()
        lines = []
        for _ in range(20):
            line = http2.greeted(victim.address, http2.setting(http2.INITIAL_WINDOW, 0))
            http2.sent(line, http2.call(1, frames.STREAM))
            for raw in numbered(victim, 100):
                http2.sent(line, http2.message(1, raw))
            lines.append(line)
        while sum((moved := victim.look().moved(before)).values()) < 20 * 100:
            time.sleep(0.02)
        assert moved == {"OK": 20 * 8, "BUSY": 20 * 92}
        assert len(victim.known_good()) == 2
        http2.hung_up(*lines)


def test_who_asks_on_without_reading_is_told_to_go(victim):
    """Refusals are short, and a hundred times eight of them may wait."""
    bad = frames.framed(frames.request(victim.manifest, b"x"))
    with unharmed(victim):
        before = victim.look()
        line = http2.greeted(victim.address, http2.setting(http2.INITIAL_WINDOW, 0))
        http2.sent(line, http2.call(1, frames.STREAM))
        http2.sent(line, http2.message(1, frames.hello(victim.manifest)))
        for _ in range(900):
            http2.sent(line, http2.message(1, bad))
        while sum((moved := victim.look().moved(before)).values()) < 800:
            time.sleep(0.02)
        assert moved["INVALID"] == 8 and sum(moved.values()) <= 802
        http2.sent(line, http2.setting(http2.INITIAL_WINDOW, 1 << 20))
        said = b""
        while b"answers not read" not in said:
            piece, over = http2.heard(line, 0.2)
            said += piece
            assert not over
        http2.hung_up(line)


def test_a_byte_at_a_time_holds_up_nobody(victim):
    good = frames.good(victim.manifest)
    whole = http2.PREFACE + http2.frame(http2.SETTINGS) + http2.call(1, frames.INFER)
    whole += http2.message(1, good, flags=http2.END_STREAM)
    with unharmed(victim):
        lines = [http2.opened(victim.address, whole[: 20 * n]) for n in range(20)]
        for step in range(20):
            for number, line in enumerate(lines):
                http2.sent(line, whole[20 * number + step : 20 * number + step + 1])
            assert len(victim.known_good()) == 2
            time.sleep(0.05)
        http2.hung_up(*lines)


def test_a_message_in_single_bytes_is_answered_as_one(victim):
    """Slow is not wrong."""
    good = frames.good(victim.manifest)
    whole = http2.PREFACE + http2.frame(http2.SETTINGS) + http2.call(1, frames.INFER)
    prefixed = http2.message(1, good)[9:]
    with unharmed(victim, {"OK": 1 + 2}):
        line = http2.opened(victim.address, whole)
        for place in range(len(prefixed) - 1):
            http2.sent(line, http2.frame(http2.DATA, 0, 1, prefixed[place : place + 1]))
        assert len(victim.known_good()) == 2
        http2.sent(line, http2.frame(http2.DATA, http2.END_STREAM, 1, prefixed[-1:]))
        said = b""
        while b"grpc-status" not in said:
            piece, over = http2.heard(line, 0.2)
            said += piece
            assert not over
        http2.hung_up(line)


def test_a_stream_that_stays_silent_costs_only_itself(victim):
    """Hello, and then nothing for as long as the others work."""
    with unharmed(victim):
        boxes = [queue.SimpleQueue() for _ in range(50)]
        calls = []
        for box in boxes:
            box.put(frames.hello(victim.manifest))
            calls.append(victim.channel.stream_stream(frames.STREAM)(iter(box.get, None)))
            assert wire.ToEdge.FromString(next(calls[-1])).HasField("welcome")
        for _ in range(20):
            assert len(victim.known_good()) == 2
        for box in boxes:
            box.put(None)
        assert [list(call) for call in calls] == [[]] * 50


def _code(flight: grpc.Future) -> str:
    try:
        return wire.Status.Name(wire.Answer.FromString(flight.result()).status)
    except grpc.RpcError as error:
        return error.code().name
