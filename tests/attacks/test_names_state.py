"""Who says what it holds, and in which order: digests, protocols, numbers, differences."""

from __future__ import annotations

import random
import threading

import pytest

from splitrt.core import delta
from splitrt.wire import tail_pb2 as wire
from tests.attacks import frames
from tests.attacks.frames import elements
from tests.attacks.unharmed import TIMES, discreet, ended, refused, unharmed

DICE = random.Random(17)
MOST = 2**32 - 1
DIGESTS = {
    "none": lambda right: b"",
    "zeros": lambda right: bytes(32),
    "one bit off": lambda right: bytes((right[0] ^ 1,)) + right[1:],
    "half": lambda right: right[:16],
    "one byte more": lambda right: right + b"\0",
    "a thousand bytes": lambda right: right * 31,
    "a path": lambda right: b"../../etc/passwd",
    "its hexadecimal": lambda right: right.hex().encode(),
}


@pytest.mark.parametrize("kind", DIGESTS)
def test_another_model_is_refused_in_the_handshake(victim, kind):
    digest = DIGESTS[kind](victim.manifest.digest)
    message = wire.Request.FromString(frames.good(victim.manifest))
    message.hello.manifest = digest
    refused(victim, message.SerializeToString(), "FAILED_PRECONDITION")
    with unharmed(victim, {"FAILED_PRECONDITION": 1}):
        name, words = ended(victim.channel, frames.streamed(message.SerializeToString()))
        assert name == "FAILED_PRECONDITION" and discreet(words)


@pytest.mark.parametrize("protocol", [0, 2, 99, MOST])
def test_another_protocol_is_refused_in_the_handshake(victim, protocol):
    message = wire.Request.FromString(frames.good(victim.manifest))
    message.hello.protocol = protocol
    refused(victim, message.SerializeToString(), "FAILED_PRECONDITION")


def test_tails_that_are_not_held_are_refused_and_the_same_one_counts_once(victim):
    message = wire.Request.FromString(frames.good(victim.manifest))
    message.hello.also.extend([victim.manifest.digest] * 20)
    with unharmed(victim, {"OK": 1}):
        assert len(frames.infer(victim.channel, message.SerializeToString()).outputs) == 1
    message.hello.ClearField("also")
    message.hello.also.extend([bytes(32)] * 20)
    refused(victim, message.SerializeToString(), "FAILED_PRECONDITION")


@pytest.mark.parametrize("method", ["Nothing", "../Infer", "Infer/", "infer", "Stream%00"])
def test_a_method_that_is_not_there_is_said(victim, method):
    with unharmed(victim, {}):
        for _ in range(TIMES):
            with pytest.raises(Exception) as raised:
                victim.channel.unary_unary(f"/splitrt.wire.Tail/{method}")(b"", timeout=20)
            assert raised.value.code().name == "UNIMPLEMENTED"
            assert discreet(raised.value.details())


@pytest.mark.parametrize(
    "numbers",
    [[1] * 8, [8, 7, 6, 5, 4, 3, 2, 1], [0, 0, 0], [MOST, 0, MOST, 1], [1, 1000, 2, MOST, 2]],
    ids=["replayed", "backward", "zero", "around", "skipped"],
)
def test_numbers_in_any_order_come_back_as_they_were_sent(victim, numbers):
    good = frames.good(victim.manifest)
    messages = [frames.hello(victim.manifest)]
    for seq in numbers:
        message = wire.ToServer.FromString(frames.framed(good))
        message.frame.seq = seq
        messages.append(message.SerializeToString())
    with unharmed(victim, {"OK": 20 * len(numbers)}):
        for _ in range(20):
            answers = [one.answer for one in frames.stream(victim.channel, messages)[1:]]
            assert sorted(answer.seq for answer in answers) == sorted(numbers)
            assert all(answer.status == wire.OK for answer in answers)


def test_a_difference_without_a_keyframe_is_told_so_and_one_of_noise_is_refused(victim):
    """The rest of what strangers may do with differences is in tests/cloud/test_kept.py."""
    manifest, size = victim.manifest, elements(victim.manifest)
    hello = frames.hello(manifest, temporal=True)
    same = delta.encode(bytes(size), bytes(size), 8)
    key = frames.framed(frames.good(manifest))
    for base in (1, 2, MOST):
        alone = frames.framed(frames.request(manifest, same, base=base))
        with unharmed(victim, {"NEED_KEY": TIMES}):
            for _ in range(TIMES):
                (_, found) = frames.stream(victim.channel, [hello, alone])
                assert found.answer.status == wire.NEED_KEY and discreet(found.answer.detail)
    bombs = [b"", b"\xff" * 50, DICE.randbytes(50), frames.deflated(bytes(50_000_000))[:size]]
    for bomb in [*bombs, frames.deflated(bytes(size + 1)), same + b"x", same[:-1]]:
        wrong = frames.framed(frames.request(manifest, bomb, seq=2, base=1))
        with unharmed(victim, {"OK": 50, "INVALID": 50}):
            for _ in range(50):
                assert difference(victim, [hello, key, wrong]) == wire.INVALID


def difference(victim, messages: list[bytes]) -> wire.Status:
    """The status of frame 2, sent after frame 1 was answered."""
    first, second = messages[:2], messages[2:]
    answered = threading.Event()

    def outgoing():
        yield from first
        answered.wait(60)
        yield from second

    answers = victim.channel.stream_stream(frames.STREAM)(outgoing(), timeout=60)
    for raw in answers:
        message = wire.ToEdge.FromString(raw)
        if message.answer.seq == 1:
            answered.set()
        if message.answer.seq == 2:
            assert discreet(message.answer.detail)
            return message.answer.status
    raise AssertionError("no answer to the difference")
