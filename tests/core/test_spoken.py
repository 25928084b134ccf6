"""What an answer took is counted alike wherever it is said."""

from __future__ import annotations

from splitrt.core.spoken import Tally


def test_a_tally_counts_tokens_by_place_and_keeps_the_time_of_the_first():
    tally = Tally().said("edge", 0.5, 100).said("draft", 0.75, 100).said("draft", 1.0, 140)
    assert (tally.edge, tally.draft, tally.cloud, tally.tokens) == (1, 2, 0, 3)
    assert (tally.first, tally.seconds, tally.up) == (0.5, 1.0, 140)


def test_a_tally_counts_requests_and_the_drafts_that_were_agreed_with():
    tally = Tally(cloud=2).asked().tried(3, 1).asked().tried(5, 3)
    assert (tally.requests, tally.drafted, tally.accepted) == (2, 8, 4)
    assert tally.requests_per_token == 1.0 and tally.acceptance == 0.5
    assert Tally().acceptance == 0.0


def test_a_tally_that_is_held_does_not_change():
    before = Tally()
    before.said("cloud", 1.0).asked().tried(1, 1)
    assert before == Tally()
