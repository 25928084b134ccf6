"""The sum over a star's devices: exact where it says so, the same bits on each always."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from splitrt import LinkDown, PacketError, SplitrtError
from splitrt.star import EXACT, WAYS, Hub, Spoke, Way, fastest, measure, settle
from splitrt.star.part import Wire
from tests.conftest import ROOT
from tests.star.ring import PATIENCE, added, part, terms, together

SIZES = (1, 2, 3, 4, 8)


@pytest.mark.parametrize("devices", SIZES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_all_devices_hold_the_same_bits(devices, way):
    def work(party: Hub | Spoke) -> list[bytes]:
        party.way = way
        sums = [party.reduce(part(party.device, rows, seed=rows)) for rows in (1, 16, 1, 5)]
        return [one.tobytes() for one in sums]

    sums = together(terms(devices), work)
    assert all(one == sums[0] for one in sums)
    assert isinstance(sums[0], list) and len(sums[0]) == 4


@pytest.mark.parametrize("devices", SIZES)
@pytest.mark.parametrize("way", EXACT, ids=str)
def test_f32_is_numpys_sum_in_the_devices_order(devices, way):
    def work(party: Hub | Spoke) -> np.ndarray:
        party.way = way
        return party.reduce(part(party.device, 4))

    for whole in together(terms(devices), work):
        assert whole.tobytes() == added(devices, 4).tobytes()


@pytest.mark.parametrize(("wire", "most"), [("f16", 2e-3), ("q8", 3e-2)])
@pytest.mark.parametrize("kind", ["star", "mesh"])
def test_a_thin_wire_is_near_the_sum(kind, wire, most):
    def work(party: Hub | Spoke) -> np.ndarray:
        party.way = Way(kind, wire)
        return party.reduce(np.tanh(part(party.device, 4)))

    exact = sum(np.tanh(part(device, 4)) for device in range(4))
    for whole in together(terms(4), work):
        assert 0 < np.abs(whole - exact).max() < most


def test_the_order_of_adding_shows_in_these_numbers():
    backwards = sum(part(device, 4) for device in (3, 2, 1, 0))
    assert backwards.tobytes() != added(4, 4).tobytes()


def test_a_mesh_carries_parts_larger_than_its_sockets_hold():
    def work(party: Hub | Spoke) -> bytes:
        party.way = Way("mesh")
        return party.reduce(part(party.device, 600, 4096)).tobytes()  # 10 MB each

    for whole in together(terms(3, 4096, rows=600), work):
        assert whole == added(3, 600, 4096).tobytes()


def test_a_sum_may_replace_the_part():
    def work(party: Hub | Spoke) -> np.ndarray:
        own = part(party.device, 2)
        assert party.reduce(own, out=own) is own
        return own

    for whole in together(terms(3), work):
        assert whole.tobytes() == added(3, 2).tobytes()


def test_what_the_hub_says_and_casts_arrives():
    def work(party: Hub | Spoke) -> tuple[bytes, bytes]:
        if isinstance(party, Hub):
            party.tell(b"next: 3 rows")
            return b"next: 3 rows", party.broadcast(part(7, 3)).tobytes()
        return party.hear(), party.broadcast(timeout=PATIENCE).tobytes()

    told = together(terms(3), work)
    assert told == [(b"next: 3 rows", part(7, 3).tobytes())] * 3


def test_without_a_mesh_the_star_still_adds():
    def work(party: Hub | Spoke) -> tuple[bytes, list[Way]]:
        with pytest.raises(LinkDown, match="not every device reaches every other"):
            party.way = Way("mesh")
        return party.reduce(part(party.device, 1)).tobytes(), list(measure(party, rounds=2))

    stars = [way for way in WAYS if way.kind == "star"]
    assert together(terms(3), work, mesh=False) == [(added(3, 1).tobytes(), stars)] * 3


def test_another_shape_on_one_device_is_an_error_on_all():
    def work(party: Hub | Spoke) -> np.ndarray:
        return party.reduce(part(party.device, 2 if party.device == 1 else 1))

    hub, wrong, other = together(terms(3), work)
    assert isinstance(hub, PacketError) and "as many rows on all devices" in str(hub)
    assert isinstance(wrong, LinkDown) and isinstance(other, LinkDown)


def test_other_calls_on_one_device_are_an_error():
    def work(party: Hub | Spoke) -> object:
        if isinstance(party, Hub):
            return party.reduce(part(0, 1))
        return party.hear()

    hub, spoke = together(terms(2, timeout=0.5), work)
    assert isinstance(hub, LinkDown) and "sent nothing whole for 0.5 s" in str(hub)
    assert isinstance(spoke, LinkDown)


@pytest.mark.parametrize("way", EXACT, ids=str)
def test_a_silent_device_is_named_within_the_timeout(way):
    noticed = threading.Event()

    def work(party: Hub | Spoke) -> None:
        party.way = way
        party.reduce(part(party.device, 1))
        if party.device == 2:  # says nothing, and its lines stay open
            assert noticed.wait(PATIENCE)
            return
        try:
            party.reduce(part(party.device, 1))
        finally:
            if party.device == 0:
                noticed.set()

    hub, *_ = together(terms(3, timeout=0.5), work)
    assert isinstance(hub, LinkDown) and str(hub).startswith("device 2 at 127.0.0.1 sent nothing")


def test_after_an_error_the_star_is_over():
    def work(party: Hub | Spoke) -> None:
        if party.device == 1:
            return
        with pytest.raises(LinkDown, match=r"closed the line|is gone"):
            party.reduce(part(0, 1))
        with pytest.raises(LinkDown, match="this star is over: device 1"):
            party.reduce(part(0, 1))

    assert together(terms(2), work) == [None, None]


SPOKE = """
import sys, numpy as np
from splitrt.star import Spoke, Terms, Way
with Spoke(sys.argv[1], Terms(devices=2, hidden=96, timeout=20), device=1) as spoke:
    spoke.way = Way(sys.argv[2])
    while True:
        spoke.reduce(np.ones((1, 96), np.float32))
