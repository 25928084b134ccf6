"""What the next step runs and who makes room: numbers in, numbers out."""

from __future__ import annotations

import random

import pytest

from splitrt.cloud.turn import LONGEST_WAIT, Held, Moves, Need, Room, moved, patience, turn
from splitrt.errors import SplitrtError

ROOM = Room(chunk=100, behind=60, most=150)


def need(sid: str, rows: int, asked: float | None = None, since: float = 0.0) -> Need:
    return Need(sid.encode(), rows, asked, since if asked is None else asked)


def chosen(*needs: Need, room: Room = ROOM) -> dict[str, int]:
    return {sid.decode(): rows for sid, rows in turn(needs, room).items()}


def held(sid: str, size: int, used: float, owner: str = "", **flags: bool) -> Held:
    return Held(sid.encode(), owner or sid, size, used, **{"busy": False, "parked": False, **flags})


def test_short_waits_are_served_whole_all_at_once():
    assert chosen(need("a", 5, 1.0), need("b", 1, 2.0), need("c", 100, 3.0)) == {
        "a": 5, "b": 1, "c": 100,
    }  # fmt: skip
    assert chosen(need("a", 0, 1.0)) == {"a": 0}  # all its rows are held


def test_a_long_prompt_goes_in_chunks_beside_the_others():
    for left in (1000, 900, 101):
        assert chosen(need("long", left, 0.0), need("a", 3, 5.0)) == {"a": 3, "long": 100}
    assert chosen(need("long", 500, 0.0), need("later", 600, 1.0)) == {"long": 100}


def test_rows_for_which_nobody_waits_have_a_share_and_the_oldest_come_first():
    quiet = [need(name, 50, since=age) for name, age in (("young", 2.0), ("old", 1.0))]
    assert chosen(*quiet) == {"old": 50, "young": 10}
    assert chosen(*quiet, need("a", 7, 9.0), need("long", 101, 0.5)) == {
        "a": 7, "old": 50, "young": 10, "long": 100,
    }  # fmt: skip


def test_a_step_has_an_end_and_who_waits_longest_is_in_it():
    needs = [need(str(number), 10, float(number)) for number in range(20, 0, -1)]
    assert set(chosen(*needs)) == {str(number) for number in range(1, 16)}


def test_one_by_one_takes_the_oldest():
    alone = Room(chunk=100, together=1)
    assert chosen(need("b", 1, 2.0), need("a", 3, 1.0), room=alone) == {"a": 3}


def test_a_step_waits_for_those_that_the_last_one_answered_and_not_for_long():
    assert patience(3, 4, 0.02) == 0.005
    assert patience(3, 4, 20.0) == LONGEST_WAIT
    assert patience(4, 4, 0.02) == patience(1, 1, 0.02) == patience(1, 0, 0.0) == 0.0


def test_nobody_starves():
    """Steps until all is done, with new short waits all the time."""
    dice = random.Random(1)
    left = {"long": 1000, "quiet": 700}
    for step in range(40):
        needs = [need(f"ask{number}", dice.randint(1, 9), float(step)) for number in range(30)]
        if left["long"]:
            needs.append(need("long", left["long"], 0.0))
        if left["quiet"]:
            needs.append(need("quiet", left["quiet"]))
        taken = chosen(*needs)
        for name in left:
            left[name] -= taken.get(name, 0)
    assert left == {"long": 0, "quiet": 0}


def test_where_there_is_room_nobody_moves():
    assert moved([held("a", 300, 1.0)], 700, 1000, 0) == Moves()


def test_the_longest_unused_are_parked_and_never_the_busy():
    all_of_them = [
        held("busy", 300, 0.0, busy=True),
        held("young", 300, 3.0),
        held("old", 300, 1.0),
        held("away", 300, 0.5, parked=True),
    ]
    assert moved(all_of_them, 200, 1000, 900) == Moves((b"old",))
    assert moved(all_of_them, 700, 1000, 900) == Moves((b"old", b"young"))
    assert moved(all_of_them, 701, 1000, 900) is None


def test_what_the_host_cannot_hold_either_is_given_up_by_who_holds_most():
    greedy = [held(f"g{number}", 200, 5.0 + number, "greedy", parked=True) for number in range(4)]
    modest = [held("m", 200, 1.0, "modest", parked=True), held("n", 200, 2.0, "modest")]
    assert moved([*greedy, *modest], 900, 1000, 900) == Moves((b"n",), (b"g0", b"g1"))
    assert moved([*greedy, *modest], 900, 1000, 800) == Moves((b"n",), (b"g0", b"g1"))
    assert moved([held("a", 300, 1.0)], 900, 1000, 0) == Moves((), (b"a",))


def test_who_is_parked_and_comes_back_now_is_not_given_up():
    back = held("back", 300, 0.0, busy=True, parked=True)
    assert moved([back, held("idle", 300, 1.0)], 900, 1000, 400) == Moves((), (b"idle",))


@pytest.mark.parametrize("options", [{"kv_tokens": 255}, {"ttl": 0.0}, {"ttl": float("nan")}])
def test_room_that_is_none_is_refused(options):
    with pytest.raises(SplitrtError, match="help:"):
        Room(**options)
