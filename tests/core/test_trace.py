"""What a traced frame carries, and that any other is as it always was."""

from __future__ import annotations

import pytest

from splitrt.core import packet
from splitrt.core.trace import LENGTH, Mark, marked
from splitrt.errors import PacketError

MARK = Mark(bytes(range(1, 17)), bytes(range(17, 25)), 1)


def test_a_mark_survives_the_way():
    assert len(MARK.packed()) == LENGTH == 25
    assert marked(MARK.packed()) == MARK
    assert marked(b"") is None


@pytest.mark.parametrize(
    "raw",
    [b"\1", MARK.packed()[:-1], MARK.packed() + b"\0", bytes(25), b"\1" * 16 + bytes(9)],
)
def test_what_is_no_mark_is_an_error(raw):
    with pytest.raises(PacketError, match="trace"):
        marked(raw)


def test_a_frame_that_is_not_traced_has_the_bytes_it_had_before_there_were_traces():
    whole = packet.frame(7, 2, b"abc", 0.25, packet.Beside((32, 48), [b"xy"]), 5)
    golden = "1217080710021a036162632090a10f2805320220303a027879"  # of the revision before
    assert whole.SerializeToString().hex() == golden
    assert packet.frame(1, 0, b"", None).SerializeToString().hex() == "12020801"


def test_a_traced_frame_is_27_bytes_longer():
    plain, beside = packet.frame(7, 2, b"abc", None), packet.Beside(trace=MARK.packed())
    assert packet.frame(7, 2, b"abc", None, beside).ByteSize() == plain.ByteSize() + 27
