"""The controller on a real link: it chooses, it keeps the deadline, it comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from splitrt import Edge, Frame
from splitrt.cloud import Server
from splitrt.core.control import Decision
from splitrt.core.gate import Verdict, unsure
from splitrt.core.manifest import Manifest
from splitrt.demo import shipped
from splitrt.edge.capture import Pictures
from splitrt.edge.pilot import Caps, Pilot, able
from tests.conftest import ROOT, pictures
from tests.edge.test_loopback import soon

DEFAULT = Manifest.load(shipped()).default_plan
FOLDER = ROOT / "splitrt" / "pictures"


@pytest.fixture(scope="module")
def tail() -> Iterator[Server]:
    with Server(shipped(), port=0, threads=1) as server:
        yield server


def noise(count: int, seed: int = 0, pause: float = 0.0) -> Iterator[Frame]:
    """Pictures of nothing, of which no exit is sure."""
    for index, image in enumerate(pictures(count, seed=seed).images):
        time.sleep(pause)
        yield Frame(image, index, time.monotonic(), str(index))


def reaches(edge: Edge, seconds: float = 30.0) -> bool:
    """Whether the server answers a frame in time; a busy machine may need a second connection."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stream = edge.stream(noise(20, seed=2, pause=0.02))
        if any(result.where == "cloud" for _, result in stream):
            return True
    return False


def test_with_a_deadline_the_controller_sends_what_the_exit_is_not_sure_of(tail):
    with Edge(shipped(), cloud=tail.address, deadline=20, threads=1) as edge:
        assert reaches(edge)
        seen = [result for _, result in edge.stream(noise(40))]
        names = {plan.name for plan in edge.manifest.plans}
    assert {result.plan for result in seen} <= names
    sent = [result for result in seen if result.where == "cloud"]
    assert len(sent) >= 10
    assert all(result.reason is None for result in sent)


def test_sure_frames_stay_and_cost_no_bytes(tail):
    with Edge(shipped(), cloud=tail.address, deadline=20, threads=1) as edge:
        record = edge.manifest.exit
        for frame in Pictures(FOLDER):
            result = edge(frame.image)
            if result.confidence > 0.98 and record.measure == "confidence":
                assert (result.where, result.sent_bytes) == ("edge", 0)


def test_nobody_there_is_answered_by_an_exit_that_says_why():
    with Edge(shipped(), cloud="127.0.0.1:1", deadline=0.5, threads=1) as edge:
        seen = [result for _, result in edge.stream(noise(12))]
    assert [result.where for result in seen] == ["edge"] * 12
    assert all(result.reason for result in seen[1:])
    assert all(result.sent_bytes == 0 for result in seen)


def test_after_the_servers_return_frames_are_sent_again(tail):
    port = tail.port
    with Server(shipped(), port=0, threads=1) as first:
        port = first.port
        edge = Edge(shipped(), cloud=first.address, deadline=20, threads=1)
        assert reaches(edge)
    with edge:
        down = [result.where for _, result in edge.stream(noise(10, seed=1))]
        assert down == ["edge"] * 10
        with Server(shipped(), port=port, threads=1):
            assert reaches(edge)


def test_a_lost_server_is_followed_by_the_next_and_no_frame_is_lost(tail):
    with Server(shipped(), port=0, threads=1) as first:
        both = f"{first.address}, {tail.address}"
        with Edge(shipped(), cloud=both, plan=DEFAULT, deadline=20, threads=1) as edge:
            seen = []
            for frame, result in edge.stream(noise(120, pause=0.005)):
                seen.append((frame.index, result.where, result.reason))
                if frame.index == 40:
                    first.close()
    assert [index for index, _, _ in seen] == list(range(120))
    assert [where for _, where, _ in seen[-40:]] == ["cloud"] * 40
    stood_in = [index for index, where, _ in seen if where != "cloud"]
    assert len(stood_in) <= 60  # those launched between the two connections


