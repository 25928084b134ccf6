"""Numbers that no head gives: NaN, infinities, and finite ones that overflow behind the cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire
from tests.attacks import frames
from tests.attacks.frames import elements, request
from tests.attacks.unharmed import refused, refused_between_good_ones, unharmed

HUGE = 3e38  # nearly the largest float32


def one(manifest: Manifest, plan: str, value: float, place: int = 7) -> bytes:
    """A request whose numbers are 0 but for one."""
    array = np.zeros(elements(manifest), "<f4" if plan == "f32" else "<f2")
    array[place] = value
    return request(manifest, array.tobytes(), plan)


def signalling(manifest: Manifest) -> bytes:
    array = np.zeros(elements(manifest), "<u4")
    array[-1] = 0x7F800001
    return request(manifest, array.tobytes(), "f32")


KINDS: dict[str, Callable[[Manifest], bytes]] = {
    "f32 NaN": lambda m: one(m, "f32", np.nan),
    "f32 infinity": lambda m: one(m, "f32", np.inf),
    "f32 minus infinity": lambda m: one(m, "f32", -np.inf),
    "f32 signalling NaN": signalling,
    "f32 NaN at the end": lambda m: one(m, "f32", np.nan, -1),
    "f32 NaN everywhere": lambda m: request(m, b"\xff" * 4 * elements(m), "f32"),
    "f16 NaN": lambda m: one(m, "f16", np.nan),
    "f16 infinity": lambda m: one(m, "f16", np.inf),
    "f16 minus infinity": lambda m: one(m, "f16", -np.inf),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_none_harms_nobody(victim, company, kind):
    raw = KINDS[kind](victim.manifest)
    refused(victim, raw)
    refused_between_good_ones(victim, raw)
    company.harmless(raw)


@pytest.mark.parametrize("value", [HUGE, -HUGE, 1e-45])
def test_numbers_that_overflow_behind_the_cut_stay_in_their_own_answer(victim, company, value):
    array = np.full(elements(victim.manifest), value, "<f4")
    raw, good = request(victim.manifest, array.tobytes(), "f32"), frames.good(victim.manifest)
    with unharmed(victim, {"OK": 200}):
        for _ in range(200):
            assert frames.infer(victim.channel, raw).status == wire.OK
    alone = company.answers(good, good, good)
    among = company.answers(good, raw, good)
    assert [answer.status for answer in among] == [wire.OK] * 3
    assert among[0].batch == 3
    for place in (0, 2):
        assert list(among[place].outputs) == list(alone[place].outputs)
