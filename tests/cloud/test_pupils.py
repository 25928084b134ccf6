"""A server that adapts exits: who gets a desk, what is counted, what a changed model undoes."""

from __future__ import annotations

import shutil
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest

from splitrt import Edge
from splitrt.cloud import Guard, Quota, Seen, Server
from splitrt.cloud.desk import ACTIVE, DESKS, OF_ONE, QUEUE, Desks, Whose
from splitrt.cloud.lesson import Lesson
from splitrt.cloud.tail import Tail
from splitrt.core.manifest import Manifest
from splitrt.core.revision import Revision
from splitrt.errors import ModelError, Refused
from splitrt.wire import adapt_pb2 as wire
from tests.cloud.test_reload import put, scaled
from tests.edge.test_loopback import soon
from tests.lessons import Class, Parrot, eager, sample, start

TOKENS = "one:0123456789abcdef\ntwo:fedcba9876543210\n"


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


@pytest.fixture
def manifest(model_dir) -> Manifest:
    return Manifest.load(model_dir)


class Nobody:
    """A listener that remembers how it was sent away."""

    def __init__(self) -> None:
        self.refused: grpc.StatusCode | None = None

    def tell(self, message) -> None: ...

    def leave(self) -> None: ...

    def refuse(self, code, words) -> None:
        self.refused = code


# desks


def whose(number: int, width: str = "full") -> Whose:
    return Whose(f"device-{number}", b"d" * 32, width)


def test_a_device_that_comes_again_finds_its_desk():
    desks = Desks()
    desk = desks.take(whose(1), None, Nobody(), 0.0)
    desks.give_back(desk, keep=True)
    assert desks.take(whose(1), None, Nobody(), 1.0) is desk
    desks.give_back(desk, keep=False)
    assert len(desks) == 0
    assert desks.take(whose(1), None, Nobody(), 2.0) is not desk


def test_two_calls_of_one_device_have_two_desks_and_no_more_than_its_share():
    desks, listener = Desks(), Nobody()
    found = {id(desks.take(whose(1), None, listener, 0.0)) for _ in range(OF_ONE)}
    assert len(found) == OF_ONE < DESKS
    with pytest.raises(Refused, match=f"{OF_ONE} exits of this device"):
        desks.take(whose(1), None, listener, 2 * ACTIVE)
    assert listener.refused is None


def test_the_least_active_makes_room_and_who_is_active_stays():
    desks, listeners = Desks(), [Nobody() for _ in range(DESKS)]
    for number, listener in enumerate(listeners):
        desks.take(whose(number), None, listener, float(number))
    with pytest.raises(Refused, match=f"{DESKS} exits are adapted already\nhelp: "):
        desks.take(whose(100), None, Nobody(), ACTIVE)
    desks.take(whose(100), None, Nobody(), ACTIVE + 3)
    assert len(desks) == DESKS
    refused = [listener.refused for listener in listeners]
    assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED] + [None] * (DESKS - 1)


def test_the_oldest_of_too_many_samples_goes(manifest):
    desk = Desks().take(whose(1), None, Nobody(), 0.0)
    kept = [desk.put(sample(manifest, seq).sample, 0.0) for seq in range(1, QUEUE + 3)]
    assert kept == [True] * QUEUE + [False] * 2
    waiting, _ = desk.collected()
    assert [one.seq for one in waiting] == list(range(3, QUEUE + 3))
    assert not desk.busy


def test_desks_have_their_turns(manifest):
    desks = Desks()
    some = [desks.take(whose(number), None, Nobody(), 0.0) for number in range(3)]
    for desk in some:
        desk.put(sample(manifest).sample, 0.0)
    turns = []
    for _ in range(6):
        turns.append(desks.next(0.0))
    assert set(turns[:3]) == set(turns[3:]) == set(some)
    some[1].collected()
    some[2].rests = 1.0
    assert [desks.next(0.0) for _ in range(3)] == [some[0]] * 3
    assert some[2] in [desks.next(1.0) for _ in range(3)]


# calls