def test_a_cap_on_bytes_makes_the_controller_thrifty(tail):
    sent = {}
    for cap in (None, 200.0):
        caps = Caps(bytes=cap)
        with Edge(shipped(), cloud=tail.address, deadline=20, caps=caps, threads=1) as edge:
            assert reaches(edge)
            results = [result for _, result in edge.stream(noise(150, pause=0.02))]
            sent[cap] = sum(result.sent_bytes for result in results[50:])
    assert sent[200.0] < sent[None]


def steered(manifest: Manifest) -> Pilot:
    """A pilot of heads that take 1 to 3 ms."""
    seconds = {width.name: 0.001 * (1 + i) for i, width in enumerate(manifest.widths)}
    return Pilot(manifest, seconds)


def without_bins(manifest: Manifest) -> Manifest:
    """The manifest as it was written before there were any."""
    bare = {"bins": [], "shares": [], "edges": []}
    widths = [
        width.model_copy(update={"exit": width.exit.model_copy(update=bare)})
        for width in manifest.widths
    ]
    plans = [plan.model_copy(update={"bins": []}) for plan in manifest.plans]
    return manifest.model_copy(update={"widths": widths, "plans": plans})


def test_every_picture_can_go_beside_each_exit_and_the_exits_bins_decide():
    """Unsure frames go, sure ones stay: by the exit whose head was run, not by its threshold."""
    manifest = Manifest.load(shipped())
    pilot = steered(manifest)
    pictured = [one for one in pilot.options if manifest.pictured(manifest.plan(one.name))]
    widths = [manifest.width(manifest.plan(one.name)) for one in pictured]
    assert [width.name for width in widths] == [width.name for width in manifest.widths]
    for option, width in zip(pictured, widths, strict=True):
        decision = Decision("send", "", option, hit=0.9)
        unsure, sure = width.exit.edges[0] - 0.01, width.exit.edges[-1]
        assert pilot.confirms(decision, Verdict(True, unsure))
        assert not pilot.confirms(decision, Verdict(False, sure))


def test_the_devices_answer_is_worth_what_the_exit_is_that_there_is_time_for():
    manifest = Manifest.load(shipped())
    pilot = steered(manifest)
    found = [pilot._local(left).accuracy for left in (0.0015, 0.0025, 0.0035)]
    assert found == [width.exit.accuracy for width in manifest.widths]


def test_a_model_without_bins_is_steered_as_ever():
    """By accuracies over all frames, the exit's where it is unsure, and the gate."""
    manifest = without_bins(Manifest.load(shipped()))
    pilot = steered(manifest)
    best, exits = pilot.options[-1], manifest.exit
    assert not any(option.bins for option in pilot.options)
    assert pilot._local(1.0).accuracy == unsure(exits) < exits.accuracy - 0.1
    decision = Decision("send", "", best, hit=1.0)
    assert not pilot.confirms(decision, Verdict(True, 0.5))
    assert pilot.confirms(decision, Verdict(False, best.accuracy - 0.01))
    assert not pilot.confirms(decision, Verdict(False, best.accuracy))


def test_a_model_without_a_record_keeps_its_default_plan(plain_dir):
    assert not able(Manifest.load(plain_dir))
    with Server(plain_dir, port=0, threads=1) as server:
        with Edge(plain_dir, cloud=server.address, deadline=20, threads=1) as edge:
            assert edge(pictures(1).images[0]).plan == edge.manifest.default_plan


def test_the_best_exit_that_there_is_time_for_answers():
    manifest = Manifest.load(shipped())
    names = [width.name for width in manifest.widths]
    pilot = Pilot(manifest, dict(zip(names, (0.01, 0.02, 0.04), strict=True)))
    wanted = [manifest.exit_plan(width).name for width in manifest.widths]
    assert [pilot.here(left).name for left in (0.015, 0.03, 0.1)] == wanted
    assert pilot.here(0.001) is not None


def test_an_answer_at_once_finds_its_frame_in_flight(tail):
    """The frame is noted before it leaves: else a fast answer would leave it in flight for ever."""
    with Edge(shipped(), cloud=tail.address, deadline=20, threads=1) as edge:
        assert reaches(edge)
        for _ in edge.stream(noise(200, seed=4), inflight=1):
            pass
        assert soon(lambda: edge._course.pilot.state.flights == ())
        assert edge._course.pilot.state.up
