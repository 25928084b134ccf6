"""An exit that is adapted: what a device tells, takes, refuses, drops; and no frame is lost."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from splitrt import Edge, Pictures, Result, SplitrtError
from splitrt.cloud import Server
from splitrt.cloud.tail import Tail
from splitrt.core.codec import codecs
from splitrt.core.manifest import Manifest
from splitrt.core.revision import averaged, corrected
from splitrt.daemon import arrays
from splitrt.daemon.outlet import line
from splitrt.daemon.seen import Seen
from splitrt.edge.pupil import Pupil
from splitrt.edge.satchel import FASTEST, KEPT, SILENCE, Satchel
from splitrt.edge.study import LEAST, WINDOW, Study, View
from splitrt.errors import PacketError
from splitrt.wire import adapt_pb2 as wire
from tests.cloud.test_reload import scaled
from tests.conftest import ROOT, pictures
from tests.edge.test_kill import Killable
from tests.edge.test_loopback import frames, served, soon
from tests.lessons import (
    FAVOUR,
    Parrot,
    after_ready,
    eager,
    favouring,
    ready,
    teaching,
    told,
)

SHIPPED = ROOT / "models" / "cifar10-resnet"


@pytest.fixture(scope="module")
def manifest(model_dir) -> Manifest:
    return Manifest.load(model_dir)


def study(folder: Path, manifest: Manifest) -> Study:
    return Study(folder, manifest, manifest.widths[-1], codecs(folder, manifest))


def adopted(own: Study, revision) -> None:
    own.adopt(revision.number, revision.width, revision.sha256, revision.encode())


def best(result) -> int:
    return int(result.outputs["logits"].argmax())


# without a revision


@pytest.mark.parametrize("plan", [None, "exit", "q8", "q4", "jpeg"])
def test_without_a_revision_every_answer_is_as_before_bit_for_bit(model_dir, server, plan):
    with (
        Edge(model_dir, cloud=server.address, plan=plan) as plain,
        Edge(model_dir, cloud=server.address, plan=plan, adapt=True) as adapted,
    ):
        for image in pictures(20, seed=4).images:
            one, other = plain(image), adapted(image)
            assert np.array_equal(one.outputs["logits"], other.outputs["logits"])
            assert (one.where, one.plan, one.confidence, one.sent_bytes) == (
                other.where, other.plan, other.confidence, other.sent_bytes,
            )  # fmt: skip
            assert other.revision == 0


def test_the_values_are_those_that_the_server_has_to_the_bit():
    manifest = Manifest.load(SHIPPED)
    tail = Tail(SHIPPED, manifest, threads=1)
    for width in manifest.widths:
        own = Study(SHIPPED, manifest, width, codecs(SHIPPED, manifest))
        codes = np.random.default_rng(0).integers(0, 8, width.shape, np.uint8)
        packed = tail.open(own.plan.name, own.codec.encode(codes))
        theirs = tail._values(own.plan.name, [packed], None)[0].numpy()
        assert np.array_equal(own.values(codes), theirs)


def test_what_cannot_be_adapted_is_said_at_once(model_dir, plain_dir):
    with pytest.raises(SplitrtError, match=r"needs a server\nhelp: pass cloud="):
        Edge(model_dir, adapt=True)
    with pytest.raises(SplitrtError, match="has no exit to adapt\nhelp: "):
        Edge(plain_dir, cloud="127.0.0.1:1", adapt=True)
    assert not [one.name for one in threading.enumerate() if one.name == "pupil"]


# what a revision does


def test_a_revision_answers_and_judges_from_the_next_frame_on(model_dir, manifest, image):
    own = study(model_dir, manifest)
    shipped = np.linspace(-1, 1, 10).astype(np.float32)
    codes = np.ones(manifest.widths[-1].shape, np.uint8)
    assert own.view(shipped, codes).logits is shipped
    adopted(own, favouring(manifest))
    seen = own.view(shipped, codes)
    assert (seen.number, int(seen.logits.argmax()), own.used) == (1, 3, 1)
    assert seen.shipped is shipped


def test_one_for_other_streams_is_kept_and_not_used(model_dir, manifest):
    own = study(model_dir, manifest)
    shipped, codes = np.ones(10, np.float32), np.ones(manifest.widths[-1].shape, np.uint8)
    own.view(shipped, codes)
    adopted(own, favouring(manifest, edge=1.0))
    seen = own.view(shipped, codes)
    assert own.used == 1 and seen.number == 0 and seen.logits is shipped


def test_a_device_that_answers_all_itself_is_taught_and_can_go_back(model_dir, manifest, image):
    heard: list[wire.ToTeacher] = []
    with teaching(after_ready(told(favouring(manifest)), heard=heard)) as address:
        with (
            Edge(model_dir, plan="exit") as plain,
            Edge(model_dir, cloud=address, plan="exit", adapt=True) as edge,
        ):
            before = plain(image)
            assert soon(lambda: edge.revision == 1)
            first, second = edge(image), edge(image)
            assert (second.where, second.plan, second.revision, best(second)) == (
                "edge", "exit", 1, 3,
            )  # fmt: skip
            edge.revert()
            after = edge(image)
            assert (edge.revision, after.revision) == (0, 0)
            assert np.array_equal(after.outputs["logits"], before.outputs["logits"])
            assert after.confidence == before.confidence
            assert soon(lambda: any(one.HasField("dropped") for one in heard))
    assert first.outputs and heard[0].start.width == "full"
    assert [one.dropped.number for one in heard if one.HasField("dropped")] == [1]


def test_the_server_takes_its_revision_back_with_an_empty_one(model_dir, manifest, image, caplog):
    empty = wire.ToPupil(revision=wire.Revision(number=2, width="full"))
    with caplog.at_level(logging.WARNING):
        with teaching(after_ready(told(favouring(manifest)), empty)) as address:
            with Edge(model_dir, cloud=address, plan="exit", adapt=True) as edge:
                assert soon(lambda: edge._pupil.study.seen == 2)
                assert edge.revision == 0 and edge(image).revision == 0
    assert "revision 1 is dropped" in caplog.text


def test_revisions_swap_between_frames_of_a_stream_and_none_is_lost(model_dir, monkeypatch):
    eager(monkeypatch)
    with Server(model_dir, port=0, threads=1, adapt=True) as server:
        with Edge(model_dir, cloud=server.address, plan="exit", adapt=True) as edge:
            assert soon(lambda: edge._pupil.up)

            def slowly():
                for frame in frames(250):
                    yield frame
                    time.sleep(0.01)

            results = list(edge.stream(slowly()))
            lessons = dict(server.lessons)
    assert [frame.index for frame, _ in results] == list(range(250))
    numbers = [result.revision for _, result in results]
    assert numbers == sorted(numbers) and numbers[-1] >= 2
    for _, result in results:
        assert result.where == "edge" and (best(result) == 3 or result.revision == 0)
    assert lessons["sent"] >= 2 and lessons["taken"] >= 6


# what it makes of the server's answer


@pytest.mark.parametrize("plan", ["q8", "q4", "jpeg"])
def test_an_answer_of_the_server_is_blended_where_a_revision_is_used_for_its_frame(
    model_dir, manifest, server, image, plan
):
    temperature = manifest.widths[-1].exit.temperature
    with teaching(after_ready(told(favouring(manifest)))) as other:
        with (
            Edge(model_dir, plan="exit") as local,
            Edge(model_dir, cloud=server.address, plan=plan) as plain,
            Edge(model_dir, cloud=f"{server.address},{other}", plan=plan, adapt=True) as edge,
        ):
            assert soon(lambda: edge.revision == 1)
            shipped, there = (one(image).outputs["logits"] for one in (local, plain))
            found = edge(image)
            revised = shipped + FAVOUR * np.eye(10, dtype=np.float32)[3]
            better = there if plan == "jpeg" else corrected(there, shipped, revised, temperature)
            wanted = averaged(better, revised, temperature)
            assert (found.where, found.plan, found.revision) == ("cloud", plan, 1)
            assert np.allclose(found.outputs["logits"], wanted, rtol=1e-4)
            assert not np.allclose(there, wanted, rtol=0.01)
            edge.revert()
            after = edge(image)
            assert (after.where, after.revision) == ("cloud", 0)
            assert np.array_equal(after.outputs["logits"], there)


def test_an_answer_is_the_servers_where_the_revision_is_for_other_streams(
    model_dir, manifest, server, image
):
    revision = favouring(manifest, edge=1000.0)
    with teaching(after_ready(told(revision))) as other:
        with (
            Edge(model_dir, cloud=server.address, plan="q4") as plain,
            Edge(model_dir, cloud=f"{server.address},{other}", plan="q4", adapt=True) as edge,
        ):
            assert soon(lambda: edge.revision == 1)
            found = edge(image)
            assert (found.where, found.revision) == ("cloud", 0)
            assert np.array_equal(found.outputs["logits"], plain(image).outputs["logits"])


def test_an_answer_that_comes_after_its_revision_was_dropped_is_the_servers(model_dir, manifest):
    own = study(model_dir, manifest)
    adopted(own, favouring(manifest))
    view = own.view(RIGHT, np.ones(manifest.widths[-1].shape, np.uint8))
    nothing = np.full(10, np.nan, np.float32)
    for pictured in (False, True):
        assert own.blend(view, RIGHT, pictured=pictured) is not RIGHT
        assert own.blend(view, nothing, pictured=pictured) is nothing
    own.drop("as was asked")
    for pictured in (False, True):
        assert own.blend(view, RIGHT, pictured=pictured) is RIGHT


def test_outputs_of_further_tails_stay_as_the_server_gave_them(
    model_dir, manifest, tmp_path, image
):
    second = scaled(model_dir, tmp_path / "second", 4)
    toml = second / "model.toml"
    toml.write_text(toml.read_text().replace(f'name = "{manifest.name}"', 'name = "second"', 1))
    with (
        Server(model_dir, port=0, tails=[second], threads=1) as server,
        teaching(after_ready(told(favouring(manifest)))) as other,
    ):
        both = {"plan": "q4", "tails": [second]}
        with (
            Edge(model_dir, cloud=server.address, **both) as plain,
            Edge(model_dir, cloud=f"{server.address},{other}", adapt=True, **both) as edge,
        ):
            assert soon(lambda: edge.revision == 1)
            before, after = plain(image).outputs, edge(image).outputs
    assert set(before) == set(after) == {"logits", "second/logits"}
    assert not np.array_equal(before["logits"], after["logits"])
    assert np.array_equal(before["second/logits"], after["second/logits"])


# the device's own guard


RIGHT, WRONG = np.eye(10, dtype=np.float32)[[0, 3]]


def test_a_revision_that_contradicts_what_is_beyond_doubt_is_dropped(model_dir, manifest, caplog):
    own = study(model_dir, manifest)
    adopted(own, favouring(manifest))
    for _ in range(LEAST - 1):
        assert own.compare(View(RIGHT, WRONG, 1, False), RIGHT) == 0
    with caplog.at_level(logging.WARNING):
        assert own.compare(View(RIGHT, WRONG, 1, False), RIGHT) == 1
    assert own.used == 0
    said = f"of {LEAST} answers that exit and server agree on it contradicts {LEAST}"
    assert said in caplog.text


def test_one_that_contradicts_a_third_of_it_stays(model_dir, manifest):
    """As good ones do: what the server's exported tail says of such frames is often wrong."""
    own = study(model_dir, manifest)
    adopted(own, favouring(manifest))
    for turn in range(3 * WINDOW):
        revised = RIGHT if turn % 3 else WRONG
        assert own.compare(View(RIGHT, revised, 1, False), RIGHT) == 0
        assert own.compare(View(RIGHT, WRONG, 1, False), WRONG) == 0  # exit and server differ
        assert own.compare(View(RIGHT, WRONG, 0, False), RIGHT) == 0  # made without a revision
    assert own.used == 1


