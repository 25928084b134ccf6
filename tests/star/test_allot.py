"""Who holds which shards: the best of all divisions, and what is said where there is none."""

from __future__ import annotations

import itertools
import json
import math
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrt.core import shards
from splitrt.core.shards import Shards, folders, portions
from splitrt.errors import ModelError, SplitrtError
from splitrt.star.allot import Able, allot, plan, works

WHOLE = st.integers(1, 9)


def divisions(devices: int, shards: int):
    """Every way in which the hub has one shard at least."""
    for ends in itertools.combinations_with_replacement(range(1, shards + 1), devices - 1):
        starts, stops = (0, *ends), (*ends, shards)
        yield [range(a, b) for a, b in zip(starts, stops, strict=True)]


def judged(ranges, costs, speeds, extra):
    """The slowest device's seconds and the sum of squares, without rounding."""
    seconds = [
        Fraction(sum(costs[i] for i in one)) / speed
        for one, speed in zip(ranges, speeds, strict=True)
    ]
    seconds[0] += extra
    return max(seconds), sum(one * one for one in seconds)


def missing(ranges, sizes, rooms):
    """Bytes that a division lacks."""
    return sum(
        max(0, sum(sizes[i] for i in one) - room)
        for one, room in zip(ranges, rooms, strict=True)
        if room is not None
    )


@given(data=st.data(), shards=st.integers(1, 6), devices=st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_no_division_is_better_and_a_lack_is_the_least(data, shards, devices):
    """Whole numbers whose quotients are exact, so that no rounding decides."""
    costs = data.draw(st.lists(WHOLE, min_size=shards, max_size=shards))
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=shards, max_size=shards))
    powers = st.sampled_from([1, 2, 4])
    speeds = data.draw(st.lists(powers, min_size=devices, max_size=devices))
    room = st.none() | st.integers(0, 40)
    rooms = data.draw(st.lists(room, min_size=devices, max_size=devices))
    extra = data.draw(st.integers(0, 3))
    every = list(divisions(devices, shards))
    fitting = [one for one in every if not missing(one, sizes, rooms)]
    if not fitting:
        with pytest.raises(ModelError) as caught:
            allot(costs, speeds, extra=extra, sizes=sizes, rooms=rooms)
        least = min(missing(one, sizes, rooms) for one in every)
        assert f": {least} B missing at least" in str(caught.value)
        lacks = map(int, re.findall(r"lacks (\d+) B", str(caught.value)))
        assert sum(lacks) == least
        return
    found = allot(costs, speeds, extra=extra, sizes=sizes, rooms=rooms)
    assert found in fitting
    best = min(judged(one, costs, speeds, extra) for one in fitting)
    assert math.isclose(judged(found, costs, speeds, extra)[1], best[1], rel_tol=1e-12)
    assert judged(found, costs, speeds, extra)[0] == best[0]


def of(costs, speeds, **more):
    return allot(costs, speeds, sizes=[1] * len(costs), rooms=[None] * len(speeds), **more)


def test_equal_devices_get_equal_shards_and_those_too_many_are_spares():
    assert of([1] * 4, [5, 5, 5, 5]) == [range(i, i + 1) for i in range(4)]
    assert of([1] * 2, [5, 5, 5]) == [range(1), range(1, 2), range(2, 2)]
    assert of([1] * 8, [3, 1]) == [range(6), range(6, 8)]
    assert of([7], [1, 100]) == [range(1), range(1, 1)]


def test_a_slow_device_is_better_left_out():
    assert of([1, 1, 1], [10, 0.1, 20]) == [range(1), range(1, 1), range(1, 3)]


def test_a_hub_that_is_busy_beside_gets_less():
    assert of([1] * 8, [1, 1]) == [range(4), range(4, 8)]
    assert of([1] * 8, [1, 1], extra=4) == [range(2), range(2, 8)]
    assert of([1] * 8, [1, 1], extra=99)[0] == range(1)


def test_memory_bounds_what_speed_would_give():
    given = {"sizes": [10] * 6, "rooms": [20, None, 15]}
    assert allot([1] * 6, [9, 1, 1], **given) == [range(2), range(2, 5), range(5, 6)]


