"""What of a server's words can be true, and what its refusals cost."""

from __future__ import annotations

import pytest

from splitrt.core.rows import BEGIN
from splitrt.edge import proof
from splitrt.edge.log import Log
from splitrt.edge.question import Pending
from splitrt.errors import LinkDown, PacketError, Refused
from splitrt.wire import decode_pb2 as wire

SID, VOCAB, GEN = b"s" * len(BEGIN), 50, 3


@pytest.fixture
def log() -> Log:
    log = Log(4)
    log.append(b"abcdefgh")
    return log


def test_a_server_can_hold_nothing_of_a_new_session_and_a_beginning_of_an_old_one(log):
    for n in range(3):
        opened = wire.Opened(sid=SID, n=n, max_rows=1, log=log.at(n))
        assert proof.holds(opened, log, anew=False)
        assert proof.holds(opened, log, anew=True) == (n == 0)


@pytest.mark.parametrize("wrong", [{"sid": b"short"}, {"max_rows": 0}, {"n": 3}, {"log": b"other"}])
def test_a_server_cannot_hold_what_was_never_sent(log, wrong):
    true = {"sid": SID, "n": 2, "max_rows": 1, "log": log.at(2)}
    assert proof.holds(wire.Opened(**true), log, anew=False)
    assert not proof.holds(wire.Opened(**true | wrong), log, anew=False)


@pytest.mark.parametrize(
    ("accepted", "gen", "can_be"), [(2, GEN, True), (2, GEN + 1, True), (1, GEN + 1, True),
                                    (1, GEN, False), (3, GEN, False), (2, GEN - 1, False)]
)  # fmt: skip
def test_who_rejects_a_draft_has_rolled_back(accepted, gen, can_be):
    verdict = wire.Verdict(accepted=accepted, n=8 + accepted, token=VOCAB - 1, gen=gen)
    pending = Pending(10, (4, 5))
    assert proof.possible(verdict, pending, GEN, VOCAB) == can_be
    assert not proof.possible(verdict, pending, GEN, VOCAB - 1)


def test_a_reply_believes_no_time_longer_than_it_took_and_no_share_beyond_one():
    verdict = wire.Verdict(confidence=float("nan"), verify_us=9_000_000, queue_us=1_000)
    found = proof.reply(verdict, Pending(3, ()), took=0.5)
    assert (found.confidence, found.verify, found.queue, found.rows) == (0.0, 0.5, 0.001, 1)


def test_a_refusal_says_what_is_lost():
    def lost(reason: int, **more: int) -> proof.Loss:
        return proof.loss(wire.Nack(reason=reason, **more), "box:1")

    assert lost(wire.EXPIRED_SESSION).forgotten and lost(wire.EXPIRED_SESSION).fault is None
    assert lost(wire.LENGTH).forgotten and isinstance(lost(wire.LENGTH).fault, PacketError)
    assert isinstance(lost(wire.NO_MEMORY).error, Refused)
    assert lost(wire.NO_MEMORY, retry_ms=10**6).wait == proof.RETRY[1]
    assert isinstance(lost(wire.HOLE).error, LinkDown) and not lost(wire.HOLE).forgotten