def test_samples_are_taken_and_revisions_come_with_their_hashes(model_dir, manifest, monkeypatch):
    eager(monkeypatch)
    with Server(model_dir, port=0, threads=1, adapt=True) as server:
        with Class(server.address, start(manifest)) as pupil:
            assert pupil.ready.tail == manifest.digest and pupil.ready.rate == 20
            for seq in range(1, 4):
                pupil.put(sample(manifest, seq))
                assert pupil.until("taken").taken.seq == seq
            found = pupil.until("revision").revision
            decoded = Revision.decode(found.body, manifest)
            assert (found.number, found.width) == (decoded.number, decoded.width) == (1, "full")
            assert found.sha256 == decoded.sha256
            pupil.put(None)
            assert pupil.ended() == ("OK", "")
        [learner] = Parrot.made
        assert [len(packed) for packed, _, _ in learner.seen] == [manifest.widths[-1].elements] * 3
        assert learner.seen[0][1].tolist() == list(range(10))
        assert server.lessons == {"taken": 3, "sent": 1}
        assert server.tally == {}


def test_numbers_go_on_after_those_that_the_device_has_seen(model_dir, manifest, monkeypatch):
    eager(monkeypatch)
    with Server(model_dir, port=0, threads=1, adapt=True) as server:
        with Class(server.address, start(manifest, seen=41)) as pupil:
            for seq in range(1, 4):
                pupil.put(sample(manifest, seq))
            assert pupil.until("revision").revision.number == 42


def test_a_revision_that_was_made_for_another_tail_is_taken_back(model_dir, manifest):
    with Server(model_dir, port=0, threads=1, adapt=True) as server:
        first = start(manifest, used=7, seen=9, tail=b"o" * 32)
        with Class(server.address, first) as pupil:
            found = pupil.until("revision").revision
            assert (found.number, found.body, found.width) == (10, b"", "full")


def test_a_named_device_keeps_its_learner_over_calls(model_dir, manifest, monkeypatch, tmp_path):
    eager(monkeypatch)
    (tmp_path / "tokens").write_text(TOKENS)
    guard = Guard(tokens=tmp_path / "tokens")
    with Server(model_dir, port=0, threads=1, adapt=True, guard=guard) as server:
        one, other = (bearer(line.split(":")[1]) for line in TOKENS.splitlines())
        with pytest.raises(grpc.RpcError) as raised:
            Class(server.address, start(manifest))
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        for metadata in (one, one, other):
            used = {"used": 1, "seen": 1, "tail": manifest.digest} if Parrot.made else {}
            with Class(server.address, start(manifest, **used), metadata) as pupil:
                for seq in range(1, 4):
                    pupil.put(sample(manifest, seq))
                pupil.until("revision")
            assert soon(lambda: not server._front.streams)
        assert [len(learner.seen) for learner in Parrot.made] == [6, 3]
        assert Parrot.made[0].reverts == 0


def test_a_device_that_says_it_uses_none_has_dropped_the_last(model_dir, manifest, monkeypatch):
    eager(monkeypatch)
    with Server(model_dir, port=0, threads=1, adapt=True) as server:
        with Class(server.address, start(manifest)) as pupil:
            for seq in range(1, 4):
                pupil.put(sample(manifest, seq))
            number = pupil.until("revision").revision.number
            pupil.put(wire.ToTeacher(dropped=wire.Dropped(number=number + 5)))  # never sent
            pupil.put(wire.ToTeacher(dropped=wire.Dropped(number=number)))
            assert soon(lambda: Parrot.made[0].reverts == 1)
        assert server.lessons["reverted"] == 2


def test_a_learner_that_takes_its_revision_back_says_so(model_dir, manifest, monkeypatch):
    eager(monkeypatch)
    with Server(model_dir, port=0, threads=1, adapt=True) as server:
        with Class(server.address, start(manifest)) as pupil:
            for seq in range(1, 4):
                pupil.put(sample(manifest, seq))
            assert pupil.until("revision").revision.body
            Parrot.made[0].current = None
            pupil.put(sample(manifest, 4))
            found = pupil.until("revision").revision
            assert (found.number, found.body) == (2, b"")
            assert server.lessons["withdrawn"] == 1


