"""Spokes join a hub over gRPC, get their weights, and follow it."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from splitrt import LinkDown, SplitrtError
from splitrt.star import EXACT
from splitrt.star.call import agreed
from splitrt.star.point import Point
from splitrt.star.roster import Roster
from splitrt.star.store import Store
from splitrt.star.work import wanted
from tests.star.crowd import CALM, LOCAL, Sums, grown, points
from tests.star.toy import LONG, Toy, until


def test_spokes_join_fetch_and_follow(roster, star, tmp_path):
    with points(roster.address, tmp_path, ["ann", "bob"]):
        guests = roster.wait(2, LONG)
        assert {one.name for one in guests} == {"ann", "bob"} and roster.guests == tuple(guests)
        assert all(0 < one.seconds < LONG and one.memory > 0 and one.disk > 0 for one in guests)
        with Sums(roster, star, 1, {guests[0]: [1], guests[1]: [2]}) as step:
            assert np.allclose(step([0]), grown(star.shape.hidden), rtol=1e-5)
            assert np.array_equal(step([0]), step([0]))
            until(lambda: all(one.beat.steps == 3 for one in guests), "no beat told of the steps")
        for one in guests:
            assert one.beat.epoch == 1 and one.beat.peak > 1 << 20
            assert one.beat.compute > 0 and one.beat.reduce > 0 and one.beat.load == 0


def test_a_way_that_is_measured_is_the_same_everywhere(roster, star, tmp_path):
    with points(roster.address, tmp_path, ["ann", "bob"]):
        ann, bob = roster.wait(2, LONG)
        with Sums(roster, star, 1, {ann: [1], bob: [2]}, EXACT) as step:
            assert np.allclose(step([0], slow=0.1), grown(star.shape.hidden), rtol=1e-5)
            until(lambda: ann.beat.steps == bob.beat.steps == 1, "no beat told of the step")
            assert all(one.beat.wait > one.beat.reduce > 0 for one in (ann, bob))  # for the hub


def test_a_spoke_fetches_its_own_files_alone_and_never_twice(roster, star, tmp_path, monkeypatch):
    fetched: list[bytes] = []
    whole = roster._lobby._depot.path
    monkeypatch.setattr(
        roster._lobby._depot, "path", lambda sha256: fetched.append(sha256) or whole(sha256)
    )
    with points(roster.address, tmp_path, ["ann"]):
        (ann,) = roster.wait(1, LONG)
        with Sums(roster, star, 1, {ann: [2]}):
            pass
        needed = {bytes.fromhex(star.devices[2].files[name]) for name in wanted(star, 2)}
        probe = {
            bytes.fromhex(star.devices[1].files[name]) for name in ("feed-0.onnx", "feed-0.bin")
        }
        assert set(fetched) == needed | probe and len(fetched) == len(set(fetched))
        del fetched[:]
        with Sums(roster, star, 2, {ann: [1, 2]}) as step:
            assert np.allclose(step([0]), grown(star.shape.hidden), rtol=1e-5)
        extra = {bytes.fromhex(star.devices[1].files[name]) for name in wanted(star, 1)}
        assert set(fetched) == extra - needed - probe
    del fetched[:]
    with points(roster.address, tmp_path, ["ann"]):
        until(lambda: [one for one in roster.guests if one is not ann], "it did not come again")
        assert fetched == []
    folders = list((tmp_path / "ann" / "models").iterdir())
    assert [one.name for one in folders] == [star.digest.hex()]
    assert not list((tmp_path / "ann" / "files").glob("*.part"))


def test_a_division_follows_another_and_a_rest_says_nothing(star_dir, star, tmp_path):
    news: list[tuple[str, str]] = []
    told = lambda guest, why: news.append((guest.name, why))  # noqa: E731
    with Roster(star_dir, star, LOCAL, patience=CALM, gone=told) as roster:
        with points(roster.address, tmp_path, ["ann", "bob"]):
            ann, bob = roster.wait(2, LONG)
            for epoch, division in (
                (1, {ann: [1], bob: [2]}),
                (2, {bob: [2, 1]}),
                (5, {ann: [1], bob: [2]}),
            ):
                with Sums(roster, star, epoch, division) as step:
                    assert np.allclose(step([0]), grown(star.shape.hidden), rtol=1e-5)
                    roster.rest()
            assert news == []


def test_sums_that_fail_at_a_spoke_are_told_and_it_stays(star_dir, star, tmp_path):
    news: list[tuple[str, str]] = []
    told = lambda guest, why: news.append((guest.name, why))  # noqa: E731
    with Roster(star_dir, star, LOCAL, patience=CALM, gone=told) as roster:
        with points(roster.address, tmp_path, ["ann"]):
            (ann,) = roster.wait(1, LONG)
            with Sums(roster, star, 1, {ann: [1, 2]}):
                pass
            until(lambda: news, "the hub did not learn that its sums had failed")
            assert news[0][0] == "ann" and "the hub" in news[0][1]
            assert roster.guests == (ann,) and ann.alive and ann.lost[0] == 1
            with Sums(roster, star, 2, {ann: [1, 2]}) as step:
                assert np.allclose(step([0]), grown(star.shape.hidden), rtol=1e-5)


def test_layers_that_do_not_load_are_told_by_name(roster, star, tmp_path):
    def broken(*_: object) -> Toy:
        raise MemoryError("no room at all")

    with points(roster.address, tmp_path, ["ann"], layers=broken):
        (ann,) = roster.wait(1, LONG)
        with pytest.raises(LinkDown, match=r"ann cannot hold its part: MemoryError: no room"):
            Sums(roster, star, 1, {ann: [1, 2]})
        assert roster.guests == (ann,)


def test_who_cannot_is_said_while_others_still_load(roster, star, tmp_path):
    loading = threading.Event()

    def slow(*given: object) -> Toy:
        loading.wait(LONG)
        return Toy(*given)

    def broken(*_: object) -> Toy:
        raise MemoryError("no room at all")

    with points(roster.address, tmp_path, ["ann"], layers=slow):
        (ann,) = roster.wait(1, LONG)
        with points(roster.address, tmp_path, ["bob"], layers=broken):
            _, bob = roster.wait(2, LONG)
            for epoch, division in ((1, {ann: [1], bob: [2]}), (2, {bob: [2], ann: [1]})):
                with pytest.raises(LinkDown, match="bob cannot hold its part"):
                    roster.hold(epoch, division, port=1, rows=4, longest=64, timeout=LONG)
                assert ann.ready == 0
            loading.set()


def test_a_hold_that_makes_no_sense_ends_the_stay_and_it_joins_again(roster, star, tmp_path):
    with points(roster.address, tmp_path, ["ann"]):
        (ann,) = roster.wait(1, LONG)
        with pytest.raises(LinkDown, match="ann is lost"):
            roster.hold(1, {ann: [7]}, port=1, rows=4, longest=64, timeout=LONG)
        until(lambda: roster.guests and roster.guests[0] is not ann, "it did not come again")


def test_a_hub_that_returns_finds_its_spokes_again(star_dir, star, tmp_path):
    with Roster(star_dir, star, LOCAL, patience=CALM) as roster:
        with points(roster.address, tmp_path, ["ann"]):
            address = roster.address
            assert len(roster.wait(1, LONG)) == 1
            roster.close()
            with Roster(star_dir, star, address, patience=CALM) as again:
                (ann,) = again.wait(1, LONG)
                with Sums(again, star, 1, {ann: [1, 2]}) as step:
                    assert np.allclose(step([0]), grown(star.shape.hidden), rtol=1e-5)


def test_two_of_one_name_are_told_apart(roster, tmp_path):
    with (
        points(roster.address, tmp_path / "a", ["pi"]),
        points(roster.address, tmp_path / "b", ["pi"]),
    ):
        assert {one.name for one in roster.wait(2, LONG)} == {"pi", "pi-2"}


def test_a_spoke_that_waits_is_invited_and_asked_again_when_it_returns(roster, star, tmp_path):
    with Point(wait=LOCAL, layers=Toy, store=tmp_path, name="ann") as point:
        address = point.address
        roster.invite(address)
        (ann,) = roster.wait(1, LONG)
        assert ann.name == "ann"
    until(lambda: not roster.guests, "its end was not noticed")
    with Point(wait=address, layers=Toy, store=tmp_path, name="ann"):
        (ann,) = roster.wait(1, LONG)
        with Sums(roster, star, 1, {ann: [1, 2]}) as step:
            assert np.allclose(step([0]), grown(star.shape.hidden), rtol=1e-5)


def test_nobody_there_is_fewer_guests(roster):
    assert roster.wait(1, 0.05) == []


def test_a_point_says_what_is_wrong_with_it(tmp_path):
    for given, told in (
        ({}, "give one of the two"),
        ({"join": "a:1", "wait": LOCAL}, "give one of the two"),
        ({"join": "nowhere"}, "host:port"),
        ({"join": "a:1", "name": "a b"}, "letters, digits"),
        ({"wait": "192.0.2.1:1"}, "cannot be bound"),
    ):
        with pytest.raises(SplitrtError, match=told):
            Point(layers=Toy, store=tmp_path, **given)


def test_a_file_that_the_hub_lost_is_said(star_dir, star, tmp_path):
    """Its directory holds a link there: what is behind it is not sent."""
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(star_dir, folder)
    (folder / "spoke-2" / "feed-1.bin").unlink()
    (folder / "spoke-2" / "feed-1.bin").symlink_to("/etc/hostname")
    with Roster(folder, star, LOCAL, patience=CALM) as roster:
        with points(roster.address, tmp_path, ["ann"]):
            (ann,) = roster.wait(1, LONG)
            with pytest.raises(LinkDown, match=r"the hub has no spoke-2/feed-1\.bin"):
                Sums(roster, star, 1, {ann: [2]})


def test_the_terms_of_another_epoch_or_model_are_others(star):
    one = agreed(star, parts=(1, 1, 1), rows=4, epoch=1)
    assert one.model != agreed(star, parts=(1, 1, 1), rows=4, epoch=2).model
    assert replace(one, timeout=1.0).shared == one.shared and star.digest.hex() in one.model


def test_a_store_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SplitrtError, match="--store where this user may write"):
        Store(tmp_path / "file")


def test_a_shard_of_the_hub_is_its_layers_and_not_the_words(star):
    names = set(wanted(star, 0))
    assert names == set(wanted(star, 1)) == set(star.devices[1].files)
    assert not any("token" in name or "embed" in name or "voice" in name for name in names)
    assert set(star.devices[0].files) > names
