"""The next token, by noise that two machines draw alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitrt.core.sample import Sampling, bits, likeliest, noise, pick
from splitrt.errors import PacketError

GOLDEN = [257643898, 3330864753, 912664534]
SEEDS, POSITIONS = st.integers(0, 2**63 - 1), st.integers(0, 2**20)


@given(SEEDS, POSITIONS)
def test_numpy_and_torch_draw_the_same_bits(seed, position):
    torch = pytest.importorskip("torch")
    ours = bits(np.arange(500, dtype=np.int64), seed, position)
    assert (ours == bits(torch.arange(500), seed, position).numpy()).all()
    assert ours.min() >= 0 and ours.max() < 2**32


@given(SEEDS, POSITIONS)
def test_noise_is_finite_and_another_position_has_another(seed, position):
    here = noise(300, seed, position)
    assert np.isfinite(here).all()
    assert not np.allclose(here, noise(300, seed, position + 1))


def test_the_noise_of_a_seed_never_changes():
    """Devices and servers of different ages must agree."""
    assert bits(np.arange(3, dtype=np.int64), 7, 11).tolist() == GOLDEN


def test_tokens_come_as_often_as_the_softmax_says():
    shares = np.array([0.05, 0.15, 0.3, 0.5])
    how = Sampling(temperature=0.5, seed=3)
    drawn = [pick(0.5 * np.log(shares), how, position) for position in range(8000)]
    assert np.abs(np.bincount(drawn) / len(drawn) - shares).max() < 0.02


def test_without_temperature_the_best_is_taken_and_of_equals_the_first():
    assert pick(np.array([1.0, 3.0, 3.0]), Sampling(), 5) == 1


def test_top_p_leaves_the_fewest_likely_tokens():
    scaled = np.log(np.array([0.1, 0.6, 0.25, 0.05]))
    assert likeliest(scaled, 0.59).tolist() == [False, True, False, False]
    assert likeliest(scaled, 0.61).tolist() == [False, True, True, False]
    how = Sampling(temperature=1.0, top_p=0.8, seed=1)
    assert {pick(scaled, how, position) for position in range(300)} == {1, 2}


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"seed": -1}]
)
def test_a_sampling_that_makes_no_sense_is_an_error(wrong):
    with pytest.raises(PacketError, match=next(iter(wrong))):
        Sampling(**wrong)
