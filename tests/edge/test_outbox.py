"""What is due next, without a server, a thread or a clock."""

from __future__ import annotations

from splitrt.edge.log import Log
from splitrt.edge.outbox import COALESCE, Outbox
from splitrt.edge.pulse import BEAT_APART, WINDOW, Pulse
from splitrt.edge.question import Pending

SIZE, LATER = 8, 1.0  # bytes of a row; seconds after which no row waits for company


def opened(rows: int = 0, there: int = 0, most: int = 4) -> tuple[Outbox, Pulse]:
    outbox, pulse = Outbox(Log(SIZE), now=0.0), Pulse(now=LATER)
    outbox.append(bytes(rows * SIZE), now=0.0)
    outbox.opened(there, gen=0, most=most)
    return outbox, pulse


def all_due(outbox: Outbox, pulse: Pulse, now: float = LATER) -> list[tuple[str, int, int]]:
    """Kind, first position and rows of all that goes now; of a truncation its n, and none."""
    found = []
    while (message := outbox.due(now, pulse)) is not None:
        pulse.sent(message.ByteSize(), now)
        kind = message.WhichOneof("kind")
        one = getattr(message, kind)
        found.append((kind, getattr(one, "start", getattr(one, "n", 0)), getattr(one, "rows", 0)))
    return found


def test_rows_wait_for_others_unless_they_fill_a_message():
    outbox, pulse = opened(rows=5)
    assert all_due(outbox, pulse, now=COALESCE / 2) == [("append", 0, 4)]
    assert outbox.soon(COALESCE / 2) == COALESCE / 2
    assert all_due(outbox, pulse, now=COALESCE) == [("append", 4, 1)]
    assert outbox.soon(COALESCE) is None


def test_a_question_takes_the_last_rows_along_and_nothing_follows_it():
    outbox, pulse = opened(rows=6)
    outbox.pending = Pending(6, (1, 2))
    assert all_due(outbox, pulse, now=0.0) == [("append", 0, 4), ("ask", 4, 2)]
    outbox.append(bytes(9 * SIZE), now=0.0)
    assert all_due(outbox, pulse) == []


def test_what_the_log_lost_goes_before_what_it_gained():
    outbox, pulse = opened(rows=6, there=6)
    outbox.truncate(3)
    outbox.append(bytes(SIZE), now=0.0)
    assert all_due(outbox, pulse) == [("truncate", 3, 0), ("append", 3, 1)]
    assert outbox.gen == 1


def test_a_question_of_fewer_positions_than_the_server_holds_has_it_forget_the_rest():
    outbox, pulse = opened(rows=6, there=6)
    outbox.pending = Pending(4, (1,), keep=True)
    assert all_due(outbox, pulse) == [("truncate", 4, 0), ("ask", 4, 0)]
    outbox.answered(outbox.pending, 4, gen=1)
    assert all_due(outbox, pulse) == [("append", 4, 2)]


def test_rows_that_are_held_back_go_with_their_question_only():
    outbox, pulse = opened(rows=6)
    outbox.hold = 2
    assert all_due(outbox, pulse) == [("append", 0, 2)]
    outbox.pending = Pending(5, ())
    assert all_due(outbox, pulse) == [("ask", 2, 3)]


def test_after_a_cancelled_question_nothing_goes_until_the_server_has_said_so():
    outbox, pulse = opened(rows=6, there=3)
    outbox.pending = Pending(6, (1, 2))
    assert all_due(outbox, pulse) == [("ask", 3, 3)]
    outbox.cancel()
    outbox.append(bytes(SIZE), now=0.0)
    assert all_due(outbox, pulse) == [("cancel", 0, 0)]
    outbox.left(6, gen=0)
    assert all_due(outbox, pulse) == [("truncate", 4, 0), ("append", 4, 1)]


def test_a_question_goes_again_on_the_next_stream_and_tells_no_time():
    outbox, pulse = opened(rows=3)
    outbox.pending = pending = Pending(3, ())
    assert all_due(outbox, pulse) == [("ask", 0, 3)]
    outbox.opened(2, gen=0, most=4)
    assert all_due(outbox, pulse) == [("ask", 2, 1)] and pending.again
    before = pulse.estimate
    pulse.answered(pending, server=0.0, now=LATER + 9)
    assert pulse.estimate == before


def test_a_full_window_is_beaten_for_and_its_echo_lets_the_rest_go():
    rows = WINDOW[1] // SIZE
    outbox, pulse = opened(rows, most=WINDOW[0])
    pulse.opened(LATER - 2 * BEAT_APART)
    first = all_due(outbox, pulse)
    assert [kind for kind, *_ in first].count("beat") == 1
    assert sum(count for *_, count in first) < rows
    assert pulse.waited(LATER + 0.5, outbox.asked()) == 0.5 < pulse.allowed
    pulse.echoed(1, LATER + 0.1)
    assert all_due(outbox, pulse, LATER + 0.1)