class Patient(Parrot):
    """A learner that gives no other revision before the device has dropped the last."""

    every = 1

    def add(self, *sample) -> None:
        if self.current is None:
            super().add(*sample)


def test_answers_of_the_server_end_a_bad_revision_in_use(monkeypatch):
    eager(monkeypatch, learner=Patient)
    with Pictures(ROOT / "splitrt" / "pictures") as photos:
        images = [frame.image for frame in photos]
    with (
        Edge(SHIPPED, plan="w32-exit") as local,
        Server(SHIPPED, port=0, threads=1, adapt=True) as server,
    ):
        with Edge(SHIPPED, cloud=server.address, plan="w32-r125") as plain:
            # on these the exit as shipped agrees with the server, and one for cats does not
            images = [one for one in images if best(plain(one)) == best(local(one)) != 3]
        assert len(images) > 2
        with Edge(SHIPPED, cloud=server.address, plan="w32-r125", adapt=True) as edge:
            assert soon(lambda: edge._pupil.up)

            def dropped() -> bool:
                assert all(edge(image).where == "cloud" for image in images)
                return server.lessons.get("reverted", 0) > 0

            assert soon(dropped)
            assert soon(lambda: sum(one.reverts for one in Parrot.made) > 0)


# what is refused


LIES = {
    "another hash": (lambda m: told(favouring(m), sha256=b"x" * 32), "another sha256"),
    "no hash": (lambda m: told(favouring(m), sha256=b""), "another sha256"),
    "another number inside": (lambda m: told(favouring(m), number=2), "wanted"),
    "number 0": (lambda m: told(favouring(m), number=0), "1 to 1000 may come"),
    "a number far ahead": (lambda m: told(favouring(m), number=2**31), "1 to 1000 may come"),
    "another width": (lambda m: told(favouring(m), width="w8"), "wanted"),
}