def test_one_that_is_dropped_while_its_learner_works_does_not_come_again(
    model_dir, manifest, monkeypatch
):
    drop, dropped = threading.Event(), threading.Event()

    class Slow(Parrot):
        """Its fourth sample takes until the device has dropped what it had."""

        def add(self, *sample) -> None:
            super().add(*sample)
            if len(self.seen) == 4:
                drop.set()
                dropped.wait(20)

    eager(monkeypatch, learner=Slow)
    with Server(model_dir, port=0, threads=1, adapt=True) as server:
        with Class(server.address, start(manifest)) as pupil:
            for seq in range(1, 4):
                pupil.put(sample(manifest, seq))
            number = pupil.until("revision").revision.number
            pupil.put(sample(manifest, 4))
            assert drop.wait(20)
            pupil.put(wire.ToTeacher(dropped=wire.Dropped(number=number)))
            assert soon(lambda: server.lessons.get("reverted", 0) == 1)
            dropped.set()
            assert soon(lambda: Parrot.made[0].reverts == 1)
            for seq in (5, 6):
                pupil.put(sample(manifest, seq))
            found = pupil.until("revision").revision
            assert (found.number, bool(found.body)) == (2, True)
            assert len(Parrot.made[0].seen) == 6


def test_one_that_was_lost_on_its_way_is_sent_again(model_dir, manifest, monkeypatch, tmp_path):
    eager(monkeypatch)
    (tmp_path / "tokens").write_text(TOKENS)
    guard, metadata = Guard(tokens=tmp_path / "tokens"), bearer("0123456789abcdef")
    with Server(model_dir, port=0, threads=1, adapt=True, guard=guard) as server:
        with Class(server.address, start(manifest), metadata) as pupil:
            for seq in range(1, 4):
                pupil.put(sample(manifest, seq))
            body = pupil.until("revision").revision.body
        assert soon(lambda: not server._front.streams)
        with Class(server.address, start(manifest), metadata) as pupil:  # it has seen none
            pupil.put(sample(manifest))
            found = pupil.until("revision").revision
            assert found.number == 2 and len(found.body) == len(body)
        assert Parrot.made[0].reverts == 0


def test_two_devices_have_two_learners_and_neither_hears_of_the_other(
    model_dir, manifest, monkeypatch
):
    eager(monkeypatch)
    with Server(model_dir, port=0, threads=1, adapt=True) as server:
        with (
            Class(server.address, start(manifest)) as one,
            Class(server.address, start(manifest)) as other,
        ):
            for seq in range(1, 4):
                one.put(sample(manifest, seq))
            assert one.until("revision").revision.number == 1
            other.put(sample(manifest, 1))
            other.until("taken")
            assert soon(lambda: sorted(len(learner.seen) for learner in Parrot.made) == [1, 3])
            other.put(None)
            assert other.ended() == ("OK", "")


def test_what_a_quota_leaves_no_room_for_is_dropped_and_counted(model_dir, manifest, monkeypatch):
    eager(monkeypatch)
    quota = Quota(bytes_per_second=300.0)
    with Server(model_dir, port=0, threads=1, adapt=True, quota=quota) as server:
        with Class(server.address, start(manifest)) as pupil:
            for seq in range(1, 6):
                pupil.put(sample(manifest, seq))
            while pupil.until("taken").taken.seq < 5:
                pass
            assert soon(lambda: server.lessons.get("taken", 0) > 0)
            assert server.lessons["dropped"] > 0


def test_prometheus_reads_what_became_of_samples(model_dir, manifest, monkeypatch):
    eager(monkeypatch)
    with Server(model_dir, port=0, threads=1, adapt=True, seen=Seen(0, True)) as server:
        with Class(server.address, start(manifest)) as pupil:
            for seq in range(1, 4):
                pupil.put(sample(manifest, seq))
            pupil.until("revision")
            page = urllib.request.urlopen(f"http://{server.metrics}/metrics").read().decode()
    assert 'splitrt_lessons_total{event="taken"} 3.0' in page
    assert 'splitrt_lessons_total{event="sent"} 1.0' in page
    assert "splitrt_learners 1.0" in page


def test_without_adapt_there_is_no_such_call(server, manifest):
    with pytest.raises(grpc.RpcError) as raised:
        Class(server.address, start(manifest))
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "school" not in [one.name for one in threading.enumerate()]
    assert server.lessons == {}


def test_a_language_model_is_not_adapted(llama_dir):
    with pytest.raises(ModelError, match="not adapted\nhelp: "):
        Server(llama_dir, port=0, adapt=True)


# what changes while it serves


