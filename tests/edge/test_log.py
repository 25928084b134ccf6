"""The log: what comes out is what went in, in memory or on disk, cut back or not."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrt.core.rows import BEGIN, chained
from splitrt.edge.log import Log


def payload(rows: int, seed: int = 0, size: int = 6) -> bytes:
    return np.random.default_rng(seed).bytes(rows * size)


def test_a_log_of_nothing_has_the_hash_of_nothing():
    log = Log(6)
    assert log.n == 0 and log.at(0) == BEGIN and log.read(0, 0) == b""


changes = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 9)),
        st.tuples(st.just("truncate"), st.integers(0, 40)),
    ),
    max_size=30,
)


@settings(deadline=None, derandomize=True)
@given(changes, st.sampled_from([1, 50, 1 << 20]))
def test_whatever_was_added_and_cut_the_bytes_and_hashes_are_those_of_what_is_left(todo, spill):
    log, kept = Log(6, spill), b""
    for seed, (what, count) in enumerate(todo):
        if what == "append":
            log.append(payload(count, seed))
            kept += payload(count, seed)
        else:
            log.truncate(count)
            kept = kept[: 6 * count]
    assert log.n == len(kept) // 6 and log.read(0, log.n) == kept
    assert log.read(log.n // 2, log.n) == kept[6 * (log.n // 2) :]
    assert [log.at(n) for n in range(1, log.n + 1)] == chained(BEGIN, kept, 6)
    log.close()


def test_a_long_log_goes_to_a_file_and_a_short_one_does_not():
    log = Log(6, spill=100)
    log.append(payload(10))
    assert not log.on_disk
    log.append(payload(10, 1))
    assert log.on_disk and log.read(0, 20) == payload(10) + payload(10, 1)