@pytest.mark.parametrize("kind", LIES)
def test_what_is_no_revision_is_refused_and_the_call_goes_on(
    model_dir, manifest, image, caplog, kind
):
    lie, words = LIES[kind]
    with caplog.at_level(logging.WARNING):
        with teaching(after_ready(lie(manifest), told(favouring(manifest)))) as address:
            with Edge(model_dir, cloud=address, plan="exit", adapt=True) as edge:
                assert soon(lambda: edge.revision == 1)  # the one after it
                assert edge(image).where == "edge"
    [line] = [one for one in caplog.messages if "no revision for this exit" in one]
    assert words in line and line.isprintable()


def test_a_number_that_came_before_does_not_come_again(model_dir, manifest):
    own = study(model_dir, manifest)
    adopted(own, favouring(manifest, number=7))
    for number in (7, 6, 1):
        with pytest.raises(PacketError, match="8 to 1007 may come"):
            adopted(own, favouring(manifest, number=number))
    own.drop("as was asked")
    with pytest.raises(PacketError, match="may come"):
        adopted(own, favouring(manifest, number=7))
    adopted(own, favouring(manifest, number=8))
    assert own.used == 8


# servers that go, change, or do not adapt


def test_a_server_without_adapt_is_said_once_and_answers_go_on(model_dir, server, image, caplog):
    with caplog.at_level(logging.INFO):
        with Edge(model_dir, cloud=server.address, plan="q4", adapt=True) as edge:
            assert soon(lambda: "does not adapt" in caplog.text)
            assert all(result.where == "cloud" for _, result in edge.stream(frames(20)))
            assert not edge._pupil.up and edge.revision == 0
    assert sum("does not adapt" in line for line in caplog.messages) == 1


