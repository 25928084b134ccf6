"""Side data: what the caller gives, and what a peer sends."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from splitrt.core.side import Side, pack, unpack
from splitrt.errors import PacketError

WANTED = [Side(name="size", shape=[2], dtype="int64"), Side(name="gain", shape=[], dtype="float32")]


def test_what_is_packed_is_unpacked():
    parts = pack(WANTED, {"gain": np.float32(0.5), "size": np.array([480, 640], np.int32)})
    assert [len(part) for part in parts] == [16, 4]
    size, gain = unpack(WANTED, parts)
    assert size.tolist() == [480, 640] and size.dtype == np.int64
    assert gain == 0.5 and gain.shape == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": np.array([1, 2])}, "takes .'size', 'gain'."),
        ({"size": np.array([1, 2]), "gain": 1.0, "more": 1}, "takes"),
        ({"size": np.array([1, 2, 3]), "gain": 1.0}, "int64 .2."),
        ({"size": np.array([1.5, 2.5]), "gain": 1.0}, "float64"),
        ({"size": np.array([1, 2]), "gain": np.nan}, "NaN"),
        ({"size": np.array(["a", "b"]), "gain": 1.0}, "should be"),
    ],
)
def test_what_the_caller_gives_wrong_is_said(given, words):
    with pytest.raises(PacketError, match=words):
        pack(WANTED, given)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [bytes(16)],
        [bytes(16), bytes(4), b""],
        [bytes(15), bytes(4)],
        [bytes(16), bytes(1 << 20)],
        [bytes(16), np.array(np.inf, "<f4").tobytes()],
        [bytes(16), np.array(np.nan, "<f4").tobytes()],
    ],
)
def test_what_a_peer_sends_wrong_is_a_packet_error(parts):
    with pytest.raises(PacketError):
        unpack(WANTED, parts)


@pytest.mark.parametrize(
    "wrong",
    [{"shape": [0]}, {"shape": [2**40]}, {"dtype": "object"}, {"name": "a/b"}, {"shape": [3]}],
)
def test_a_side_tensor_is_plain_and_small(wrong):
    with pytest.raises(ValidationError):
        Side(**{"name": "size", "shape": [2], "picture": True, **wrong})
