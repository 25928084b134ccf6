"""Drafts by lookup: each really followed these tokens before; and how many of them pay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrt.core.draft import MOST, PROBE
from splitrt.core.lookup import FURTHER, Lookup, Pace
from splitrt.errors import SplitrtError

TEXT = st.lists(st.integers(0, 3), max_size=40)


def read(ids: list[int], longest: int = 3) -> Lookup:
    found = Lookup(longest)
    found.extend(ids)
    return found


def sought(ids: list[int], longest: int, most: int) -> list[int]:
    """The same by reading the whole text: the longest run, then its latest place."""
    for size in range(min(longest, len(ids)), 0, -1):
        for end in range(len(ids) - 1, size - 1, -1):
            if ids[end - size : end] == ids[-size:]:
                return ids[end : end + most]
    return []


@given(ids=TEXT, longest=st.integers(1, 4), most=st.integers(0, 6))
@settings(max_examples=500, deadline=None)
def test_drafts_are_what_reading_the_whole_text_would_find(ids, longest, most):
    assert read(ids, longest).drafts(most) == sought(ids, longest, most)


@given(ids=TEXT, most=st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_a_draft_is_a_continuation_that_really_occurred(ids, most):
    drafts = read(ids).drafts(most)
    if drafts:
        whole = [ids[-1], *drafts]
        places = range(len(ids) - len(drafts))
        assert any(ids[place : place + len(whole)] == whole for place in places)
        assert len(drafts) <= most
    else:
        assert ids[-1:] == [] or ids[-1] not in ids[:-1]


@given(ids=TEXT, more=TEXT, cut=st.integers(0, 40), longest=st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_what_was_forgotten_leaves_no_trace(ids, more, cut, longest):
    cut = min(cut, len(ids))
    found, wanted = read(ids, longest), read(ids[:cut], longest)
    found.truncate(cut)
    for id in [None, *more]:
        if id is not None:
            found.push(id)
            wanted.push(id)
        assert len(found) == len(wanted) and found.drafts(9) == wanted.drafts(9)


def test_the_longest_run_wins_then_the_latest():
    assert read([1, 2, 3, 9, 2, 3, 8, 7, 3, 6, 1, 2, 3]).drafts(2) == [9, 2]
    assert read([2, 3, 9, 5, 2, 3, 8, 2, 3]).drafts(2) == [8, 2]
    assert read([4, 4, 4]).drafts(5) == [4]
    assert read([1, 2, 3]).drafts(5) == read([]).drafts(5) == []


def test_what_cannot_be_looked_up_is_said():
    with pytest.raises(SplitrtError, match="runs of 0 tokens"):
        Lookup(0)
    with pytest.raises(SplitrtError, match="2 tokens cannot become 3"):
        read([1, 2]).truncate(3)


def known(row: float, accepted: int, *, steps: int = 10 * PROBE) -> Pace:
    """A step of one row takes 100 ms, of one more `row` of that; drafts are right up to a place.

    Just after a step that tried another length.
    """
    pace = Pace()
    for turn in range(steps):
        drafts = turn % 5
        pace = pace.after(1 + drafts, min(accepted, drafts), 0.1 * (1 + row * drafts))
    return pace


def test_many_drafts_pay_where_a_row_is_nearly_free():
    pace = known(0.02, MOST)
    assert pace.row == pytest.approx(0.02, rel=1e-6)
    assert pace.length() == MOST
    assert pace.goodput(MOST) > 4 * pace.goodput(0)
    assert pace.goodput(0) == pytest.approx(10, rel=0.01)


def test_none_pay_where_a_row_costs_as_much_as_a_step_or_drafts_are_wrong():
    assert known(1.0, MOST).length() == 0
    assert known(0.3, 0).length() == 0


def test_drafts_end_where_they_begin_to_be_wrong():
    """Two of four are right, whatever is tried; nobody tried more."""
    assert known(0.1, 2).length(4) == 2


def test_more_drafts_pay_the_less_a_row_costs():
    """Each draft is right nine times in ten, if those before it were."""
    lengths = []
    for row in (0.02, 0.1, 0.3, 0.6, 1.2):
        pace = Pace()
        for turn in range(20 * PROBE):
            right = next((place for place in range(MOST) if (7 * turn + place) % 10 == 0), MOST)
            drafts = MOST if turn % 2 else 1
            pace = pace.after(1 + drafts, min(right, drafts), 0.1 * (1 + row * drafts))
        lengths.append(pace.length())
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[2] > lengths[-1] == 0


def test_what_a_row_costs_is_kept_while_steps_are_alike():
    pace = known(0.5, 2)
    assert pace.row == pytest.approx(0.5, rel=1e-6)
    for _ in range(600):
        pace = pace.after(1, 0, 0.1)
    assert not pace.cost.uneven and pace.row == pytest.approx(0.5, rel=1e-3)
    assert pace.goodput(0) == pytest.approx(10, rel=0.01)


def test_rows_of_a_prompt_are_no_wrong_drafts():
    pace = Pace().after(16, 0, 0.3, prompt=15)
    assert pace.overall == Pace().overall and pace.places == Pace().places
    assert pace.cost.rows == 16


def test_drafts_that_do_not_pay_are_tried_again_once_in_a_while():
    pace, tried = known(1.0, 0), []
    for _ in range(2 * PROBE):
        drafts = pace.length()
        tried.append(drafts)
        pace = pace.after(1 + drafts, 0, 0.1 * (1 + drafts))
    assert sorted(tried)[-3:] == [0, FURTHER, FURTHER]
    assert pace.length(2) == 0


def test_drafts_come_back_when_a_row_has_become_cheap_and_drafts_right():
    pace = known(1.0, 0)
    for _ in range(40 * PROBE):
        drafts = pace.length()
        pace = pace.after(1 + drafts, drafts, 0.1 * (1 + 0.01 * drafts))
    assert pace.length() >= MOST - FURTHER


@given(
    seen=st.lists(
        st.tuples(st.integers(1, 64), st.integers(0, 64), st.floats(1e-6, 1e3)), max_size=30
    ),
    most=st.integers(0, 32),
)
@settings(deadline=None)
def test_a_length_lies_between_none_and_most_whatever_was_seen(seen, most):
    pace = Pace()
    for rows, accepted, seconds in seen:
        pace = pace.after(rows, min(accepted, rows - 1), seconds)
    assert 0 <= pace.length(most) <= most
    assert pace.goodput(pace.length(most)) > 0
