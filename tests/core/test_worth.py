"""Which frames are worth sending to learn from."""

from __future__ import annotations

import numpy as np
import pytest

from splitrt.core.worth import BOTTOM, FIRST, LOOKED, TOP, Stream, entropy, weigh

MARK = np.zeros(4, np.float32)


def shares(best: int, sure: float, classes: int = 10) -> np.ndarray:
    """Probabilities with one class of that share, the others alike."""
    found = np.full(classes, (1 - sure) / (classes - 1))
    found[best] = sure
    return found


def judged(stream: Stream, frames: list[np.ndarray]) -> tuple[list[str], Stream]:
    found = []
    for one in frames:
        why, stream = weigh(stream, one, MARK)
        found.append(why)
    return found, stream


def test_entropy_is_a_share_of_the_largest():
    assert entropy(np.full(10, 0.1)) == pytest.approx(1)
    assert entropy(shares(3, 1.0)) == pytest.approx(0)
    assert entropy(np.ones(1)) == 0


def test_guesses_are_unreliable_and_certainties_teach_nothing():
    assert weigh(Stream(), shares(0, 0.12), MARK)[0] == "unreliable"
    assert weigh(Stream(), shares(0, 0.9999), MARK)[0] == "uninformative"
    between = shares(0, 0.7)
    assert BOTTOM < entropy(between) < TOP
    assert weigh(Stream(), between, MARK)[0] == "worth"


def test_the_same_class_over_and_over_is_redundant_and_another_is_not():
    found, stream = judged(Stream(), [shares(4, 0.8)] * 3)
    assert found == ["worth", "redundant", "redundant"]
    assert weigh(stream, shares(5, 0.8), MARK)[0] == "worth"


def test_an_exit_that_says_one_class_of_everything_still_sends_an_eighth():
    found, _ = judged(Stream(), [shares(4, 0.8)] * 401)
    assert found.count("worth") == 1 + 400 // LOOKED
    assert found.count("redundant") == 400 - 400 // LOOKED


def test_when_all_classes_come_in_turn_none_is_redundant_for_long():
    found, _ = judged(Stream(), [shares(place % 10, 0.7) for place in range(400)])
    assert found[100:].count("worth") > 200


def test_as_the_exit_grows_surer_the_window_closes_from_above():
    _, stream = judged(Stream(), [shares(place % 10, 0.5) for place in range(FIRST)])
    assert stream.top == TOP
    _, stream = judged(stream, [shares(place % 10, 0.97) for place in range(300)])
    assert stream.top < TOP / 2


def test_as_it_grows_less_sure_the_window_does_not_open_wider():
    _, stream = judged(Stream(), [shares(place % 10, 0.97) for place in range(FIRST)])
    _, stream = judged(stream, [shares(place % 10, 0.3) for place in range(300)])
    assert stream.top == TOP


def test_the_mean_mark_follows_the_stream_and_forgets_the_one_before():
    stream = Stream()
    for _ in range(50):
        stream = weigh(stream, shares(0, 0.5), np.zeros(4, np.float32))[1]
    for _ in range(100):
        stream = weigh(stream, shares(0, 0.5), np.ones(4, np.float32))[1]
    assert np.all(stream.mean > 0.95) and np.all(stream.mean < 1)
    assert np.all(stream.level > 0.5) and np.all(stream.level < 0.9)


def test_weighing_changes_nothing_but_what_it_gives_back():
    before = Stream()
    after = weigh(before, shares(1, 0.7), np.ones(4, np.float32))[1]
    assert before.frames == 0 and before.sent.size == 0 and before.mean.size == 0
    assert after.frames == 1 and after.sent.size == 10 and after.mean.size == 4
