"""Batches: what waits for what, what is refused, and that everybody is answered."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from splitrt.cloud.batch import LONGEST_WAIT, Batcher, Job, Pace
from splitrt.wire import tail_pb2 as wire


class FakeTail:
    """Answers after a while with the payload's length; fails when told to."""

    def __init__(self) -> None:
        self.go, self.sizes = threading.Event(), []

    def open(self, codec: str, payload: bytes, size=None) -> bytes:
        return payload

    def __call__(self, codes, size=None, sides=(), wanted=()):
        self.go.wait(20)
        self.sizes.append(len(codes))
        if any(packed == b"fail" for _, packed in codes):
            raise ValueError("secret path /etc")
        return [[np.array([len(packed)], np.float32)] for _, packed in codes]


@pytest.fixture
def tail():
    return FakeTail()


def job(seq: int, answers: list, payload: bytes = b"x", expires: float | None = None) -> Job:
    return Job(seq, "q4", payload, time.monotonic(), expires, answers.append)


def test_a_lonely_device_never_waits():
    assert Pace(size=1, seconds=1.0).patience(None) == 0.0


def test_a_batch_waits_a_little_and_never_past_a_deadline():
    assert Pace(size=8, seconds=1.0).patience(None) == LONGEST_WAIT
    assert Pace(size=8, seconds=0.004).patience(None) == pytest.approx(0.001)
    assert Pace(size=8, seconds=0.1).patience(0.1005) == pytest.approx(0.0005)
    assert Pace(size=8, seconds=0.1).patience(0.05) == 0.0


def test_what_is_ahead_counts_in_batches():
    pace = Pace(seconds=0.1, ended=5.0)
    assert pace.ahead(0, 32, 5.0) == pytest.approx(0.1)
    assert pace.ahead(1, 32, 5.0) == pytest.approx(0.2)
    assert pace.ahead(64, 32, 5.0) == pytest.approx(0.3)


def test_one_slow_batch_does_not_starve_the_frames_of_all_times():
    slow = Pace().after(1, 4.0, 100.0)
    assert slow.ahead(0, 32, 100.0) == pytest.approx(4.0)
    assert slow.ahead(0, 32, 106.0) == pytest.approx(4.0 / 64)


def test_frames_that_wait_together_run_together(tail):
    batcher, answers = Batcher(tail), []
    for seq in range(20):
        batcher.submit(job(seq, answers))
    tail.go.set()
    batcher.close()
    assert sorted(answer.seq for answer in answers) == list(range(20))
    assert all(answer.status == wire.OK for answer in answers)
    assert len(tail.sizes) <= 3


def test_a_full_queue_is_busy_at_once(tail):
    batcher, answers = Batcher(tail, largest=1, room=2), []
    for seq in range(10):
        batcher.submit(job(seq, answers))
    busy = [answer for answer in answers if answer.status == wire.BUSY]
    assert len(busy) >= 7 and all(answer.retry_after_ms > 0 for answer in busy)
    tail.go.set()
    batcher.close()
    assert len(answers) == 10


def test_a_frame_that_cannot_make_it_is_refused_on_arrival(tail):
    tail.go.set()
    batcher, answers = Batcher(tail), []
    batcher.pace = Pace(size=1, seconds=10.0, ended=time.monotonic())
    batcher.submit(job(1, answers, expires=time.monotonic() + 1))
    assert [answer.status for answer in answers] == [wire.EXPIRED]
    batcher.close()


def test_a_failing_batch_is_answered_without_its_secrets_and_the_next_runs(tail):
    tail.go.set()
    batcher, answers = Batcher(tail), []
    batcher.submit(job(1, answers, b"fail"))
    until = time.monotonic() + 10
    while not answers and time.monotonic() < until:
        time.sleep(0.01)
    batcher.submit(job(2, answers))
    batcher.close()
    assert [(answer.seq, answer.status) for answer in answers] == [(1, wire.FAILED), (2, wire.OK)]
    assert "secret" not in answers[0].detail


def test_pictures_and_codes_of_one_batch_are_answered_as_each_alone(model_dir):
    from splitrt.cloud.tail import Tail
    from splitrt.core.manifest import Manifest
    from tests.conftest import pictures

    tail = Tail(model_dir, Manifest.load(model_dir), threads=1)
    image = pictures(1).images[0]
    codes = np.random.default_rng(0).integers(0, 16, tail.manifest.cut.shape).astype(np.uint8)
    sent = {"jpeg": image, "q4": codes, "q8": codes}
    frames = [(name, tail.open(name, tail.codecs[name].encode(sent[name]))) for name in sent]
    alone = [tail([frame])[0][0] for frame in frames]
    for answer, one in zip(tail([*frames, frames[0]]), [*alone, alone[0]], strict=True):
        np.testing.assert_allclose(answer[0], one, rtol=1e-5, atol=1e-6)
