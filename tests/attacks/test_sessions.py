"""What strangers say to the server of a language model."""

from __future__ import annotations

import random
import threading
import time

import grpc
import numpy as np
import pytest

from splitrt.cloud import Guard, Server
from splitrt.cloud.session import MOST_DRAFTS, MOST_ROWS
from splitrt.cloud.talk import MOST_JOBS
from splitrt.core.rows import Rows
from splitrt.wire import decode_pb2 as wire
from tests.attacks import http2, sayings
from tests.attacks.unharmed import TIMES, discreet, unharmed
from tests.cloud.speaker import Speaker
from tests.cloud.test_sessions import PROMPTS, arrived, held

MOST = 2**32 - 1
DICE = random.Random(23)


def refused(talker, name: str, *messages: bytes, first: bytes | None = None) -> None:
    """Each message after the Open gets that Nack, alone and many times; one counter moves."""
    first = first or sayings.opening(talker.manifest)
    for times in (1, TIMES):
        with unharmed(talker, {name: times * len(messages)}):
            for _ in range(times):
                opened, *nacks = sayings.said(talker.channel, [first, *messages])
                assert opened.HasField("opened")
                assert [wire.Reason.Name(one.nack.reason) for one in nacks] == [name] * len(nacks)
                assert len(nacks) == len(messages)
                assert all(discreet(one.nack.detail) for one in nacks)


def ended(talker, name: str, *messages: bytes) -> None:
    """The call ends with that code and words that tell nothing."""
    with unharmed(talker, {name: TIMES}):
        for _ in range(TIMES):
            with pytest.raises(grpc.RpcError) as raised:
                sayings.said(talker.channel, messages)
            assert raised.value.code().name == name
            assert raised.value.details() and discreet(raised.value.details())


