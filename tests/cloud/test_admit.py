"""Quotas: what a bucket gives, and that one greedy device is its own trouble only."""

from __future__ import annotations

import time

import pytest

from splitrt.cloud import Quota, Server
from splitrt.cloud.admit import HALF_LIFE, LONGEST_AWAY, MOST_DEVICES, Bucket, Excess, Quotas
from splitrt.core.manifest import Manifest
from splitrt.errors import SplitrtError
from splitrt.wire import tail_pb2 as wire
from tests.line import Line


def test_a_bucket_gives_its_burst_and_then_its_rate():
    bucket = Bucket(10.0, 5.0, 0.0)
    for _ in range(5):
        assert bucket.wait(1, 0.0) == 0.0
        bucket.take(1)
    assert bucket.wait(1, 0.0) == pytest.approx(0.1)
    assert bucket.wait(1, 0.1) == 0.0
    assert bucket.wait(5, 100.0) == 0.0
    bucket.take(5)
    assert bucket.wait(1, 100.0) > 0  # a long rest is no more than the burst


def test_what_is_larger_than_the_burst_passes_and_is_paid_for_afterwards():
    bucket = Bucket(100.0, 100.0, 0.0)
    assert bucket.wait(300, 0.0) == 0.0
    bucket.take(300)
    assert bucket.wait(100, 0.0) == pytest.approx(3.0)


def test_frames_and_bytes_are_counted_and_a_refused_frame_costs_nothing():
    quotas = Quotas(Quota(frames_per_second=10, bytes_per_second=1000))
    assert [quotas.wait("a", 600, 0.0) for _ in range(2)] == [0.0, pytest.approx(0.2)]
    assert quotas.wait("a", 400, 0.0) == 0.0
    assert quotas.wait("b", 600, 0.0) == 0.0  # another's buckets
    frames = Quotas(Quota(frames_per_second=2))
    assert [bool(frames.wait("a", 1, 0.0)) for _ in range(4)] == [False, False, True, True]
    assert frames.wait("a", 1, 0.5) == 0.0


def test_the_retry_that_a_bucket_names_is_kept():
    quotas, now, passed = Quotas(Quota(frames_per_second=7, burst=0.1)), 0.0, 0
    for _ in range(200):
        wait = quotas.wait("a", 10, now)
        passed += not wait
        now += wait
    assert passed == 100  # every second try, since each refusal said when


def test_strangers_without_end_cannot_fill_the_memory():
    quotas = Quotas(Quota(frames_per_second=1))
    for number in range(MOST_DEVICES + 500):
        quotas.wait(f"host {number}", 1, 0.0)
    assert len(quotas._devices) == MOST_DEVICES


@pytest.mark.parametrize("wrong", [{"frames_per_second": 0}, {"bytes_per_second": -1}])
def test_a_quota_is_a_positive_number(wrong):
    with pytest.raises(SplitrtError, match="help:"):
        Quota(**wrong)


def test_a_device_at_ten_times_its_quota_is_refused_and_the_others_are_answered(
    model_dir, tmp_path
):
    from splitrt.cloud import Guard

    (tmp_path / "tokens").write_text("greedy:1111111111111111\nmodest:2222222222222222\n")
    manifest, rate, seconds = Manifest.load(model_dir), 20, 3
    guard = Guard(tokens=tmp_path / "tokens")
    quota = Quota(frames_per_second=rate)
    with Server(model_dir, port=0, threads=1, guard=guard, quota=quota) as server:
        bearer = [[("authorization", f"Bearer {digit * 16}")] for digit in "12"]
        with (
            Line(server.address, manifest, metadata=bearer[0]) as greedy,
            Line(server.address, manifest, metadata=bearer[1]) as modest,
        ):
            started = time.monotonic()
            for number in range(10 * rate * seconds):
                greedy.frame(number + 1)
                if number % 20 == 0:  # half of its quota
                    modest.frame(number + 1)
                ahead = started + number / (10 * rate) - time.monotonic()
                time.sleep(max(0.0, ahead))
            took = time.monotonic() - started
            for line in (greedy, modest):
                line.put(None)
            told = [[message.answer for message in line] for line in (greedy, modest)]
    passed = [answer for answer in told[0] if answer.status == wire.OK]
    refused = [answer for answer in told[0] if answer.status != wire.OK]
    assert len(told[0]) == 10 * rate * seconds and len(told[1]) == rate * seconds / 2
    assert len(passed) <= rate * (took + 2)
    assert all(answer.status == wire.BUSY and answer.retry_after_ms > 0 for answer in refused)
    assert any("quota" in answer.detail for answer in refused)
    assert {answer.status for answer in told[1]} == {wire.OK}


def test_few_refusals_send_nobody_away_and_many_are_forgotten():
    excess = Excess()
    for frame in range(100):
        excess.taken(10.0 + frame / 1000)
    assert excess.refused(10.1) == 0.0
    waits = [excess.refused(10.1) for _ in range(200)]
    assert waits == sorted(waits) and waits[-1] == LONGEST_AWAY
    assert excess.refused(10.1 + 20 * HALF_LIFE) == 0.0
