"""Sessions over gRPC: what is held, rolled back, taken over, parked, and what is said of it."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitrt.cloud import Room, Server, schedule
from splitrt.cloud.session import MOST_DRAFTS, MOST_ROWS
from splitrt.core.rows import BEGIN, chained
from splitrt.core.sample import Sampling, pick
from splitrt.errors import ModelError
from splitrt.wire import decode_pb2 as wire
from tests.cloud import tongue
from tests.cloud.speaker import Speaker, spoken
from tests.edge.test_loopback import soon

PROMPTS = [[5, 9, 100, 3], [7], [250, 250, 1, 2, 3, 4, 5, 6, 7, 8, 9], [42, 17, 230]]


@contextmanager
def held(server: Server):
    """Meanwhile the scheduler takes in nothing; what came is taken in at once afterwards."""
    held, go = threading.Event(), threading.Event()
    server.scheduler._inbox.put(lambda: held.set() or go.wait(60))
    assert held.wait(60)
    yield
    go.set()


def arrived(server: Server, count: int) -> None:
    """Wait until so many commands wait for a scheduler that is held."""
    assert soon(lambda: server.scheduler._inbox.qsize() >= count)


def log_of(speaker: Speaker, rows: np.ndarray) -> bytes:
    return chained(BEGIN, speaker.packed(rows), speaker.codec.size)[-1]


def test_several_at_once_say_what_each_says_alone(speaking, llama, head):
    alone = [head.text(ids, 12) for ids in PROMPTS]
    told = [None] * len(PROMPTS)

    def speak(place: int) -> None:
        with Speaker(speaking.address, llama) as speaker:
            told[place] = spoken(speaker, head, PROMPTS[place], 12)

    threads = [threading.Thread(target=speak, args=(place,)) for place in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert told == alone


def test_asks_that_wait_together_run_together(speaking, llama, head):
    speakers = [Speaker(speaking.address, llama) for _ in PROMPTS]
    steps = speaking.scheduler.steps
    with held(speaking):
        for speaker, ids in zip(speakers, PROMPTS, strict=True):
            speaker.ask(0, head.rows(ids))
        arrived(speaking, len(PROMPTS))
    verdicts = [speaker.get().verdict for speaker in speakers]
    assert {one.batch for one in verdicts} == {sum(map(len, PROMPTS))}
    assert speaking.scheduler.steps == steps + 1
    assert [one.token for one in verdicts] == [head.text(ids, 1)[0] for ids in PROMPTS]
    for speaker in speakers:
        speaker.close()


def test_tokens_instead_of_rows_are_the_servers_own_model(speaking, llama, head):
    ids = PROMPTS[0]
    with Speaker(speaking.address, llama, resume="tokens") as speaker:
        told, start = list(ids), 0
        for _ in range(8):
            verdict = speaker.verdict(start, np.array(told[start:]))
            start = len(told)
            told.append(verdict.token)
    assert told[len(ids) :] == head.text(ids, 8)


@pytest.mark.parametrize("codec", ["f16", "q8", "q4"])
def test_rows_of_each_codec_are_what_the_codec_says(speaking, llama, codec):
    from splitrt.cloud.layers import Layers, Part

    rows = np.random.default_rng(0).standard_normal((9, llama.shape.hidden)).astype(np.float32)
    layers = speaking.scheduler.layers
    assert isinstance(layers, Layers)
    with Speaker(speaking.address, llama, codec=codec) as speaker:
        cache = layers.cache("hidden")
        cache.grow(9)
        layers.step([Part(cache, 0, speaker.codec.decode(speaker.codec.encode(rows), 9))])
        (wanted,) = layers.logits([(cache, 8, 9)])
        verdict = speaker.verdict(0, rows)
    share = 1 / np.exp(wanted - wanted.max()).sum()
    assert verdict.token == wanted.argmax()
    assert verdict.confidence == pytest.approx(share, rel=1e-3)


def test_drafts_are_accepted_up_to_the_first_that_is_wrong(speaking, llama, head):
    ids = PROMPTS[0]
    right = head.text(ids, 8)
    for wrong in range(6):
        drafts = [*right[:wrong], (right[wrong] + 1) % tongue.VOCAB, *right[wrong + 1 : 6]]
        with Speaker(speaking.address, llama) as speaker:
            verdict = speaker.verdict(0, head.rows([*ids, *drafts]), drafts=drafts)
            assert (verdict.accepted, verdict.token) == (wrong, right[wrong])
            assert (verdict.n, verdict.gen) == (len(ids) + wrong, 1)
            rows = head.rows([*ids, *right])
            following = speaker.verdict(verdict.n, rows[verdict.n : len(ids) + 7])
            assert following.token == right[7]
    with Speaker(speaking.address, llama) as speaker:
        verdict = speaker.verdict(0, head.rows([*ids, *right[:7]]), drafts=right[:7])
        assert (verdict.accepted, verdict.token, verdict.gen) == (7, right[7], 0)


def test_a_sampled_text_depends_on_the_seed_and_not_on_drafts(speaking, llama, head):
    how = {"temperature": 0.5, "top_p": 0.75, "seed": 11}
    told = list(PROMPTS[0])
    for _ in range(6):
        logits = head.both(told)[1][-1]
        told.append(pick(logits, Sampling(**how), len(told)))
    text = told[len(PROMPTS[0]) :]
    with Speaker(speaking.address, llama, **how) as speaker:
        assert spoken(speaker, head, PROMPTS[0], 6) == text
    with Speaker(speaking.address, llama, **how) as speaker:
        verdict = speaker.verdict(0, head.rows(told[:-1]), drafts=text[:-1])
        assert (verdict.accepted, verdict.token) == (5, text[-1])


def test_rows_may_come_before_the_question(speaking, llama, head):
    """By Appends in any pieces, overwritten too; the Ask brings the rest, or nothing."""
    ids = [number * 7 % tongue.VOCAB for number in range(40)]
    rows, wanted = head.rows(ids), head.text(ids, 1)[0]
    drafts = ids[-3:]
    with Speaker(speaking.address, llama) as speaker:
        speaker.append(0, rows[:30])
        speaker.append(20, rows[5:25])
        speaker.append(20, rows[20:])
        assert speaker.verdict(40).token == wanted
        accepted = speaker.verdict(40, None, drafts=drafts).accepted
        right = head.both(ids)[1].argmax(-1)[36:39].tolist()
        assert accepted == next((i for i in range(3) if right[i] != drafts[i]), 3)


def test_a_hole_is_refused_and_says_what_is_held(speaking, llama, head):
    rows = head.rows(PROMPTS[2])
    with Speaker(speaking.address, llama) as speaker:
        speaker.append(0, rows[:3])
        speaker.append(5, rows[5:])
        nack = speaker.nack()
        assert (nack.reason, nack.seq, nack.n) == (wire.HOLE, 0, 3)
        seq = speaker.ask(4, rows[4:])
        nack = speaker.nack()
        assert (nack.reason, nack.seq, nack.n) == (wire.HOLE, seq, 3)
        assert speaker.verdict(3, rows[3:]).token == head.text(PROMPTS[2], 1)[0]


def test_what_was_sent_before_a_rollback_is_passed_over_and_an_ask_is_told(speaking, llama, head):
    ids = PROMPTS[2]
    rows = head.rows(ids)
    with Speaker(speaking.address, llama) as speaker:
        speaker.append(0, rows)
        speaker.put(wire.ToDecoder(truncate=wire.Truncate(gen=3, n=6)))
        speaker.append(6, rows[:2])  # still of gen 0: nothing is said
        speaker.put(wire.ToDecoder(truncate=wire.Truncate(gen=2, n=1)))
        seq = speaker.ask(6, rows[6:])
        nack = speaker.nack()
        assert (nack.seq, nack.reason, nack.n, nack.gen) == (seq, wire.CANCELLED_ASK, 6, 3)
        speaker.gen = 3
        assert speaker.verdict(6, rows[6:]).token == head.text(ids, 1)[0]
        speaker.gen = 4
        speaker.ask(6, rows[6:])
        assert speaker.nack().reason == wire.MALFORMED
        speaker.put(wire.ToDecoder(truncate=wire.Truncate(gen=5, n=4000)))  # all stays
        speaker.gen = 5
        assert speaker.verdict(len(ids)).token == head.text(ids, 1)[0]


def test_a_session_outlives_its_call_and_its_log_is_the_devices(speaking, llama, head):
    ids = PROMPTS[2]
    right = head.text(ids, 4)
    drafts = [right[0], (right[1] + 1) % tongue.VOCAB]
    sent = head.rows([*ids, *drafts])
    with Speaker(speaking.address, llama) as speaker:
        assert (speaker.opened.n, speaker.opened.log) == (0, BEGIN)
        assert (speaker.opened.max_rows, speaker.opened.max_drafts) == (MOST_ROWS, MOST_DRAFTS)
        speaker.verdict(0, sent, drafts=drafts)
        sid = speaker.sid
    whole = head.rows([*ids, *right])
    with Speaker(speaking.address, llama, sid=sid) as speaker:
        n = len(ids) + 1
        assert (speaker.opened.n, speaker.opened.gen, speaker.opened.sid) == (n, 1, sid)
        assert speaker.opened.log == log_of(speaker, sent[:n])
        assert speaker.verdict(n, whole[n : n + 1]).token == right[2]
    for unknown in (bytes(16), b"x", sid[:-1]):
        with Speaker(speaking.address, llama, sid=unknown) as speaker:
            assert speaker.first.nack.reason == wire.NOT_FOUND
            with pytest.raises(StopIteration):
                speaker.get()


def test_a_call_that_resumes_takes_the_session_over(speaking, llama, head):
    rows = head.rows(PROMPTS[2])
    with Speaker(speaking.address, llama) as old:
        old.verdict(0, rows[:5])
        with held(speaking):
            old.ask(5, rows[5:])
            arrived(speaking, 1)
            # the second call's Resume comes behind the Ask, and before the step that would run it
            coming = []
            opening = threading.Thread(
                target=lambda: coming.append(Speaker(speaking.address, llama, sid=old.sid))
            )
            opening.start()
            arrived(speaking, 2)
        opening.join(60)
        (new,) = coming
        with pytest.raises(grpc.RpcError) as raised:
            old.get()
        assert raised.value.code() == grpc.StatusCode.ABORTED
        assert new.opened.n == 5
        assert new.verdict(5, rows[5:]).token == head.text(PROMPTS[2], 1)[0]
        new.close()


def test_an_ask_that_is_cancelled_is_told_so_and_holds_up_nothing(speaking, llama, head):
    ids = PROMPTS[2]
    with Speaker(speaking.address, llama) as speaker:
        with held(speaking):
            seq = speaker.ask(0, head.rows(ids))
            speaker.put(wire.ToDecoder(cancel=wire.Cancel(seq=seq)))
            speaker.put(wire.ToDecoder(cancel=wire.Cancel(seq=77)))
            arrived(speaking, 3)
        nack = speaker.nack()
        assert (nack.reason, nack.seq, nack.n) == (wire.CANCELLED_ASK, seq, 0)
        assert speaker.verdict(0, head.rows(ids)).token == head.text(ids, 1)[0]


def test_a_long_prompt_does_not_hold_up_the_others(llama_dir, llama, head):
    """The prompt takes thirteen steps; the other one's token goes out with the first of them."""
    ids = [number * 3 % tongue.VOCAB for number in range(200)]
    with Server(llama_dir, port=0, threads=1, room=Room(chunk=16)) as server:
        with Speaker(server.address, llama) as long, Speaker(server.address, llama) as short:
            with held(server):
                long.ask(0, head.rows(ids))
                short.ask(0, head.rows(PROMPTS[0]))
                arrived(server, 2)
            first = short.get().verdict
            assert first.batch == 16 + len(PROMPTS[0])
            verdict = long.get().verdict
            assert verdict.token == head.text(ids, 1)[0] and verdict.batch <= 16
            assert server.scheduler.steps == 13  # 12 of 16 rows, and 8