def sizes(manifest) -> dict[str, tuple[int, bytes]]:
    """Rows that are said, and bytes that come."""
    one = sayings.rows(manifest, 1)
    return {
        "one byte short": (1, one[:-1]),
        "one byte long": (1, one + b"\0"),
        "empty": (1, b""),
        "bytes for no row": (0, one),
        "two for one": (1, one * 2),
        "another codec's": (1, one[: len(one) // 2]),
        "four billion rows": (MOST, one),
        "too many, and all there": (MOST_ROWS + 1, one[:4] * (MOST_ROWS + 1)),
    }


@pytest.mark.parametrize("kind", [
    "one byte short", "one byte long", "empty", "bytes for no row", "two for one",
    "another codec's", "four billion rows", "too many, and all there",
])  # fmt: skip
def test_rows_of_another_size_are_refused(talker, kind):
    count, payload = sizes(talker.manifest)[kind]
    refused(talker, "MALFORMED", sayings.append(payload, count), sayings.ask(payload, count, seq=2))


def numbers(manifest, codec: str) -> dict[str, bytes]:
    """One row of a codec, with what no number is."""
    width, rows = manifest.shape.hidden, Rows(codec, manifest.shape.hidden)
    good = rows.encode(np.ones((1, width), np.float32))
    if codec in ("f32", "f16"):
        kind = "<f4" if codec == "f32" else "<f2"
        made = {}
        for name in ("nan", "inf", "-inf"):
            row = np.ones(width, kind)
            row[width // 2] = float(name)
            made[name] = row.tobytes()
        return made
    half = {name: np.array(float(name), "<f2").tobytes() for name in ("nan", "inf", "-inf")}
    made = {f"scale {name}": raw + good[2:] for name, raw in half.items()}
    made |= {f"outlier {name}": good[:2] + raw + good[4:] for name, raw in half.items()}
    place = 2 + 2 * rows.outliers
    made["outlier beyond"] = good[:place] + b"\xff\xff" + good[place + 2 :]
    return made


@pytest.mark.parametrize("codec", ["f32", "f16", "q8", "q4"])
def test_rows_that_are_no_numbers_are_refused(talker, codec):
    first = sayings.opening(talker.manifest, codec=codec)
    bad = list(numbers(talker.manifest, codec).values())
    asks = [sayings.ask(raw, 1, seq=seq) for seq, raw in enumerate(bad, 1)]
    refused(talker, "MALFORMED", *asks, *(sayings.append(raw, 1) for raw in bad), first=first)


def test_tokens_that_are_none_are_refused(talker):
    first = sayings.opening(talker.manifest, resume="tokens")
    ids = [np.array([1, one], "<u4").tobytes() for one in (talker.manifest.shape.vocab, MOST)]
    refused(talker, "MALFORMED", *(sayings.ask(raw, 2) for raw in ids), first=first)


def test_numbers_that_overflow_hurt_their_own_session_alone(speaking, llama, head):
    """In one step with a good one: that one says what it says alone."""
    huge = np.full((2, llama.shape.hidden), 3e38, np.float32)
    alone = head.text(PROMPTS[0], 1)[0]
    with Speaker(speaking.address, llama) as good, Speaker(speaking.address, llama) as bad:
        with held(speaking):
            bad.ask(0, huge)
            good.ask(0, head.rows(PROMPTS[0]))
            arrived(speaking, 2)
        verdict, other = good.get().verdict, bad.get()
        assert verdict.token == alone and verdict.batch == 2 + len(PROMPTS[0])
        assert other.HasField("nack") or 0 <= other.verdict.confidence <= 1
        assert bad.verdict(0, head.rows(PROMPTS[0])).token == alone  # overwritten, it is well


def test_holes_and_positions_past_the_end_are_refused(talker):
    one = sayings.rows(talker.manifest, 1)
    refused(talker, "HOLE", *(sayings.append(one, 1, start=n) for n in (1, 5, MOST)))
    refused(talker, "HOLE", sayings.ask(b"", 0, start=1), sayings.ask(one, 1, start=MOST, seq=2))
    short = sayings.opening(talker.manifest, max_len=1)
    two = sayings.rows(talker.manifest, 2)
    refused(talker, "LENGTH", sayings.ask(two, 2), sayings.append(two, 2), first=short)


def test_drafts_that_cannot_be_are_refused(talker):
    vocab, two = talker.manifest.shape.vocab, sayings.rows(talker.manifest, 2)
    kinds = [[vocab], [MOST], [1, 2], [0] * (MOST_DRAFTS + 1), [0] * 60_000]
    asks = [sayings.ask(two, 2, seq=seq, drafts=one) for seq, one in enumerate(kinds, 1)]
    refused(talker, "MALFORMED", *asks)
    refused(talker, "MALFORMED", sayings.ask(b"", 0))  # nothing is held
    refused(talker, "MALFORMED", sayings.ask(two, 2, seq=0))


def test_millions_of_drafts_are_turned_away_before_they_are_read(talker):
    two = sayings.rows(talker.manifest, 2)
    bomb = sayings.ask(two, 2, drafts=[1] * 3_000_000)
    with unharmed(talker):
        for _ in range(20):
            with pytest.raises(grpc.RpcError) as raised:
                sayings.said(talker.channel, [sayings.opening(talker.manifest), bomb])
            assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("gen", [1, 7, MOST])
def test_a_rollback_that_never_was_is_refused(talker, gen):
    one = sayings.rows(talker.manifest, 1)
    refused(talker, "MALFORMED", sayings.ask(one, 1, gen=gen), sayings.append(one, 1, gen=gen))


@pytest.mark.parametrize(
    "fields",
    [
        {"resume": ""}, {"resume": "../../etc"}, {"codec": "q1"}, {"codec": "\x1b[2J"},
        {"max_len": 0}, {"max_len": 1025}, {"max_len": MOST}, {"temperature": -1.0},
        {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": 1.5},
        {"top_p": float("nan")}, {"top_p": -0.5}, {"seed": 2**64 - 1},
    ],
)  # fmt: skip
def test_a_session_that_cannot_be_is_not_opened(talker, fields):
    ended(talker, "INVALID_ARGUMENT", sayings.opening(talker.manifest, **fields))


@pytest.mark.parametrize("fields", [{"protocol": 2}, {"manifest": b""}, {"manifest": bytes(32)}])
def test_another_model_or_protocol_is_refused(talker, fields):
    ended(talker, "FAILED_PRECONDITION", sayings.opening(talker.manifest, **fields))


@pytest.mark.parametrize("sid", [b"", b"x", bytes(16), bytes(1000)])
def test_a_session_that_nobody_opened_is_not_found(talker, sid):
    resume = wire.Resume(protocol=1, manifest=talker.manifest.digest, sid=sid)
    raw = wire.ToDecoder(resume=resume).SerializeToString()
    with unharmed(talker, {"NOT_FOUND": TIMES}):
        for _ in range(TIMES):
            (only,) = sayings.said(talker.channel, [raw])
            assert only.nack.reason == wire.NOT_FOUND and discreet(only.nack.detail)


@pytest.mark.parametrize(
    "raw", [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", DICE.randbytes(300), b"", sayings.CLOSE]
)
def test_garbage_ends_the_call_first_and_later(talker, raw):
    ended(talker, "INVALID_ARGUMENT", raw)
    first = sayings.opening(talker.manifest)
    if raw != sayings.CLOSE:
        ended(talker, "INVALID_ARGUMENT", first, raw)
    ended(talker, "INVALID_ARGUMENT", first, first)


def test_another_devices_session_is_not_found_and_unharmed(llama_dir, llama, head, tmp_path):
    tokens = {name: f"{name}-0123456789abcdef" for name in ("one", "two")}
    path = tmp_path / "tokens"
    path.write_text("\n".join(f"{name}:{token}" for name, token in tokens.items()))
    bearer = {name: [("authorization", f"Bearer {token}")] for name, token in tokens.items()}
    with Server(llama_dir, port=0, threads=1, guard=Guard(tokens=path)) as server:
        rows = head.rows(PROMPTS[2])
        with Speaker(server.address, llama, metadata=bearer["one"]) as own:
            own.verdict(0, rows[:5])
            with Speaker(server.address, llama, metadata=bearer["two"], sid=own.sid) as thief:
                assert thief.first.nack.reason == wire.NOT_FOUND
                with pytest.raises(StopIteration):
                    thief.get()
            own.put(wire.ToDecoder(close=wire.Close()))
            with pytest.raises(StopIteration):
                own.get()
            with Speaker(server.address, llama, metadata=bearer["two"], sid=own.sid) as thief:
                assert thief.first.nack.reason == wire.NOT_FOUND  # not that it has expired
        with pytest.raises(grpc.RpcError) as raised:
            Speaker(server.address, llama)
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_sessions_without_end_are_bounded(talker):
    """Each is left behind; what the server holds is bounded by positions, not by their number."""
    first = sayings.opening(talker.manifest)
    one = sayings.append(sayings.rows(talker.manifest, 1), 1)
    with unharmed(talker):
        for _ in range(5 * TIMES):
            sayings.said(talker.channel, [first, one])
        assert talker.look().waiting <= 16 + 64  # 4096 positions, and four times so many parked


def test_sessions_without_end_that_stay_connected_lose_their_own(talker):
    first = sayings.opening(talker.manifest)
    over = threading.Event()

    def outgoing():
        yield first
        over.wait(60)

    channels = [
        grpc.insecure_channel(talker.address, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(2)
    ]
    with unharmed(talker):
        calls = []
        for number in range(120):
            channel = channels[number % 2]
            calls.append(channel.stream_stream(sayings.SESSION)(outgoing(), timeout=60))
            assert wire.FromDecoder.FromString(next(calls[-1])).HasField("opened")
        state = talker.look()
        assert state.waiting <= 16 + 64
        assert state.tally.get("EXPIRED_SESSION", 0) >= 40
        over.set()
        for channel in channels:
            channel.close()


def test_who_never_reads_is_told_to_go_and_costs_a_bound(talker):
    """A window of no bytes, and refusals without end."""
    bad = sayings.append(b"x", 1)
    with unharmed(talker):
        before = talker.look()
        line = http2.greeted(talker.address, http2.setting(http2.INITIAL_WINDOW, 0))
        http2.sent(line, http2.call(1, sayings.SESSION))
        http2.sent(line, http2.message(1, sayings.opening(talker.manifest)))
        for _ in range(900):
            http2.sent(line, http2.message(1, bad))
        while sum((moved := talker.look().moved(before)).values()) < 800:
            time.sleep(0.02)
        assert moved["MALFORMED"] <= 900
        http2.sent(line, http2.setting(http2.INITIAL_WINDOW, 1 << 20))
        said, over = b"", False
        while b"answers not read" not in said and not over:
            piece, over = http2.heard(line, 0.2)
            said += piece
        assert b"answers not read" in said
        http2.hung_up(line)


def test_ten_thousand_at_once_are_answered_or_the_call_is_ended_with_a_reason(talker):
    one = sayings.rows(talker.manifest, 1)
    flood = (sayings.ask(one, 1, seq=seq) for seq in range(1, 10_001))
    with unharmed(talker):
        try:
            found = sayings.said(talker.channel, [sayings.opening(talker.manifest), *flood])[1:]
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.details() in ("answers not read", "too much at once")
        else:
            assert len(found) == 10_000
            kinds = {wire.Reason.Name(one.nack.reason) for one in found}
            assert kinds <= {"NO_REASON", "NO_MEMORY"}


def test_truncates_cancels_and_beats_without_end_are_bounded(talker):
    first = sayings.opening(talker.manifest)
    for raw in (
        wire.ToDecoder(truncate=wire.Truncate(gen=0)),
        wire.ToDecoder(truncate=wire.Truncate(gen=MOST, n=MOST)),
        wire.ToDecoder(cancel=wire.Cancel(seq=1)),
        wire.ToDecoder(beat=wire.Beat(seq=1)),
        wire.ToDecoder(append=wire.Append()),
    ):
        with unharmed(talker):
            try:
                sayings.said(talker.channel, [first, *[raw.SerializeToString()] * 5 * MOST_JOBS])
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert discreet(error.details())


def test_devices_that_vanish_with_asks_on_their_way_are_forgotten(talker):
    asked = sayings.ask(sayings.rows(talker.manifest, 50), 50)
    with unharmed(talker):
        for _ in range(TIMES // 4):
            with grpc.insecure_channel(talker.address) as other:
                calls = iter([sayings.opening(talker.manifest), asked])
                other.stream_stream(sayings.SESSION)(calls, timeout=60).cancel()
        for _ in range(TIMES):
            line = http2.greeted(talker.address)
            http2.sent(line, http2.call(1, sayings.SESSION))
            http2.sent(line, http2.message(1, sayings.opening(talker.manifest)))
            http2.sent(line, http2.message(1, asked))
            http2.hung_up(line)


def test_a_call_that_says_nothing_or_only_opens_costs_only_itself(talker):
    with unharmed(talker):
        lines = [http2.greeted(talker.address) for _ in range(50)]
        for number, line in enumerate(lines):
            http2.sent(line, http2.call(1, sayings.SESSION))
            if number % 2:
                http2.sent(line, http2.message(1, sayings.opening(talker.manifest)))
        for _ in range(20):
            assert len(talker.known_good()) == 2
        http2.hung_up(*lines)
