"""A revision of the exit: what it computes, what it weighs, and what a stranger may send."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from splitrt.core.gate import judge, probabilities
from splitrt.core.manifest import Manifest
from splitrt.core.revision import LARGEST, Revision, averaged, corrected, mark, wanted
from splitrt.core.scales import scale
from splitrt.errors import PacketError
from tests.conftest import ROOT

MODEL = ROOT / "models" / "cifar10-resnet"
MANIFEST = Manifest.load(MODEL)
SHAPES = wanted(10, 32, 48)


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    found = {name: random.normal(size=shape) / 4 for name, shape in SHAPES.items()}
    return {**found, "scale": np.array([1.5])}


def revision(seed: int = 0) -> Revision:
    return Revision(3, MANIFEST.contract, "w32", "w32-r125", weights(seed))


def said(**other: object) -> dict[str, str]:
    whose = {"number": 3, "model": MANIFEST.contract.hex(), "width": "w32", "plan": "w32-r125"}
    return {"revision": json.dumps({**whose, **other})}


def body(header: dict[str, str], **other: np.ndarray) -> bytes:
    halves = {name: array.astype(np.float16) for name, array in weights().items()}
    return save({**halves, **other}, header)


def unsaid() -> bytes:
    """A file in whose header stands null for what it says of itself."""
    header = b'{"__metadata__":null}   '
    return len(header).to_bytes(8, "little") + header


def test_a_revision_arrives_as_it_was_sent():
    sent = revision()
    found = Revision.decode(sent.encode(), MANIFEST)
    assert (found.number, found.model, found.width, found.plan) == (
        3, MANIFEST.contract, "w32", "w32-r125",
    )  # fmt: skip
    values, logits = np.random.default_rng(1).normal(size=(2, 32, 4, 4))[0], np.arange(10.0)
    assert np.array_equal(found(logits, values), sent(logits, values))
    assert found.sha256 == sent.sha256 and found.encode() == sent.encode()


def test_it_weighs_less_than_eight_kilobytes():
    assert len(revision().encode()) <= 8 << 10


def test_it_is_one_layer_of_maps_beside_the_exit():
    own = {name: np.zeros(shape) for name, shape in SHAPES.items()} | {"scale": np.array([2.0])}
    own["bias"][4] = 3
    own["mix"][7, 5] = 1  # the eighth map is the sixth channel
    own["join"][1, 7], own["join"][2, 48 + 7] = 10, 100  # its mean, its largest
    values = np.zeros((32, 2, 2), np.float32)
    values[5] = [[1, -4], [3, 0]]
    found = Revision(1, MANIFEST.contract, "w32", "w32-r125", own)(np.arange(10.0), values)
    assert found.dtype == np.float32
    assert found.tolist() == [0, 2 + 10, 4 + 300, 6, 8 + 3, 10, 12, 14, 16, 18]


def test_one_with_nothing_learnt_changes_no_answer_by_a_bit():
    own = {name: np.zeros(shape) for name, shape in SHAPES.items()} | {"scale": np.ones(1)}
    nothing = Revision(1, MANIFEST.contract, "w32", "w32-r125", own)
    logits = np.random.default_rng(2).normal(size=10).astype(np.float32)
    found = nothing(logits, np.ones((32, 4, 4), np.float32))
    assert np.array_equal(found, logits)
    assert judge(found, MANIFEST.exit) == judge(logits, MANIFEST.exit)


def test_it_fits_streams_beyond_its_edge_only():
    own = {**weights(), "axis": np.zeros(32), "edge": np.array([0.5])}
    own["axis"][3] = 1
    found, stream = Revision(1, MANIFEST.contract, "w32", "w32-r125", own), np.zeros(32)
    assert not found.fits(stream)
    stream[3] = 0.6
    assert found.fits(stream)


SERVER, SHIPPED, REVISED = np.random.default_rng(4).normal(size=(3, 10)).astype(np.float32) * 3


def test_a_correction_multiplies_shares_by_what_the_revision_made_of_the_exits():
    found = corrected(SERVER, SHIPPED, REVISED, 0.6)
    assert found.dtype == np.float32
    wanted = probabilities(SERVER) * probabilities(REVISED, 0.6) / probabilities(SHIPPED, 0.6)
    assert np.allclose(probabilities(found), wanted / wanted.sum(), rtol=1e-4)
    assert np.array_equal(corrected(SERVER, SHIPPED, SHIPPED, 0.6), SERVER)


def test_an_average_is_of_shares():
    found = averaged(SERVER[None], REVISED, 0.6)
    assert found.dtype == np.float32 and found.shape == (1, 10)
    wanted = (probabilities(SERVER) + probabilities(REVISED, 0.6)) / 2
    assert np.allclose(np.exp(found[0]), wanted, rtol=1e-4)


def test_the_largest_numbers_stay_numbers():
    most = np.float32([0, -3e38])
    for found in (corrected(-most, most, -most, 0.5), averaged(most, most, 0.5)):
        assert np.isfinite(found).all() and found.dtype == np.float32


def test_the_mark_of_a_frame_is_each_channels_mean():
    values = np.array([[[1.0, 3.0]], [[-2.0, 2.0]]], np.float32)
    assert mark(values).tolist() == [2, 0]


def test_the_device_makes_the_values_that_the_server_makes():
    from splitrt.cloud.tail import Tail

    tail, plan = Tail(MODEL, MANIFEST, threads=1), MANIFEST.plan("w32-r125")
    codes = np.random.default_rng(0).integers(0, 16, (32, 4, 4), np.uint8)
    there = tail._values(plan.name, [tail.codecs[plan.name].pack(codes)], None)[0].numpy()
    here = scale(MODEL, MANIFEST, plan)(codes)
    assert here.dtype == np.float32 and np.array_equal(here, there)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (b"", "no safetensors"),
        (b"\xff" * 100, "no safetensors"),
        (b"\x00" * (LARGEST + 1), "at most 65536 wanted"),
        (revision().encode()[:-1], "no safetensors"),
        (revision().encode() + b"\x00", "no safetensors"),
        (body({}), "does not say whose"),
        (unsaid(), "does not say whose"),
        (body({"revision": "[" * 5000}), "does not say whose"),
        (body({"revision": "[]"}), "does not say whose"),
        (body(said(model="00" * 32)), "revision of model 000000000000…, wanted"),
        (body(said(number=0)), "number 0, wanted 1 to"),
        (body(said(number=True)), "number True"),
        (body(said(number=2**31)), "wanted 1 to 2147483647"),
        (body(said(plan="w32-f32")), "codes of 'w32-f32', no such plan"),
        (body(said(plan="w32-jpeg")), "codes of 'w32-jpeg', no such plan"),
        (body(said(plan="w32-exit")), "codes of 'w32-exit', no such plan"),
        (body(said(plan="x" * 4000)), "no such plan"),
        (body(said(plan=["w32-r125"])), "no such plan"),
        (body(said(width="w16")), "exit of 'w16', no such exit"),
        (body(said(width="w16", plan="w16-r125")), "axis is F16 .32., wanted F16 .16."),
        (body(said(), extra=np.zeros(1, np.float16)), "wanted .'axis', 'bias'"),
        (body(said(), bias=np.zeros(10, np.float32)), "bias is F32 .10., wanted F16 .10."),
        (body(said(), bias=np.zeros((10, 1), np.float16)), "bias is F16 .10, 1., wanted"),
        (body(said(), bias=np.full(10, np.nan, np.float16)), "NaN or infinity"),
        (body(said(), scale=np.zeros(1, np.float16)), "scales by 0.0, wanted more than 0"),
        (body(said(), lift=np.zeros((0,), np.float16)), "lift has shape .0., wanted 1 to 1024"),
        (body(said(), lift=np.zeros(1025, np.float16)), "wanted 1 to 1024"),
        (body(said(), lift=np.zeros((48, 1), np.float16)), "lift has shape"),
    ],
)  # fmt: skip
def test_what_is_no_revision_for_this_model_is_refused(wrong, message):
    with pytest.raises(PacketError, match=message) as caught:
        Revision.decode(wrong, MANIFEST)
    assert "\nhelp: " in str(caught.value)


def test_changed_bytes_never_end_but_as_a_revision_or_a_packet_error():
    """Its hash is checked where it arrives; this is for a server that hashes what is wrong."""
    sound, random = revision().encode(), np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(sound)
        for place in random.integers(0, 700, 3):
            changed[place] = random.integers(256)
        try:
            Revision.decode(bytes(changed), MANIFEST)
        except PacketError:
            continue


def test_weights_beyond_half_precision_are_refused_where_they_arrive():
    with np.errstate(over="ignore"):
        made = replace(revision(), weights={**weights(), "bias": np.full(10, 1e9)})
    with pytest.raises(PacketError, match="NaN or infinity"):
        Revision.decode(made.encode(), MANIFEST)
