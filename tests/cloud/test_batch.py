"""Batches: what waits for what, what is refused, and that everybody is answered."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from splitrt.cloud.admit import LONGEST_AWAY
from splitrt.cloud.batch import LONGEST_WAIT, Batcher, Job, Pace, Running
from splitrt.cloud.tail import Tail, knee
from splitrt.core.manifest import Manifest
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
    assert Pace(size=8, frames=8, seconds=1.0).patience(None) == LONGEST_WAIT
    assert Pace(size=8, frames=8, seconds=0.004).patience(None) == pytest.approx(0.001)
    assert Pace(size=8, frames=8, seconds=0.1).patience(0.1005) == pytest.approx(0.0005)
    assert Pace(size=8, frames=8, seconds=0.1).patience(0.05) == 0.0


def paced(fixed: float, each: float, sizes: tuple[int, ...] = (1, 8, 3, 32) * 30) -> Pace:
    """A pace that has seen batches of those sizes, the last of which ended at 5.0."""
    pace = Pace()
    for size in sizes:
        pace = pace.after(size, fixed + each * size, 5.0)
    return pace


@pytest.mark.parametrize(("fixed", "each"), [(0.01, 0.0), (0.0, 0.003), (0.01, 0.003)])
def test_from_batches_of_several_sizes_follows_what_any_size_takes(fixed, each):
    pace = paced(fixed, each)
    for size in (1, 5, 20, 32):
        assert pace.takes(size) == pytest.approx(fixed + each * size, abs=1e-4)


def test_until_sizes_differ_every_frame_costs_the_same():
    pace = paced(0.01, 0.01, sizes=(1, 1, 1))
    assert pace.takes(4) == pytest.approx(0.08)
    assert paced(0.0, 0.01, sizes=(4, 4)).takes(1) == pytest.approx(0.01)


def test_what_is_ahead_counts_in_batches_and_in_frames():
    pace = paced(0.1, 0.01)
    assert pace.ahead(0, 32, 5.0) == pytest.approx(0.11, abs=1e-3)
    assert pace.ahead(1, 32, 5.0) == pytest.approx(0.12, abs=1e-3)
    assert pace.ahead(64, 32, 5.0) == pytest.approx(0.3 + 0.65, abs=2e-3)


def test_what_is_left_of_the_batch_that_runs_counts_too_and_nothing_fades_meanwhile():
    pace, running = paced(0.1, 0.01), Running(5.0, 10)
    assert pace.ahead(0, 32, 5.0, running) == pytest.approx(0.31, abs=1e-3)
    assert pace.ahead(0, 32, 5.06, running) == pytest.approx(0.25, abs=1e-3)
    assert pace.ahead(1, 32, 9.0, running) == pytest.approx(0.12, abs=1e-3)  # longer than ever


def test_uncertain_times_are_allowed_for():
    steady, rough = paced(0.0, 0.01, (4,) * 20), Pace()
    for number in range(20):
        rough = rough.after(4, 0.02 if number % 2 else 0.06, 5.0)
    assert rough.takes(4) == pytest.approx(steady.takes(4), rel=0.1)
    assert rough.surely(4, 5.0) > steady.surely(4, 5.0) + 0.01


def test_a_batch_is_large_enough_when_more_frames_hardly_make_it_faster():
    assert paced(0.0, 0.003).enough(32) == 1
    assert 3 <= paced(0.002, 0.003).enough(32) <= 8
    assert paced(0.01, 0.0).enough(32) >= 28


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


def test_an_empty_server_takes_a_frame_that_just_makes_it_and_a_full_one_wants_time_to_spare(tail):
    batcher, answers = Batcher(tail), []
    now = time.monotonic()
    batcher.pace = Pace(size=1, frames=1, seconds=1.0, ended=now + 1000)  # each frame takes 1 s
    batcher.submit(job(1, answers, expires=now + 1.5))
    until = time.monotonic() + 10
    while batcher._running is None and time.monotonic() < until:
        time.sleep(0.01)
    batcher.submit(job(2, answers, expires=now + 2.5))  # 1 s to wait, 1 s to run
    batcher.submit(job(3, answers, expires=now + 5))
    assert [(answer.seq, answer.status) for answer in answers] == [(2, wire.EXPIRED)]
    tail.go.set()
    batcher.close()


def test_company_that_would_make_the_first_late_waits_for_the_next_batch(tail):
    batcher, answers = Batcher(tail), []
    batcher.submit(job(0, answers))
    until = time.monotonic() + 10
    while batcher._running is None and time.monotonic() < until:
        time.sleep(0.01)
    now = time.monotonic()
    batcher.pace = Pace(size=1, frames=1, seconds=1.0, ended=now + 1000)  # each frame takes 1 s
    for seq in range(1, 9):
        batcher.submit(job(seq, answers, expires=now + (9 if seq == 1 else 100)))
    tail.go.set()
    batcher.close()
    assert [answer.status for answer in answers] == [wire.OK] * 9
    assert tail.sizes[:2] == [1, 4]


def test_a_batch_is_delivered_at_once_and_what_is_wrong_in_it_does_not_wait(tail):
    calls = []
    batcher = Batcher(tail, deliver=lambda pairs: calls.append([a.seq for _, a in pairs]))
    batcher.submit(job(1, []))
    until = time.monotonic() + 10
    while batcher._running is None and time.monotonic() < until:
        time.sleep(0.01)
    for seq in (2, 3, 4):
        batcher.submit(job(seq, [], expires=time.monotonic() + 0.05 if seq == 3 else None))
    time.sleep(0.1)
    tail.go.set()
    batcher.close()
    assert calls == [[1], [3], [2, 4]]


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


def test_frames_from_many_threads_are_answered_once_each(tail):
    tail.go.set()
    batcher, answers = Batcher(tail, largest=8, room=10_000), []
    sending = [
        threading.Thread(
            target=lambda first=first: [
                batcher.submit(job(seq, answers)) for seq in range(first, 2000, 4)
            ]
        )
        for first in range(4)
    ]
    for thread in sending:
        thread.start()
    for thread in sending:
        thread.join()
    batcher.close()
    assert sorted(answer.seq for answer in answers) == list(range(2000))
    assert {answer.status for answer in answers} == {wire.OK}
    assert max(tail.sizes) <= 8


def test_a_batch_that_never_gets_its_company_runs_all_the_same(tail):
    tail.go.set()
    batcher, answers = Batcher(tail), []
    batcher.pace = Pace(size=32, seconds=1.0, ended=time.monotonic())
    batcher.submit(job(1, answers))
    until = time.monotonic() + 20
    while not answers and time.monotonic() < until:
        time.sleep(0.01)
    assert [answer.status for answer in answers] == [wire.OK]
    batcher.close()


def test_a_batch_is_as_small_as_it_can_be_without_costing_more():
    assert knee({1: 2.6, 2: 1.5, 4: 1.0, 8: 0.6, 16: 0.53, 32: 0.51}) == 16
    assert knee({1: 1.0, 2: 0.5, 4: 0.25, 8: 0.125}) == 8
    assert knee({1: 1.0, 2: 1.0, 4: 1.2}) == 1


def test_a_tail_finds_its_batch_up_to_the_largest(model_dir):
    tail = Tail(model_dir, Manifest.load(model_dir), threads=1)
    assert tail.enough(1) == 1
    assert 1 <= tail.enough(24) <= 24


def test_a_decoder_that_fails_fails_one_frame_and_the_next_is_answered():
    answers = []

    class Broken(FakeTail):
        def open(self, codec, payload, size=None):
            if payload == b"break":
                raise ValueError("secret path /etc")
            return payload

    broken = Broken()
    broken.go.set()
    batcher = Batcher(broken)
    for seq, payload in enumerate((b"a", b"break", b"b")):
        batcher.submit(job(seq, answers, payload))
    batcher.close()
    found = {answer.seq: answer for answer in answers}
    assert [found[seq].status for seq in range(3)] == [wire.OK, wire.FAILED, wire.OK]
    assert found[1].detail == "the frame cannot be opened"


def crowded(tail: FakeTail, slack: float, count: int) -> list[wire.Answer]:
    """The refusals of so many frames that come after three of 1 s each, the first of which runs."""
    batcher, answers = Batcher(tail, largest=1), []
    for seq in range(3):
        batcher.submit(job(seq, answers))
        until = time.monotonic() + 10
        while batcher._running is None and time.monotonic() < until:
            time.sleep(0.01)
    now = time.monotonic()
    batcher.pace = Pace(size=1, frames=1, seconds=1.0, ended=now + 1000)
    for seq in range(3, 3 + count):
        batcher.submit(job(seq, answers, expires=now + slack))
    refused = list(answers)
    tail.go.set()
    batcher.close()
    return refused


def test_who_is_refused_for_the_others_sake_stays_away_the_longer_the_more_are(tail):
    refused = crowded(tail, slack=2.0, count=20)
    assert [answer.status for answer in refused] == [wire.EXPIRED] * 20
    waits = [answer.retry_after_ms for answer in refused]
    assert waits == sorted(waits) and waits[0] == 0
    assert 0 < waits[4] < waits[5] < waits[-1] == 1000 * LONGEST_AWAY


def test_who_would_be_late_on_an_empty_server_is_not_told_to_stay_away(tail):
    refused = crowded(tail, slack=0.5, count=20)
    assert [answer.status for answer in refused] == [wire.EXPIRED] * 20
    assert {answer.retry_after_ms for answer in refused} == {0}
