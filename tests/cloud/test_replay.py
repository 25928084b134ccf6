"""What is kept of a device's samples."""

from __future__ import annotations

import numpy as np

from splitrt.cloud.replay import Replay, Sample


def sample(number: int) -> Sample:
    return Sample(np.full((2, 3), number % 256, np.uint8), np.full(4, number, np.float32))


def filled(count: int, **options: int) -> Replay:
    replay = Replay(**options)
    for number in range(count):
        replay.add(sample(number))
    return replay


def numbers(replay: Replay) -> tuple[list[float], list[float]]:
    taught, held = ([float(s.logits[0]) for s in part] for part in (replay.taught, replay.held))
    return taught, held


def test_a_quarter_is_held_out_and_nothing_is_in_both_parts():
    taught, held = numbers(filled(400))
    assert 70 <= len(held) <= 130
    assert sorted(taught + held) == list(range(400))


def test_its_bytes_are_bounded_whatever_comes():
    each = sample(0).bytes
    assert each == 6 + 16
    replay = filled(500, largest=40 * each)
    assert len(replay) == 40 and replay.bytes == 40 * each
    assert len(replay.held) == 10


def test_the_oldest_leave_first():
    taught, held = numbers(filled(500, largest=40 * sample(0).bytes))
    assert min(taught) > 440 and taught == sorted(taught)
    assert min(held) > 420 and held == sorted(held)


def test_the_same_seed_holds_the_same_samples_out():
    assert numbers(filled(100, seed=3)) == numbers(filled(100, seed=3))
    assert numbers(filled(100, seed=3)) != numbers(filled(100, seed=4))


def test_a_cleared_one_is_empty():
    replay = filled(50)
    replay.clear()
    assert len(replay) == 0 and replay.bytes == 0
