"""The loop in all its modes, on a model that is a hash: one bit that differs makes another text."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

import splitrt.edge.chat
import splitrt.edge.session
from splitrt.core.sample import Sampling
from splitrt.edge.chat import Chat, Difference
from splitrt.errors import ModelError, PacketError
from splitrt.relay import Relay
from tests.edge import toy
from tests.edge.test_session import soon

LONG = 30.0
PROMPT = [(7 * place) % 90 for place in range(1, 71)]  # more than one chunk


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy.directory(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return toy.directory(tmp_path_factory.mktemp("models") / "deep", exits=(1, 2))


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """Half of the tokens end an answer."""
    return toy.directory(tmp_path_factory.mktemp("models") / "ending", stops=tuple(range(48)))


@contextmanager
def chatting(folder, address, **options):
    """A Chat whose decoder is the toy's."""
    resume, codec = options.get("resume", "hidden"), options.get("codec", "f32")
    sampling = options.get("sampling", Sampling())
    made = []

    def decoder(folder, manifest, **_):
        exits = tuple(one.layer for one in manifest.exits)
        tokens = resume == "tokens"
        made.append(toy.ToyDecoder(codec=codec, tokens=tokens, seed=sampling.seed, exits=exits))
        return made[-1]

    patched = pytest.MonkeyPatch()
    patched.setattr(splitrt.edge.chat, "Decoder", decoder)
    try:
        with Chat(folder, address, **{"patience": LONG, "codec": codec} | options) as chat:
            chat.decoder = made[0]
            yield chat
    finally:
        patched.undo()


def said(chat, ids=PROMPT, most=64) -> list[int]:
    return [token.id for token in chat.answer(ids, most=most)]


def alone(folder, prompts=(PROMPT,), most=64, **options) -> list[int]:
    """The text of a server that is asked for every token."""
    with toy.serving(toy.ToyServer()) as (address, _):
        with chatting(folder, address, mode="ask", **options) as chat:
            return [token for prompt in prompts for token in said(chat, prompt, most)]


@pytest.mark.parametrize("resume", ["hidden", "tokens"])
@pytest.mark.parametrize("codec", ["f32", "f16", "q8", "q4"])
def test_the_text_does_not_depend_on_how_many_drafts_there_are(folder, codec, resume):
    prompts = (PROMPT, [3], [5] * 20)
    options = {"codec": codec, "resume": resume}
    wanted = alone(folder, prompts, most=24, **options)
    with toy.serving(server := toy.ToyServer()) as (address, _):
        for drafts in (*range(9), None):
            with chatting(folder, address, drafts=drafts, **options) as chat:
                found = [token for prompt in prompts for token in said(chat, prompt, 24)]
                assert found == wanted, f"{drafts} drafts"
                assert list(chat.ids) == [
                    *prompts[0], *wanted[:24], *prompts[1], *wanted[24:48], *prompts[2],
                    *wanted[48:],
                ]  # fmt: skip
        assert server.nacked == 0 and not server.sessions


def test_drafts_save_requests(folder):
    with toy.serving(toy.ToyServer()) as (address, _):
        with chatting(folder, address, drafts=4) as chat:
            places = [token.where for token in chat.answer(PROMPT, most=64)]
            tally = chat.tally
    assert tally.tokens == 64 == len(places) and tally.edge == 0
    assert (tally.draft, tally.cloud) == (places.count("draft"), places.count("cloud"))
    assert tally.requests < 32 and tally.accepted >= tally.draft > 32
    assert tally.up > 64 * 4 * toy.HIDDEN and 0 < tally.first <= tally.seconds


def test_a_token_costs_four_bytes_where_tokens_are_sent_and_the_device_may_rest(folder):
    with toy.serving(toy.ToyServer()) as (address, _):
        with chatting(folder, address, mode="ask", resume="tokens") as chat:
            said(chat)
            assert chat.decoder.steps == 0
            assert chat.cost == {"hidden": 64, "tokens": 4}


@pytest.mark.parametrize("mode", ["spec", "ask"])
def test_an_end_among_the_drafts_ends_the_answer_there(ending, mode):
    prompts = [[91 + place % 5, 92, 93] for place in range(12)]
    wanted = alone(ending, prompts)
    with toy.serving(toy.ToyServer()) as (address, _):
        for drafts in (1, 4, 8):
            with chatting(ending, address, mode=mode, drafts=drafts) as chat:
                answers = [said(chat, prompt) for prompt in prompts]
            assert [token for answer in answers for token in answer] == wanted
            assert all(answer[-1] < 48 <= min([48, *answer[:-1]]) for answer in answers)


