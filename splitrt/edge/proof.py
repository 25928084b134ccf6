"""Whether what a server says can be true, and what follows from it. Pure: nothing is kept here."""

from __future__ import annotations

from dataclasses import dataclass

from splitrt.core import packet
from splitrt.core.rows import BEGIN
from splitrt.edge.log import Log
from splitrt.edge.question import Pending, Reply
from splitrt.errors import LinkDown, LinkError, PacketError, Refused
from splitrt.wire import decode_pb2 as wire

RETRY = (0.01, 5.0)  # seconds that a server without room may ask for
FORGOTTEN = (wire.NOT_FOUND, wire.EXPIRED_SESSION, wire.SERVER_FAILED)
WRONG = (wire.LENGTH, wire.MALFORMED)


def holds(opened: wire.Opened, log: Log, *, anew: bool) -> bool:
    """Whether a server can hold that: nothing of a new session, else a beginning of the log."""
    if len(opened.sid) != len(BEGIN) or not opened.max_rows:
        return False
    if anew:
        return opened.n == 0
    return opened.n <= log.n and opened.log == log.at(opened.n)


def possible(verdict: wire.Verdict, pending: Pending, gen: int, vocab: int) -> bool:
    """Whether a server that is right could say that. gen: rollbacks until the question."""
    rejected = verdict.accepted < len(pending.drafts)
    return (
        verdict.accepted <= len(pending.drafts)
        and verdict.n == pending.before + verdict.accepted
        and verdict.token < vocab
        and verdict.gen in (gen, gen + 1)
        and (verdict.gen > gen or not rejected)
    )


def reply(verdict: wire.Verdict, pending: Pending, took: float) -> Reply:
    """A possible verdict as a reply; the server's seconds are some of the `took` here."""
    return Reply(
        accepted=verdict.accepted,
        token=verdict.token,
        n=verdict.n,
        confidence=verdict.confidence if 0 <= verdict.confidence <= 1 else 0.0,
        rows=max(pending.rows, len(pending.drafts) + 1),
        batch=verdict.batch,
        verify=min(verdict.verify_us / 1e6, took),
        queue=min(verdict.queue_us / 1e6, took),
    )


@dataclass(frozen=True, slots=True)
class Loss:
    """What a refusal costs: the stream in any case.

    forgotten: the session there is of no use.  fault: the question's, which no server will
    answer.  wait: seconds before the next connection.
    """

    error: LinkError
    forgotten: bool = False
    fault: PacketError | None = None
    wait: float = 0.0


def loss(nack: wire.Nack, address: str) -> Loss:
    """What follows from a refusal."""
    detail = packet.told(nack.detail) or f"reason {nack.reason}"
    lost = LinkDown(f"{address}: {detail}")
    if nack.reason in WRONG:
        fault = PacketError(f"{address} refused the rows: {detail}")
        return Loss(lost, forgotten=True, fault=fault)
    if nack.reason == wire.NO_MEMORY:
        wait = min(max(nack.retry_ms / 1000, RETRY[0]), RETRY[1])
        return Loss(Refused(f"{address} has no room: {detail}"), wait=wait)
    return Loss(lost, forgotten=nack.reason in FORGOTTEN)