def test_a_killed_server_leaves_its_revision_in_use_and_a_new_one_goes_on(
    model_dir, manifest, image, monkeypatch
):
    revision = favouring(manifest)
    with teaching(after_ready(told(revision))) as address:
        edge = Edge(model_dir, cloud=address, plan="exit", adapt=True)
        assert soon(lambda: edge.revision == 1)
    with edge:
        assert soon(lambda: not edge._pupil.up)
        assert all((r.revision, best(r)) == (1, 3) for _, r in edge.stream(frames(30)))
        heard: list[wire.ToTeacher] = []
        again = after_ready(told(favouring(manifest, best=5, number=2)), heard=heard)
        with teaching(again, int(address.rsplit(":", 1)[1])):
            assert soon(lambda: edge.revision == 2)
            assert best(edge(image)) == 5
        told_first = heard[0].start
        assert (told_first.used, told_first.seen, told_first.tail) == (1, 1, b"t" * 32)


def test_a_real_server_killed_with_a_revision_in_use_costs_no_frame(model_dir, monkeypatch):
    """It serves without --adapt, so the revision stays while it comes and goes."""
    eager(monkeypatch)
    manifest = Manifest.load(model_dir)
    with Killable(model_dir) as server, teaching(after_ready(told(favouring(manifest)))) as other:
        addresses = f"127.0.0.1:{server.port},{other}"  # the second has no tail, but adapts
        with Edge(model_dir, cloud=addresses, plan="q4", deadline=1.0, adapt=True) as edge:
            assert soon(lambda: edge._link.up and edge.revision == 1, 60)

            def through():
                for frame in frames(60):
                    if frame.index == 30:
                        server.restart()
                    yield frame

            results = list(edge.stream(through()))
    assert len(results) == 60 and all(result.outputs for _, result in results)