"""


@pytest.mark.parametrize("kind", ["star", "mesh"])
def test_a_killed_device_is_named(kind):
    with Hub("127.0.0.1:0", terms(2)) as hub:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", SPOKE, hub.address, kind]
        with subprocess.Popen(command, env=environment) as spoke:
            hub.gather(PATIENCE)
            hub.way = Way(kind)
            assert (hub.reduce(np.ones((1, 96), np.float32)) == 2).all()
            spoke.send_signal(signal.SIGKILL)
            with pytest.raises(LinkDown, match="device 1 at 127"):
                while True:
                    hub.reduce(np.ones((1, 96), np.float32))


def test_all_settle_on_one_way():
    def work(party: Hub | Spoke) -> tuple[Way, list[Way]]:
        times = settle(party, rounds=3)
        assert all(seconds > 0 for seconds in times.values())
        return party.way, list(times)

    ways = together(terms(3), work)
    assert ways == [(ways[0][0], list(WAYS))] * 3


def test_the_fastest_way_must_be_worth_the_change():
    star, mesh = Way(), Way("mesh", "q8")
    assert fastest({star: 1.0, mesh: 0.5}) == mesh
    assert fastest({star: 1.0, mesh: 0.95}) == star
    assert fastest({star: 1.0, mesh: 2.0}) == star
    with pytest.raises(SplitrtError, match="no way was measured"):
        fastest({})


@pytest.mark.parametrize("wire", ["f32", "f16", "q8"])
def test_a_wire_is_read_as_it_was_written(wire):
    codec = Wire(wire, 4, 96)
    rows, body = part(0, 3), np.zeros(codec.size(3), np.uint8)
    rows[1] = 0
    read, twice = np.empty_like(rows), np.ones_like(rows)
    codec.write(rows, body)
    codec.read(body, read)
    codec.add(body, twice)
    assert np.array_equal(twice, np.float32(1) + read) and not read[1].any()
    most = {"f32": 0, "f16": 2**-11, "q8": 0.5 / 127 * 1.001}[wire]
    assert (np.abs(read - rows) <= most * np.abs(rows).max(axis=1, keepdims=True) + 1e-7).all()


def test_what_is_not_finite_does_not_pass_for_a_number():
    rows, read = np.ones((3, 96), np.float32), np.empty((3, 96), np.float32)
    rows[0, 5], rows[1, 5] = np.nan, np.inf
    for name, bad in (("f32", 2), ("f16", 1), ("q8", 192)):
        codec = Wire(name, 3, 96)
        body = np.zeros(codec.size(3), np.uint8)
        codec.write(rows, body)
        codec.read(body, read)
        assert (~np.isfinite(read)).sum() == bad and np.isfinite(read[2]).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((1, 95), np.float32), "a part is"),
        (np.zeros((1, 96)), "a part is"),
        (np.zeros(96, np.float32), "a part is"),
        (np.zeros((17, 96), np.float32), "17 rows"),
        (np.zeros((0, 96), np.float32), "0 rows"),
    ],
)
def test_an_array_that_was_not_agreed_is_refused_before_anything_is_sent(wrong, words):
    with Hub("127.0.0.1:0", terms(1)) as hub:
        with pytest.raises(SplitrtError, match=words):
            hub.reduce(wrong)
        assert (hub.reduce(np.ones((1, 96), np.float32)) == 1).all()