def test_an_answer_of_one_token_drafts_nothing(folder):
    with toy.serving(toy.ToyServer()) as (address, _):
        with chatting(folder, address, drafts=8) as chat:
            assert len(said(chat, most=1)) == 1 and chat.tally.drafted == 0
            assert said(chat, [4], most=0) == []


def test_the_last_position_is_used_and_none_behind_it(folder):
    wanted = alone(folder, most=toy.LONGEST)
    assert len(wanted) == toy.LONGEST - len(PROMPT) + 1
    with toy.serving(toy.ToyServer()) as (address, _):
        for drafts in (3, 8):
            with chatting(folder, address, drafts=drafts) as chat:
                assert said(chat, most=1000) == wanted
                with pytest.raises(PacketError, match="room for 400"):
                    said(chat, [1])


def test_a_conversation_cut_back_goes_on_from_there(folder):
    wanted = alone(folder)
    with toy.serving(toy.ToyServer()) as (address, _):
        with chatting(folder, address, drafts=4) as chat:
            said(chat)
            chat.truncate(0)
            assert said(chat) == wanted


@pytest.mark.parametrize("ids, words", [([], "nothing to answer"), ([97], "0 to 96"), ([-1], "-1")])
def test_prompts_that_cannot_be_have_words_and_harm_nothing(folder, ids, words):
    wanted = alone(folder, most=8)
    with toy.serving(toy.ToyServer()) as (address, _):
        with chatting(folder, address) as chat:
            with pytest.raises(PacketError, match=words):
                said(chat, ids)
            assert said(chat, most=8) == wanted


@pytest.mark.parametrize(
    "options, words",
    [
        ({"mode": "loud"}, "no mode 'loud'"),
        ({"drafts": -1}, "-1 drafts"),
        ({"cloud": None}, "without a server"),
        ({"resume": "nothing"}, "resume nothing"),
    ],
)
def test_options_that_do_not_fit_have_words(folder, options, words):
    with pytest.raises(ModelError, match=words):
        Chat(folder, **{"cloud": "127.0.0.1:1"} | options)


def test_who_stops_reading_ends_the_text_there(folder):
    wanted = alone(folder)
    with toy.serving(toy.ToyServer()) as (address, _):
        with chatting(folder, address, drafts=8) as chat:
            for count in range(1, 12):
                chat.truncate(0)
                answer = chat.answer(PROMPT, most=64)
                read = [next(answer).id for _ in range(count)]
                answer.close()
                assert read == wanted[:count] and list(chat.ids) == [*PROMPT, *read]


def test_an_answer_can_be_cancelled_while_the_server_thinks(folder):
    thinking = threading.Event()

    def slow(message):
        if message.HasField("verdict") and message.verdict.n > 80:
            thinking.set()
            time.sleep(0.3)
        return [message]

    with toy.serving(toy.ToyServer(slow)) as (address, _):
        with chatting(folder, address, drafts=2) as chat, ThreadPoolExecutor(1) as pool:
            answer = pool.submit(said, chat)
            assert thinking.wait(20)
            chat.cancel()
            read = answer.result(20)
            assert list(chat.ids) == [*PROMPT, *read] and 0 < len(read) < 64
            again = said(chat, [5], 4)
    both = alone(folder, ([*PROMPT, *read, 5],), 4)
    assert len(again) == len(both) == 4


def test_two_answers_at_once_are_refused(folder):
    with toy.serving(toy.ToyServer()) as (address, _), chatting(folder, address) as chat:
        first = chat.answer(PROMPT)
        next(first)
        with pytest.raises(PacketError, match="being said"):
            next(chat.answer(PROMPT))


def test_another_seed_holds_from_the_next_answer_on(folder):
    with toy.serving(toy.ToyServer()) as (address, _):
        with chatting(folder, address, mode="ask") as chat:
            said(chat, most=4)
            chat.sampling = Sampling(seed=5)
            found = said(chat, [1], 8)
            chat.truncate(0)
            assert said(chat, most=8) == alone(folder, most=8, sampling=Sampling(seed=5))
    assert len(found) == 8