def test_a_server_that_is_lost_is_followed_by_the_next(model_dir, manifest):
    with teaching(after_ready()) as first, teaching(after_ready(told(favouring(manifest)))) as last:
        with Edge(model_dir, cloud=f"127.0.0.1:1,{last}", plan="exit", adapt=True) as edge:
            assert soon(lambda: edge.revision == 1)
        assert first != last


def test_a_device_that_leaves_while_it_tells_ends_its_thread(model_dir, monkeypatch):
    eager(monkeypatch)

    def deaf(requests, context):
        next(requests)
        yield ready(unread=2)
        yield from (request for request in requests if request is None)

    with teaching(deaf) as address:
        with Edge(model_dir, cloud=address, plan="exit", adapt=True) as edge:
            assert soon(lambda: edge._pupil.up)
            results = list(edge.stream(frames(100)))
            assert soon(lambda: edge._pupil.satchel.sent == 2)
            results += list(edge.stream(frames(20)))
            assert len(edge._pupil.satchel) == KEPT and edge._pupil.satchel.lost >= 100 - KEPT - 2
    assert len(results) == 120 and all(result.where == "edge" for _, result in results)
    assert soon(lambda: not any(one.name == "pupil" for one in threading.enumerate()))


def test_a_revision_dropped_before_the_next_server_is_ready_is_told_to_it(model_dir, manifest):
    heard: list[wire.ToTeacher] = []
    came, reverted = threading.Event(), threading.Event()

    def script(requests, context):
        heard.append(next(requests))
        if heard[-1].start.used:
            came.set()
            reverted.wait(20)
            yield ready()
            heard.extend(requests)
            return
        yield ready()
        yield told(favouring(manifest))

    with teaching(script) as address:
        with Edge(model_dir, cloud=address, plan="exit", adapt=True) as edge:
            assert came.wait(20)
            edge.revert()
            reverted.set()
            assert soon(lambda: heard[-1].dropped.number == 1)