def test_one_by_one_is_the_same_text_in_more_steps(llama_dir, llama, head):
    with Server(llama_dir, port=0, threads=1, room=Room(together=1)) as server:
        speakers = [Speaker(server.address, llama) for _ in PROMPTS]
        with held(server):
            for speaker, ids in zip(speakers, PROMPTS, strict=True):
                speaker.ask(0, head.rows(ids))
            arrived(server, len(PROMPTS))
        tokens = [speaker.get().verdict.token for speaker in speakers]
        assert tokens == [head.text(ids, 1)[0] for ids in PROMPTS]
        assert server.scheduler.steps == len(PROMPTS)
        for speaker in speakers:
            speaker.close()


def test_idle_sessions_are_parked_and_come_back_as_they_were(llama_dir, llama, head):
    ids = PROMPTS[2]
    right = head.text(ids, 6)
    rows = head.rows([*ids, *right])
    with Server(llama_dir, port=0, threads=1, room=Room(kv_tokens=600)) as server:
        speakers = [Speaker(server.address, llama) for _ in range(4)]
        for step in range(5):
            for speaker in speakers:  # each parks the one that is unused for longest
                n = len(ids) + step
                verdict = speaker.verdict(
                    0 if step == 0 else n - 1, rows[0 if step == 0 else n - 1 : n]
                )
                assert verdict.token == right[step]
                sessions = server.scheduler._sessions.values()
                assert sum(one.cache.room for one in sessions if not one.parked) <= 600
        assert sum(one.parked for one in server.scheduler._sessions.values()) == 2
        for speaker in speakers:
            speaker.close()