def test_another_tail_takes_back_what_was_learnt_of_the_old(model_dir, monkeypatch, tmp_path):
    eager(monkeypatch)
    current, second = tmp_path / "current", scaled(model_dir, tmp_path / "second", 4)
    put(current, model_dir)
    with Server(current, port=0, threads=1, adapt=True) as server:
        with Edge(model_dir, cloud=server.address, plan="exit", adapt=True) as edge:

            def taught(number: int) -> bool:
                edge(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
                return edge.revision >= number

            assert soon(lambda: taught(2))
            put(current, second)
            server.reload()
            assert soon(lambda: edge._pupil.study.seen > 2 and edge.revision == 0)
            assert soon(lambda: taught(4))  # by a learner of the new tail
            assert edge._pupil.study.tail == server.manifest.digest
    assert len({learner.subject.manifest.digest for learner in Parrot.made}) == 2


def test_closing_ends_lessons_at_once_and_frames_are_answered_to_the_end(
    model_dir, manifest, monkeypatch
):
    eager(monkeypatch)
    server = Server(model_dir, port=0, threads=1, adapt=True, grace=20.0)
    with Class(server.address, start(manifest)) as pupil:
        pupil.put(sample(manifest))
        pupil.until("taken")
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 10
        assert pupil.ended()[0] in ("OK", "UNAVAILABLE")
    assert "school" not in [one.name for one in threading.enumerate()]


class Failing(Parrot):
    """A learner that fails at its second sample."""

    def add(self, *sample) -> None:
        super().add(*sample)
        if len(self.seen) > 1:
            raise ValueError("/secret/path")


def test_a_learner_that_fails_ends_its_own_call_alone(model_dir, manifest, monkeypatch, image):
    eager(monkeypatch, learner=Failing)
    with Server(model_dir, port=0, threads=1, adapt=True) as server:
        with (
            Class(server.address, start(manifest)) as pupil,
            Class(server.address, start(manifest)) as other,
            Edge(model_dir, cloud=server.address, plan="q4") as edge,
        ):
            for seq in (1, 2):
                pupil.put(sample(manifest, seq))
            assert pupil.ended() == ("INTERNAL", "the server failed")
            other.put(sample(manifest))
            assert other.until("taken").taken.seq == 1
            assert edge(image).where == "cloud"


class Unable(Parrot):
    """A model of which nothing can be learnt."""

    def __init__(self, subject, plan) -> None:
        raise ModelError("its tail has no norms")


def test_a_model_that_cannot_be_adapted_is_said_to_the_device(model_dir, manifest, monkeypatch):
    eager(monkeypatch, learner=Unable)
    with Server(model_dir, port=0, threads=1, adapt=True) as server:
        with Class(server.address, start(manifest)) as pupil:
            pupil.put(sample(manifest))
            assert pupil.ended() == ("UNIMPLEMENTED", "this model cannot be adapted")


def test_the_directory_of_a_copy_is_where_its_learner_looks(model_dir, monkeypatch, tmp_path):
    eager(monkeypatch)
    folder = Path(shutil.copytree(model_dir, tmp_path / "copy"))
    manifest = Manifest.load(folder)
    with Server(folder, port=0, threads=1, adapt=True) as server:
        with Class(server.address, start(manifest)) as pupil:
            pupil.put(sample(manifest))
            assert soon(lambda: Parrot.made)
            assert Parrot.made[0].subject.folder == folder


def test_another_tail_that_comes_as_a_device_does_is_what_it_learns_of(
    model_dir, manifest, monkeypatch, tmp_path
):
    eager(monkeypatch)
    with Server(model_dir, port=0, threads=1, adapt=True) as server:
        folder = scaled(model_dir, tmp_path / "next", 4)
        other = Tail(folder, Manifest.load(folder), threads=1)
        other.succeed(server.tail)

        class Slow:
            """A device's context: while its metadata go, the server takes up the other tail."""

            def __init__(self, context) -> None:
                self.context = context

            def __getattr__(self, name: str):
                return getattr(self.context, name)

            async def send_initial_metadata(self, metadata) -> None:
                await self.context.send_initial_metadata(metadata)
                server._front.swap(other)

        real = Lesson.serve

        async def serve(self) -> None:
            self.context = Slow(self.context)
            await real(self)

        monkeypatch.setattr(Lesson, "serve", serve)
        with Class(server.address, start(manifest)) as device:
            assert device.ready.tail == other.manifest.digest
            [desk] = server._front.school._desks
            assert desk.subject.tail is server.tail is other