def test_a_server_of_another_model_that_says_no_more_is_asked_again(model_dir, caplog):
    asked = []

    def script(requests, context):
        asked.append(next(requests))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "")

    with teaching(script) as address:
        with Edge(model_dir, cloud=address, plan="exit", adapt=True):
            assert soon(lambda: len(asked) > 1)
    assert f"not adapting: {address} holds another model" in caplog.text


def test_a_call_that_ends_just_before_its_sender_waits_leaves_no_thread(
    model_dir, manifest, monkeypatch
):
    monkeypatch.setattr(Pupil, "_keep", lambda pupil: None)
    pupil = Pupil("127.0.0.1:1", study(model_dir, manifest))

    class Over(threading.Event):
        """Set as soon as the lock is free, once somebody has asked and not begun to wait."""

        def is_set(self) -> bool:
            before = super().is_set()
            if not before:
                end = threading.Thread(target=self.end)
                end.start()
                end.join(0.2)
            return before

        def end(self) -> None:
            with pupil._changed:
                self.set()
                pupil._changed.notify_all()

    sender = threading.Thread(target=list, args=(pupil._outgoing(Over()),), daemon=True)
    sender.start()
    sender.join(5)
    alive = sender.is_alive()
    pupil.close()
    assert not alive


# the satchel


def test_few_samples_wait_and_the_newest_are_kept():
    satchel = Satchel()
    for number in range(KEPT + 5):
        satchel.put(np.array([number]), np.zeros(1))
    satchel.open(rate=1000, unread=3)
    assert (len(satchel), satchel.lost) == (KEPT, 5)
    assert satchel.next(0.0)[1].tolist() == [5]


def test_samples_leave_no_faster_than_is_taken():
    satchel = Satchel()
    for number in range(10):
        satchel.put(np.array([number]), np.zeros(1))
    satchel.open(rate=4, unread=3)
    assert satchel.next(10.0)[0] == 1
    assert satchel.next(10.1) is None and satchel.wait(10.1) == pytest.approx(0.15)
    assert [satchel.next(now)[0] for now in (10.25, 10.5)] == [2, 3]
    assert satchel.next(20.0) is None  # three without a Taken
    satchel.taken(2, 11.0)
    assert satchel.next(11.0)[0] == 4
    satchel.taken(2**32 - 1, 12.0)  # says no more than that all four came
    assert [satchel.next(now) is None for now in (12.0, 13.0, 14.0, 15.0)] == [False] * 3 + [True]
    assert not satchel.silent(12.0 + SILENCE) and satchel.silent(12.1 + SILENCE)


def test_a_server_that_would_take_any_number_gets_no_more_than_the_link_can_spare():
    satchel = Satchel()
    for number in range(KEPT):
        satchel.put(np.array([number]), np.zeros(1))
    satchel.open(rate=2**32 - 1, unread=2**32 - 1)
    left = [now for now in np.arange(0, 0.5, 0.001) if satchel.next(float(now)) is not None]
    assert len(left) <= 0.5 * FASTEST + 1


# the daemon and the command


def test_the_daemons_socket_and_lines_say_which_revision_answered():
    found = Result({"logits": np.zeros(10, np.float32)}, "edge", "exit", revision=7)
    assert arrays.result(arrays.reply("a", 0, found)).revision == 7
    seen = Seen("door", "birds", "a", 0, 0.0, found, "none")
    assert json.loads(line(seen))["revision"] == 7


def test_the_command_prints_which_revision_answered(model_dir, monkeypatch):
    eager(monkeypatch)
    process, port = served(model_dir, 0)
    try:
        command = [
            sys.executable, "-m", "splitrt.cli", "edge", str(model_dir), "--cloud",
            f"127.0.0.1:{port}", "--source", str(ROOT / "splitrt" / "pictures"),
            "--adapt", "--json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    finally:
        process.kill()
        process.wait()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines and all(line["revision"] == 0 and line["where"] == "cloud" for line in lines)
    assert "Traceback" not in done.stderr