def test_where_the_host_is_full_too_the_longest_unused_is_given_up(
    llama_dir, llama, head, monkeypatch
):
    monkeypatch.setattr(schedule, "PARKED", 1)
    with Server(llama_dir, port=0, threads=1, room=Room(kv_tokens=256)) as server:
        speakers = [Speaker(server.address, llama, max_len=256) for _ in range(3)]
        assert server.scheduler.sessions == 2
        assert speakers[0].nack().reason == wire.EXPIRED_SESSION
        with pytest.raises(StopIteration):
            speakers[0].get()
        with Speaker(server.address, llama, sid=speakers[0].sid) as late:
            assert late.first.nack.reason == wire.EXPIRED_SESSION
        assert speakers[1].verdict(0, head.rows(PROMPTS[0])).token == head.text(PROMPTS[0], 1)[0]
        for speaker in speakers:
            speaker.close()


def test_without_room_a_device_is_told_when_to_try_again(llama_dir, llama, head):
    """Both are busy, so neither can be parked; afterwards there is room again."""
    ids = [number * 5 % tongue.VOCAB for number in range(250)]
    rows = head.rows([*ids, 1, 2, 3, 4, 5, 6, 7, 8])
    with Server(llama_dir, port=0, threads=1, room=Room(kv_tokens=512)) as server:
        with Speaker(server.address, llama, max_len=512) as one:
            with Speaker(server.address, llama, max_len=512) as two:
                one.verdict(0, rows[:250])
                with held(server):
                    one.ask(250, rows[250:])
                    two.ask(0, rows[:3])
                    arrived(server, 2)
                nack = one.nack()
                assert (nack.reason, nack.n) == (wire.NO_MEMORY, 250) and nack.retry_ms
                assert two.get().HasField("verdict")
                assert one.verdict(250, rows[250:]).n == 258  # now the other one is parked
                with held(server):
                    one.ask(258)
                    two.ask(3)
                    arrived(server, 2)
                answers = {one.get().WhichOneof("kind"), two.get().WhichOneof("kind")}
                assert answers == {"verdict", "nack"}


