"""Who is in the book of a fleet, and how many replicas are wanted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from splitrt.errors import SplitrtError
from splitrt.fleet.book import LOST, Book
from splitrt.fleet.ingress import Raw, methods
from splitrt.fleet.scale import INFLIGHT, Scale, counted, surplus, wanted


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_replica_is_told_of_all():
    book = Book(Clock())
    assert book.beat("one", b"1") == ([b"1"], 0.0)
    assert book.beat("two", b"2") == ([b"1", b"2"], 0.0)
    assert book.beat("one", b"1 busy") == ([b"1 busy", b"2"], 0.0)


def test_who_is_killed_is_told_no_more_after_a_while():
    clock = Clock()
    book = Book(clock)
    book.beat("one", b"1")
    clock.now += LOST - 0.1
    book.beat("two", b"2")
    assert book.read() == [b"1", b"2"]
    clock.now += 0.2
    assert book.read() == [b"2"]


def test_who_leaves_is_told_no_more_at_once():
    book = Book(Clock())
    book.beat("one", b"1")
    book.leave("one")
    book.leave("never there")
    assert book.read() == []


def test_a_wish_to_take_up_files_reaches_every_replica():
    book = Book(Clock())
    assert book.beat("one", b"1")[1] == 0
    book.renew()
    assert book.beat("one", b"1")[1] == book.beat("two", b"2")[1] > 0


def context(busy: float, **loads: float) -> SimpleNamespace:
    return SimpleNamespace(
        aggregated_metrics={INFLIGHT: loads},
        target_num_replicas=2,
        config=SimpleNamespace(target_ongoing_requests=busy),
    )


def test_more_in_flight_wants_more_replicas():
    assert wanted(context(8.0, one=4, two=4))[0] == 1
    assert wanted(context(8.0, one=20, two=12))[0] == 4
    assert wanted(context(8.0, one=0, two=0))[0] == 0  # Ray keeps the least


def test_devices_go_on_until_every_server_has_as_many():
    here = [12, 0, 0]
    for _ in range(20):  # each second, and all who go find the same one least busy
        going = [surplus(one, here[:at] + here[at + 1 :]) for at, one in enumerate(here)]
        here = [one - count for one, count in zip(here, going, strict=True)]
        here[here.index(min(here))] += sum(going)
    assert here == [4, 4, 4]
    assert surplus(1, [0]) == surplus(3, [2, 3]) == surplus(5, []) == surplus(0, [0]) == 0


def test_without_a_report_nothing_changes():
    assert wanted(context(8.0))[0] == 2
    assert wanted(SimpleNamespace(aggregated_metrics=None, target_num_replicas=3))[0] == 3


def test_a_number_or_a_span_of_replicas_is_understood():
    assert counted("2") == (2, 2)
    assert counted("1..4") == (1, 4)
    for text in ("", "two", "1...4", "1..", "-1", "1.4", "99999"):
        with pytest.raises(SplitrtError, match=r"help: a number, or from\.\.to"):
            counted(text)
    for span in ((0, 2), (4, 1)):
        with pytest.raises(SplitrtError, match="help: 1 or more"):
            Scale(*span)
    with pytest.raises(SplitrtError, match="frames in flight"):
        Scale(1, 2, busy=float("nan"))


def test_the_ingress_knows_the_service_without_reading_messages():
    service, streams = methods()
    assert service == "inference.GRPCInferenceService"
    assert streams["ModelInfer"] is False and streams["ModelStreamInfer"] is True
    assert Raw(b"as it came").SerializeToString() == b"as it came"