# modes that are not the server's text


@pytest.mark.parametrize("where", ["folder", "deep"])
def test_gated_asks_only_where_the_exits_are_unsure(where, request):
    folder = request.getfixturevalue(where)
    with toy.serving(server := toy.ToyServer()) as (address, _):
        with chatting(folder, address, mode="gated", theta=0.9) as chat:
            places = [token.where for token in chat.answer(PROMPT, most=64)]
            assert set(places) == {"edge", "cloud"} and chat.difference is None
            assert chat.tally.requests == places.count("cloud") < 48
            assert chat.decoder.n - chat.decoder.settled < 64
        with chatting(folder, address, mode="gated", theta=1.1) as chat:
            assert said(chat) == alone(folder)
    assert server.nacked == 0


def test_edge_never_asks_and_needs_no_address(deep):
    with chatting(deep, None, mode="edge") as chat:
        tokens = list(chat.answer(PROMPT, most=32))
        assert {token.where for token in tokens} == {"edge"} and chat.tally.up == 0
        assert said(chat, [4, 5], 8)


# links that fail


def test_a_server_lost_after_any_token_changes_nothing(folder):
    """64 times: the server is gone after the token, and another one is at its address."""
    wanted = alone(folder)
    for place in range(64):
        with ExitStack() as stack:
            address, running = stack.enter_context(toy.serving(toy.ToyServer()))
            chat = stack.enter_context(chatting(folder, address, drafts=4))
            answer = chat.answer(PROMPT, most=64)
            found = [next(answer).id for _ in range(place)]
            running.stop(0).wait()
            port = int(address.rpartition(":")[2])
            stack.enter_context(toy.serving(toy.ToyServer(), port))
            found += [token.id for token in answer]
        assert found == wanted, f"lost after {place} tokens"


def test_a_line_cut_after_any_token_is_resumed_without_sending_twice(folder):
    wanted = alone(folder)
    with toy.serving(server := toy.ToyServer()) as (address, _), Relay(address) as relay:
        for place in range(64):
            with chatting(folder, relay.address, drafts=3) as chat:
                found = []
                for token in chat.answer(PROMPT, most=64):
                    found.append(token.id)
                    if len(found) == place:
                        relay.cut()
            assert found == wanted
        assert server.opened == 64


def test_a_line_cut_in_the_middle_of_messages_changes_nothing(folder):
    wanted = alone(folder)
    with toy.serving(toy.ToyServer()) as (address, _), Relay(address) as relay:
        with chatting(folder, relay.address, drafts=3) as chat:
            found = []
            for token in chat.answer(PROMPT, most=64):
                found.append(token.id)
                if len(found) % 5 == 0:
                    relay.truncate = 100 + 7 * len(found)
                    opened = chat._session.opened
                    threading.Timer(0.05, setattr, (relay, "truncate", None)).start()
        assert found == wanted and opened > 1


def test_without_a_server_the_answer_goes_on_here(folder, caplog):
    with toy.serving(toy.ToyServer()) as (address, running):
        with chatting(folder, address, drafts=3, patience=0.2) as chat:
            answer = chat.answer(PROMPT, most=40)
            tokens = [next(answer) for _ in range(10)]
            running.stop(0).wait()
            with caplog.at_level(logging.WARNING):
                tokens += list(answer)
            assert [token.position for token in tokens] == list(range(70, 110))
            assert tokens[-1].where == "edge" and chat.away
            assert "lost" in caplog.text
            started = time.monotonic()
            assert len(said(chat, [1, 2], 20)) == 20  # nobody is waited for again
            assert time.monotonic() - started < 10


def test_the_text_said_alone_is_verified_when_the_server_is_back(folder):
    """What stands is what was said; the first difference is named, and is the server's."""
    with toy.serving(toy.ToyServer()) as (address, running):
        port = int(address.rpartition(":")[2])
        with chatting(folder, address, drafts=3, patience=0.2) as chat:
            said(chat, most=10)
            running.stop(0).wait()
            offline = said(chat, [1, 2], 30)
            assert chat.away and chat.difference is None
            with toy.serving(server := toy.ToyServer(), port):
                assert soon(lambda: chat._session.up)
                said(chat, [3], 10)
                assert not chat.away
                ids = chat.ids
                found = chat.difference
    begin = 82
    assert list(ids[begin : begin + 30]) == offline
    instead = alone(folder, (list(ids[: found.position]),), most=1)
    assert isinstance(found, Difference) and begin <= found.position < begin + 30
    assert ids[found.position] == found.said != found.instead
    assert len(instead) == 1 and server.nacked == 0
    follow_up = ids[begin + 31 :]
    with toy.serving(toy.ToyServer()) as (address, _):
        with chatting(folder, address, mode="ask") as chat:
            assert len(said(chat, [4], 1)) == 1
    assert len(follow_up) == 10