def test_a_session_that_nobody_calls_for_expires(llama_dir, llama, head, monkeypatch):
    monkeypatch.setattr(schedule, "WATCH", 0.05)
    with Server(llama_dir, port=0, threads=1, room=Room(ttl=0.3)) as server:
        with Speaker(server.address, llama) as stays:
            with Speaker(server.address, llama) as speaker:
                sid = speaker.sid
                assert speaker.opened.ttl_s == 0
                speaker.verdict(0, head.rows(PROMPTS[0]))
            assert soon(lambda: server.scheduler.sessions == 1)
            with Speaker(server.address, llama, sid=sid) as late:
                assert late.first.nack.reason == wire.EXPIRED_SESSION
            assert stays.verdict(0, head.rows(PROMPTS[0])).n == len(PROMPTS[0])


def test_a_session_that_is_closed_is_gone_at_once(speaking, llama, head):
    before = speaking.scheduler.sessions
    with Speaker(speaking.address, llama) as speaker:
        speaker.verdict(0, head.rows(PROMPTS[0]))
        speaker.put(wire.ToDecoder(close=wire.Close()))
        with pytest.raises(StopIteration):
            speaker.get()
        assert soon(lambda: speaking.scheduler.sessions == before)
        with Speaker(speaking.address, llama, sid=speaker.sid) as late:
            assert late.first.nack.reason == wire.EXPIRED_SESSION


def test_the_edge_of_a_session_is_said(speaking, llama, head):
    rows = head.rows([3] * 12)
    with Speaker(speaking.address, llama, max_len=10) as speaker:
        assert speaker.verdict(0, rows[:9]).n == 9
        seq = speaker.ask(9, rows[9:11])
        nack = speaker.nack()
        assert (nack.reason, nack.seq, nack.n) == (wire.LENGTH, seq, 9)
        assert speaker.verdict(9, rows[9:10]).n == 10
        speaker.append(10, rows[10:11])
        assert speaker.nack().reason == wire.LENGTH