def test_a_lack_of_memory_says_how_much_and_where():
    with pytest.raises(ModelError) as caught:
        allot([1] * 3, [1, 1], sizes=[10**9] * 3, rooms=[10**9, 15 * 10**8], names=["hub", "attic"])
    assert "3 shards of 3 GB do not fit into 2 devices: 500 MB missing at least" in str(
        caught.value
    )
    assert "attic lacks 500 MB of 2 GB\nhelp:" in str(caught.value)


def test_sixty_four_shards_on_sixty_four_devices_are_divided():
    speeds = [1 + i % 5 for i in range(64)]
    found = of([3 + i % 7 for i in range(64)], speeds)
    assert [i for one in found for i in one] == list(range(64))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"costs": []}, "0 shards"),
        ({"costs": [1] * 65, "sizes": [1] * 65}, "65 shards"),
        ({"sizes": [1]}, "2 shards, memory of 1"),
        ({"rooms": []}, "2 devices, memory of 0"),
        ({"costs": [1, 0]}, "cost 0"),
        ({"costs": [1, math.nan]}, "cost nan"),
        ({"speeds": [1, math.inf]}, "speed inf"),
        ({"extra": -1}, "extra -1"),
        ({"sizes": [-1, 1]}, "size -1"),
        ({"rooms": [None, -2]}, "room -2"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(given, told):
    sound = {"costs": [1, 1], "speeds": [1, 1], "sizes": [1, 1], "rooms": [None, None]}
    with pytest.raises(SplitrtError) as caught:
        allot(**sound | given)
    assert told in str(caught.value) and "\nhelp: " in str(caught.value)


def test_a_plan_reads_as_a_table_and_as_a_dictionary():
    devices = [Able("hub", 100, 10_000), Able("pi-1", 50, 2500), Able("old-phone", 1)]
    found = plan([1, 1, 1], [2000, 2000, 2000], devices, beside=0.005)
    assert str(found).splitlines() == [
        "device     shards  work  compute  memory",
        "hub        0-1     67%   20.0 ms  4 kB of 10 kB",
        "pi-1       2       33%   20.0 ms  2 kB of 2.5 kB",
        "old-phone  spare   -     -        -",
        "25.0 ms a token: hub is the slowest, 5.0 ms of the hub alone",
    ]
    assert found.shards == (range(2), range(2, 3), range(3, 3))
    told = json.loads(json.dumps(found.as_dict()))
    assert told["ms"] == 25 and told["hub_alone_ms"] == 5
    assert [one["shards"] for one in told["devices"]] == [[0, 1], [2], []]
    assert told["devices"][1] == {
        "name": "pi-1", "shards": [2], "share": 0.3333, "compute_ms": 20.0, "bytes": 2000,
        "room_bytes": 2500,
    }  # fmt: skip


def test_the_work_of_shards_is_the_numbers_in_their_matrices():
    shape = {
        "vocab": 100, "hidden": 64, "layers": 3, "heads": 8, "kv_heads": 4, "head": 16,
        "inner": 160, "eps": 1e-5, "rope": {"frequencies": [1.0] * 8}, "windows": [0] * 3,
    }  # fmt: skip
    names = [shards.EMBEDDING, shards.NORM, shards.TURNS, shards.voice(0), "tokenizer.json"]
    names += [name(i) for name in (shards.attention, shards.feed) for i in range(3)]
    made = Shards.model_validate(
        {"format": 1, "kind": "star", "name": "x", "family": "llama", "shape": shape,
         "weights": "int4", "longest": 16, "devices": []} | _devices(shape, names)
    )  # fmt: skip
    attention = 64 * (8 + 4 + 4 + 8) * 16  # q, k, v, o
    assert sum(works(made)) == 3 * (attention + 3 * 64 * 160)
    assert works(made)[0] == 3 * (attention // 2 + 3 * 64 * 96)


def _devices(shape, names):
    from splitrt.core.language import Shape

    parts = portions(Shape.model_validate(shape), (2, 1, 1))
    return {
        "devices": [
            {"folder": name, "share": 1.0, "files": dict.fromkeys(names, "0" * 64)}
            | part.model_dump()
            for name, part in zip(folders(3), parts, strict=True)
        ]
    }