def test_a_text_said_alone_that_the_server_agrees_with_has_no_difference(folder, monkeypatch):
    right = toy.ToyDecoder.__init__
    monkeypatch.setattr(
        toy.ToyDecoder, "__init__", lambda self, **options: right(self, wrong=1 << 40, **options)
    )
    wanted = alone(folder, (PROMPT, [1, 2], [3]), most=20)
    with toy.serving(toy.ToyServer()) as (address, running):
        port = int(address.rpartition(":")[2])
        with chatting(folder, address, drafts=3, patience=0.2) as chat:
            found = said(chat, most=20)
            running.stop(0).wait()
            found += said(chat, [1, 2], 20)
            assert chat.away
            with toy.serving(server := toy.ToyServer(), port):
                assert soon(lambda: chat._session.up)
                found += said(chat, [3], 20)
                assert not chat.away and chat.difference is None
    assert found == wanted and server.asked >= 20 / 9


def test_an_answer_that_began_alone_goes_on_with_the_server_that_came(folder):
    with toy.serving(toy.ToyServer()) as (address, _):
        port = int(address.rpartition(":")[2])
    with chatting(folder, address, drafts=3, patience=0.1) as chat:
        answer = chat.answer(PROMPT, most=60)
        tokens = [next(answer) for _ in range(8)]
        assert {token.where for token in tokens} == {"edge"}
        with toy.serving(toy.ToyServer(), port):
            assert soon(lambda: chat._session.up)
            tokens += list(answer)
        assert {token.where for token in tokens[10:]} == {"draft", "cloud"}
        assert [token.position for token in tokens] == list(range(70, 130))


def test_several_clients_at_once_say_what_each_says_alone(folder):
    prompts = [[place + 1, 2, 3] * 30 for place in range(4)]
    wanted = [alone(folder, (prompt,)) for prompt in prompts]
    with toy.serving(toy.ToyServer()) as (address, _), ThreadPoolExecutor(4) as pool:
        with chatting(folder, address, drafts=3) as a, chatting(folder, address, drafts=5) as b:
            with chatting(folder, address, drafts=0) as c, chatting(folder, address) as d:
                found = list(pool.map(said, (a, b, c, d), prompts))
    assert found == wanted


LIES = {
    "accepts too many": lambda verdict: setattr(verdict, "accepted", verdict.accepted + 1),
    "another place": lambda verdict: setattr(verdict, "n", verdict.n + 1),
    "no such token": lambda verdict: setattr(verdict, "token", verdict.token + toy.VOCAB),
    "another question": lambda verdict: setattr(verdict, "seq", verdict.seq - 1),
    "an old count": lambda verdict: setattr(verdict, "gen", max(0, verdict.gen - 1)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_now_and_then_never_makes_another_text(folder, lie, monkeypatch):
    """A wrong answer is dropped with its stream; one to no question is as good as none."""
    wanted, count = alone(folder), itertools.count()
    monkeypatch.setattr(splitrt.edge.session, "ANSWER", 0.5)

    def spoiled(message):
        if message.HasField("verdict") and next(count) % 5 == 3:
            LIES[lie](message.verdict)
        return [message]

    with toy.serving(toy.ToyServer(spoiled)) as (address, _):
        with chatting(folder, address, drafts=3) as chat:
            assert said(chat) == wanted


@pytest.mark.parametrize("spoil", ["twice", "late"])
def test_answers_that_come_twice_or_late_change_nothing(folder, spoil):
    wanted, held = alone(folder), []

    def spoiled(message):
        if not message.HasField("verdict"):
            return [message]
        if spoil == "twice":
            return [message, message]
        held.append(message)
        return [*held[-3:-1], message]

    with toy.serving(toy.ToyServer(spoiled)) as (address, _):
        with chatting(folder, address, drafts=3) as chat:
            assert said(chat) == wanted
