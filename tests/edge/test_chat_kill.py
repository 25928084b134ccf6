"""A server that is killed while it answers: the text is the same, wherever that happens."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from splitrt.cloud import Room, Server
from splitrt.core.sample import Sampling
from splitrt.edge.chat import Chat
from splitrt.relay import Relay
from splitrt.train import divide
from tests.edge.forked import Killable
from tests.edge.test_exactness import parted
from tests.edge.test_session import soon
from tests.language import checkpoint

PROMPT = [(11 * place) % 290 + 2 for place in range(70)]
TOKENS = 64
HOW = {"codec": "q8", "resume": "hidden", "sampling": Sampling(temperature=0.7, seed=1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("language")
    source = checkpoint(made / "checkpoint", max_position_embeddings=192)
    divide(source, made / "model", cut=2, weights="fp32", resume=("hidden", "tokens"))
    return made / "model"


@pytest.fixture(scope="module")
def wanted(folder):
    with Server(folder, port=0, threads=1) as server:
        with Chat(folder, server.address, mode="ask", **HOW) as chat:
            return [token.id for token in chat.answer(PROMPT, most=TOKENS)]


def chatting(folder, addresses, **options) -> Chat:
    return Chat(folder, addresses, **{"drafts": 2, "patience": 60.0} | HOW | options)


def test_killed_after_any_token_and_started_again_the_text_is_the_same(folder, wanted):
    """All 64 positions, each with a process that is killed and another one at its address."""
    ties = 0
    with ExitStack() as stack:
        running = stack.enter_context(Killable(folder))
        chat = stack.enter_context(chatting(folder, running.address))
        for place in range(TOKENS):
            answer = chat.answer(PROMPT, most=TOKENS)
            found = [next(answer).id for _ in range(place)]
            running.kill()
            running = stack.enter_context(Killable(folder, running.port))
            found += [token.id for token in answer]
            ties += parted(folder, wanted, found, **HOW)
            assert not chat.away and chat.tally.edge == 0
            chat.truncate(0)
    assert ties < 3


def test_killed_after_any_token_another_server_goes_on_with_the_same_text(folder, wanted):
    """The other server holds nothing of the conversation; the killed one is back the next time."""
    ties = 0
    with ExitStack() as stack:
        running, other = (stack.enter_context(Killable(folder)) for _ in range(2))
        both = f"{running.address},{other.address}"
        chat = stack.enter_context(chatting(folder, both))
        for place in range(TOKENS):
            answer = chat.answer(PROMPT, most=TOKENS)
            found = [next(answer).id for _ in range(place)]
            running.kill()
            found += [token.id for token in answer]
            ties += parted(folder, wanted, found, **HOW)
            assert not chat.away and chat.tally.edge == 0
            running, other = other, stack.enter_context(Killable(folder, running.port))
            chat.truncate(0)
    assert ties < 3


@pytest.mark.parametrize("resume", ["hidden", "tokens"])
def test_killed_at_any_moment_of_a_question_the_text_is_the_same(folder, resume):
    """Not between tokens but while rows travel and the server computes."""
    how = HOW | {"resume": resume}
    with Killable(folder) as first:
        with Chat(folder, first.address, mode="ask", **how) as chat:
            wanted = [token.id for token in chat.answer(PROMPT, most=TOKENS)]
        with chatting(folder, first.address, resume=resume) as chat, ThreadPoolExecutor(1) as pool:
            answer = pool.submit(lambda: [one.id for one in chat.answer(PROMPT, most=TOKENS)])
            running = first
            for place in range(6):
                time.sleep(0.013 * (place + 1))
                running.kill()
                running = Killable(folder, first.port)
            found = answer.result(60)
            running.kill()
            assert chat._session.opened >= 2
    assert parted(folder, wanted, found, **how) < 2


def test_a_device_that_vanishes_costs_its_session_until_it_has_expired(folder):
    room = Room(ttl=1.0)
    with Server(folder, port=0, threads=1, room=room) as server, Relay(server.address) as relay:
        with chatting(folder, relay.address, patience=0.1) as chat:
            assert list(chat.answer(PROMPT, most=4)) and server.scheduler.sessions == 1
            relay.refuse = True
            relay.cut()
            assert soon(lambda: server.scheduler.sessions == 0)
            assert {token.where for token in chat.answer([5], most=4)} == {"edge"}
            relay.refuse = False
            assert soon(lambda: chat._session.up)  # the server has it a moment before
            assert server.scheduler.sessions == 1
            list(chat.answer([6], most=4))
            assert not chat.away