def test_a_fault_of_a_step_is_told_to_all_in_it_and_the_next_one_goes_on(
    llama_dir, llama, head, monkeypatch
):
    with Server(llama_dir, port=0, threads=1) as server:
        layers = server.scheduler.layers
        with Speaker(server.address, llama) as one, Speaker(server.address, llama) as two:
            one.verdict(0, head.rows(PROMPTS[0]))
            monkeypatch.setattr(layers, "step", lambda parts: [][0])
            with held(server):
                one.ask(len(PROMPTS[0]), head.rows([3]))
                two.ask(0, head.rows(PROMPTS[1]))
                arrived(server, 2)
            for speaker, n in ((one, len(PROMPTS[0])), (two, 0)):
                nack = speaker.nack()
                assert (nack.reason, nack.n) == (wire.SERVER_FAILED, n)
                assert nack.detail == "the step failed"
            monkeypatch.undo()
            assert two.verdict(0, head.rows(PROMPTS[1])).token == head.text(PROMPTS[1], 1)[0]
            monkeypatch.setattr(layers, "logits", lambda wanted: [][0])
            one.ask(len(PROMPTS[0]))
            assert one.nack().reason == wire.SERVER_FAILED
            monkeypatch.undo()
            assert one.verdict(len(PROMPTS[0])).token == head.text(PROMPTS[0], 1)[0]


def test_logits_that_are_no_numbers_choose_no_token(llama_dir, llama, head, monkeypatch):
    with Server(llama_dir, port=0, threads=1) as server, Speaker(server.address, llama) as speaker:
        nothing = np.full(llama.shape.vocab, np.nan, np.float32)
        monkeypatch.setattr(server.scheduler.layers, "logits", lambda wanted: iter([nothing]))
        seq = speaker.ask(0, head.rows(PROMPTS[0]))
        nack = speaker.nack()
        assert (nack.seq, nack.reason, nack.n) == (seq, wire.MALFORMED, len(PROMPTS[0]))
        monkeypatch.undo()
        assert speaker.verdict(len(PROMPTS[0])).token == head.text(PROMPTS[0], 1)[0]


def test_beats_come_back_while_the_scheduler_works(speaking, llama):
    with Speaker(speaking.address, llama) as speaker:
        with held(speaking):
            speaker.put(wire.ToDecoder(beat=wire.Beat(seq=7)))
            assert speaker.get().beat.seq == 7


def test_a_server_that_ends_answers_what_is_in_flight_and_keeps_nothing(llama_dir, llama, head):
    server = Server(llama_dir, port=0, threads=1, grace=30)
    with Speaker(server.address, llama) as speaker, Speaker(server.address, llama) as idle:
        said = []
        with grpc.insecure_channel(server.address) as channel:
            watching = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service=llama.name)
            )
            said.append(next(watching).status)
            with held(server):
                speaker.ask(0, head.rows(PROMPTS[0]))
                arrived(server, 1)
                closing = threading.Thread(target=server.close)
                closing.start()
                said.append(next(watching).status)
                with pytest.raises(StopIteration):
                    idle.get()
                with pytest.raises(grpc.RpcError) as raised:
                    Speaker(server.address, llama)
                assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert speaker.get().verdict.token == head.text(PROMPTS[0], 1)[0]
        with pytest.raises(StopIteration):
            speaker.get()
    closing.join(60)
    assert said == [1, 2] and server.scheduler.sessions == 0
    assert not [one for one in threading.enumerate() if one is server.scheduler._thread]
    with Server(llama_dir, port=0, threads=1) as another:
        with Speaker(another.address, llama, sid=speaker.sid) as late:
            assert late.first.nack.reason == wire.NOT_FOUND


def test_a_language_model_is_not_reloaded_and_the_server_says_so(tmp_path):
    folder = tongue.made(tmp_path)
    with Server(folder, port=0, threads=1) as server:
        assert server.reload().digest == server.manifest.digest
        text = (folder / "model.toml").read_text()
        (folder / "model.toml").write_text(text + "\n# changed\n")
        with pytest.raises(ModelError, match="not reloaded\nhelp:"):
            server.reload()
    with pytest.raises(ModelError, match="no further tails"):
        Server(folder, port=0, tails=[folder])
