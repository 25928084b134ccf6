"""Lengths, shapes and rungs that are not what the manifest promises."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire
from tests.attacks import frames
from tests.attacks.frames import elements, request, stored
from tests.attacks.unharmed import discreet, refused, refused_between_good_ones, told, unharmed

DICE = random.Random(7)
MOST = 2**32 - 1


def floats(manifest: Manifest, count: int, kind: str) -> bytes:
    return np.zeros(count, kind).tobytes()


PAYLOADS: dict[str, Callable[[Manifest], bytes]] = {
    "empty": lambda m: request(m, b""),
    "flag alone": lambda m: request(m, b"\0"),
    "one byte short": lambda m: request(m, stored(m)[:-1]),
    "one byte long": lambda m: request(m, stored(m) + b"\0"),
    "cut anywhere": lambda m: request(m, stored(m)[: DICE.randrange(1, elements(m))]),
    "f32 of three bytes": lambda m: request(m, b"\0" * 3, "f32"),
    "f32 one number short": lambda m: request(m, floats(m, elements(m) - 1, "<f4"), "f32"),
    "f32 one number long": lambda m: request(m, floats(m, elements(m) + 1, "<f4"), "f32"),
    "f32 as f64": lambda m: request(m, floats(m, elements(m), "<f8")[: 4 * elements(m) + 4], "f32"),
    "f16 as f32": lambda m: request(m, floats(m, elements(m), "<f2"), "f32"),
    "f32 as f16": lambda m: request(m, floats(m, elements(m), "<f4"), "f16"),
    "f16 odd bytes": lambda m: request(m, floats(m, elements(m), "<f2")[:-1], "f16"),
    "q8 as f16": lambda m: request(m, stored(m), "f16"),
    "q8 as q4": lambda m: request(m, stored(m), "q4"),
    "another cut's features": lambda m: request(m, b"\0" + bytes(2 * elements(m)), "q8"),
    "two frames in one": lambda m: request(m, floats(m, 2 * elements(m), "<f2"), "f16"),
}
FRAMES: dict[str, Callable[[Manifest], bytes]] = {
    "unknown plan": lambda m: request(m, stored(m), plan=len(m.plans)),
    "any plan": lambda m: request(m, stored(m), plan=DICE.randrange(len(m.plans), MOST)),
    "largest plan": lambda m: request(m, stored(m), plan=MOST),
    "the device's plan": lambda m: request(m, stored(m), "exit"),
    "a size where there is one": lambda m: request(m, stored(m), size=[32, 32]),
    "huge size": lambda m: request(m, stored(m), size=[MOST, MOST]),
    "zero size": lambda m: request(m, stored(m), size=[0, 0]),
    "one number of size": lambda m: request(m, stored(m), size=[32]),
    "a thousand numbers of size": lambda m: request(m, stored(m), size=[1] * 1000),
    "side data nobody wants": lambda m: request(m, stored(m), side=[b"ab"]),
    "a trace of one byte": lambda m: request(m, stored(m), trace=b"\1"),
    "a trace one byte short": lambda m: request(m, stored(m), trace=b"\1" * 24),
    "a trace one byte long": lambda m: request(m, stored(m), trace=b"\1" * 26),
    "a trace of zeros": lambda m: request(m, stored(m), trace=bytes(25)),
    "a trace without a span": lambda m: request(m, stored(m), trace=b"\1" * 16 + bytes(9)),
    "a trace of 100 bytes": lambda m: request(m, stored(m), trace=b"\1" * 100),
    "700 side tensors": lambda m: request(m, stored(m), side=[b""] * 700),
}


@pytest.mark.parametrize("kind", PAYLOADS)
def test_a_payload_of_a_wrong_length_harms_nobody(victim, company, kind):
    raw = PAYLOADS[kind](victim.manifest)
    refused(victim, raw)
    refused_between_good_ones(victim, raw)
    company.harmless(raw)


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_of_a_wrong_plan_or_shape_harms_nobody(victim, kind):
    raw = FRAMES[kind](victim.manifest)
    refused(victim, raw)
    refused_between_good_ones(victim, raw)


def test_a_negative_plan_is_no_request(victim):
    """A varint of ten bytes is -1 as int64; what is left of it as uint32 is an unknown plan."""
    good = wire.Request.FromString(frames.good(victim.manifest))
    good.frame.ClearField("plan")
    frame = good.frame.SerializeToString() + b"\x10" + b"\xff" * 9 + b"\x01"
    parts = [b"\x0a", good.hello.SerializeToString(), b"\x12", frame]
    raw = b"".join(part if len(part) == 1 else _varint(len(part)) + part for part in parts)
    refused(victim, raw)


def test_every_length_up_to_the_largest_is_answered(victim):
    """Of each rung, whatever the length: refused, or right."""
    largest = 4 * elements(victim.manifest)
    for plan in ("f32", "f16", "q8", "q4"):
        with unharmed(victim):
            for length in sorted({0, 1, 2, *range(3, largest, 61), largest - 1, largest}):
                name, words = told(victim.channel, request(victim.manifest, bytes(length), plan))
                right = length == {"f32": 4, "f16": 2}.get(plan, 0) * elements(victim.manifest) > 0
                right |= (plan, length) == ("q8", 1 + elements(victim.manifest))
                assert name == ("OK" if right else "INVALID"), (plan, length, words)
                assert discreet(words)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes((value & 127 | 128,)), value >> 7
    return out + bytes((value,))
