"""Hidden rows as bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitrt.core.rows import BEGIN, CODECS, Rows, chained
from splitrt.errors import PacketError


def drawn(count, hidden, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, hidden)).astype(np.float32)
    rows[:, hidden // 3] += 300  # the outlier channel that real Llamas have
    return rows


def test_f32_is_exact():
    rows = drawn(5, 96)
    assert (Rows("f32", 96).decode(Rows("f32", 96).encode(rows), 5) == rows).all()


@pytest.mark.parametrize("codec, within", [("f16", 1e-3), ("q8", 0.02), ("q4", 0.3)])
@pytest.mark.parametrize("hidden", [65, 96, 2048])
def test_a_row_comes_back_nearly_as_it_was_whatever_its_outlier(codec, within, hidden):
    rows, packer = drawn(4, hidden), Rows(codec, hidden)
    back = packer.decode(packer.encode(rows), 4)
    others = np.delete(np.arange(hidden), hidden // 3)
    assert np.abs(back - rows)[:, others].max() < within * 2
    assert np.abs(back / rows - 1)[:, hidden // 3].max() < 1e-3


@pytest.mark.parametrize("codec", CODECS)
def test_a_row_has_the_same_bytes_alone_and_among_others(codec):
    rows, packer = drawn(6, 130), Rows(codec, 130)
    payload = packer.encode(rows)
    alone = b"".join(packer.encode(rows[i : i + 1]) for i in range(6))
    assert alone == payload
    assert len(payload) == 6 * packer.size


@pytest.mark.parametrize("codec", CODECS)
@given(st.binary(max_size=600), st.integers(0, 4))
def test_any_bytes_are_rows_of_finite_numbers_or_an_error(codec, payload, count):
    packer = Rows(codec, 66)
    try:
        rows = packer.decode(payload, count)
    except PacketError:
        return
    assert rows.shape == (count, 66) and np.isfinite(rows).all()


def test_an_outlier_outside_the_row_is_an_error():
    packer = Rows("q8", 64)
    payload = bytearray(packer.encode(drawn(1, 64)))
    payload[4:6] = (64).to_bytes(2, "little")
    with pytest.raises(PacketError, match="outlier at 64 of 64"):
        packer.decode(bytes(payload), 1)


def test_the_logs_of_two_sides_agree_where_their_rows_do():
    payload = bytes(range(12))
    whole = chained(BEGIN, payload, 4)
    assert chained(whole[0], payload[4:], 4) == whole[1:]
    assert chained(BEGIN, payload[:4] + b"\0" + payload[5:], 4)[1:] != whole[1:]
