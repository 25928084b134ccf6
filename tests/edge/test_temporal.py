"""Differences on a stream: the answers are the same bit for bit, whatever the link does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from splitrt import Edge, Frame, SplitrtError
from splitrt.cloud import Server
from splitrt.core import delta, packet
from splitrt.core.codec import Codec
from splitrt.core.delta import KEPT
from splitrt.edge.parcel import Arrival, Delta, Parcel, Pending
from splitrt.edge.temporal import Temporal
from splitrt.relay import Relay
from splitrt.wire import tail_pb2 as wire
from tests.attacks.test_lying_server import lying
from tests.conftest import pictures
from tests.edge.test_loopback import soon

CODEC = Codec(4, "zstd", [800])
KEY = bytes(401)


def static(count: int) -> list[np.ndarray]:
    """Pictures of a camera that stands still, with a small square going by."""
    still = pictures(1, seed=5).images[0]
    shown = []
    for place in range(count):
        image = still.copy()
        image[8:12, place % 28 : place % 28 + 4] = 255
        shown.append(image)
    return shown


def frames(images: list[np.ndarray]) -> Iterator[Frame]:
    for index, image in enumerate(images):
        yield Frame(image, index, time.monotonic(), f"{index}")


def sent(
    temporal: Temporal, seq: int, base: int = 0, status: int | None = wire.OK, stream: int = 1
) -> Pending:
    """A frame of zeros that went, and its answer; None: not yet."""
    pending = Pending(seq, 0.0, 100, Future(), stream, base, Parcel(0, b""))
    if status is not None:
        pending.future.set_result(Arrival(wire.Answer(seq=seq, status=status), 0.0))
    temporal.remember(pending, "q4", bytes(400))
    return pending


def made(temporal: Temporal) -> Delta | None:
    return temporal.delta("q4", CODEC, bytes(400), KEY)


def test_the_base_is_the_newest_frame_that_was_answered():
    temporal = Temporal()
    assert made(temporal) is None
    sent(temporal, 1, status=None)
    assert made(temporal) is None
    sent(temporal, 2)
    sent(temporal, 3, status=wire.EXPIRED)
    sent(temporal, 4, status=wire.BUSY)
    sent(temporal, 5, status=None).future.cancel()
    found = made(temporal)
    assert (found.stream, found.base) == (1, 2)
    assert delta.open(found.payload, bytes(400), 4) == bytes(400)
    assert temporal.delta("q8", CODEC, bytes(400), KEY) is None  # nothing of that rung


def test_nothing_older_than_a_wanted_keyframe_is_trusted():
    temporal = Temporal()
    sent(temporal, 1)
    sent(temporal, 2, base=1, status=wire.NEED_KEY)
    sent(temporal, 3, status=None)
    assert made(temporal) is None
    sent(temporal, 4)
    assert made(temporal).base == 4


def test_a_difference_is_only_made_where_it_is_smaller():
    temporal = Temporal()
    sent(temporal, 1)
    noise = np.random.default_rng(0).integers(0, 256, 400, np.uint8).tobytes()
    assert temporal.delta("q4", CODEC, noise, KEY) is None
    payload = made(temporal).payload
    assert temporal.delta("q4", CODEC, bytes(400), bytes(len(payload) + 2)) is None


def test_a_keyframe_comes_every_so_many_frames():
    temporal, kinds = Temporal(every=4), ""
    for seq in range(1, 13):
        found = made(temporal)
        sent(temporal, seq, base=0 if found is None else found.base)
        kinds += "k" if found is None else "d"
    assert kinds == "kdddkdddkddd"
    with pytest.raises(SplitrtError, match="help:"):
        Temporal(every=0)


def test_few_frames_are_remembered():
    temporal = Temporal()
    for seq in range(1, 100):
        sent(temporal, seq)
    assert len(temporal._sent) == KEPT


@pytest.mark.parametrize("plan", ["q8", "q4"])
def test_answers_with_and_without_are_the_same_bit_for_bit(model_dir, server, plan):
    images = [*static(40), *pictures(5, seed=9).images, *static(10)]
    found = {}
    for temporal in (False, True):
        with Edge(model_dir, cloud=server.address, plan=plan, temporal=temporal) as edge:
            found[temporal] = [edge(image) for image in images]
    for plain, changed in zip(found[False], found[True], strict=True):
        assert (plain.where, changed.where) == ("cloud", "cloud")
        assert changed.outputs["logits"].tobytes() == plain.outputs["logits"].tobytes()
        assert changed.sent_bytes <= plain.sent_bytes + 2  # a later number of a frame may be longer
    size = [sum(result.sent_bytes for result in found[temporal]) for temporal in (False, True)]
    assert size[1] <= size[0]
    assert plan == "q4" or size[1] < 0.7 * size[0]  # what ans has squeezed out, no other can


def test_the_float_rungs_go_as_before(model_dir, server):
    for temporal in (False, True):
        with Edge(model_dir, cloud=server.address, plan="f16", temporal=temporal) as edge:
            sizes = {edge(image).sent_bytes for image in static(3)}
            assert len(sizes) == 1


def test_overlapping_frames_are_differences_too(model_dir, server):
    images = static(200)
    with Edge(model_dir, cloud=server.address, plan="q8", temporal=30) as edge:
        streamed = [result for _, result in edge.stream(frames(images), inflight=6)]
    with Edge(model_dir, cloud=server.address, plan="q8") as edge:
        single = [edge(image) for image in images]
    assert all(result.where == "cloud" for result in streamed)
    for one, other in zip(streamed, single, strict=True):
        np.testing.assert_allclose(one.outputs["logits"], other.outputs["logits"], atol=1e-4)
    assert sum(r.sent_bytes for r in streamed) < 0.8 * sum(r.sent_bytes for r in single)


def test_a_cut_line_begins_anew_with_a_keyframe_and_every_answer_is_right(model_dir, server):
    images = static(60)
    with Edge(model_dir, cloud=server.address, plan="q8") as edge:
        wanted = [edge(image).outputs["logits"] for image in images]
    with Relay(server.address) as relay:
        with Edge(model_dir, cloud=relay.address, plan="q8", deadline=2, temporal=True) as edge:
            bases = []
            for place, image in enumerate(images):
                if place in (20, 40):
                    relay.cut()
                    assert soon(lambda: edge(images[0]).where == "cloud")
                result = edge(image)
                assert result.where == "cloud"
                np.testing.assert_array_equal(result.outputs["logits"], wanted[place])
                bases.append(edge._temporal._sent[-1].pending)
            assert len({pending.stream for pending in bases}) == 3
            by_seq = {s.pending.seq: s.pending.stream for s in edge._temporal._sent}
            assert all(by_seq.get(p.base, p.stream) == p.stream for p in bases if p.base)


def test_a_server_that_comes_back_gets_a_keyframe_first(model_dir):
    images = static(20)
    server = Server(model_dir, port=0, threads=1)
    with Edge(model_dir, cloud=server.address, plan="q8", deadline=2, temporal=True) as edge:
        first = [edge(image) for image in images]
        assert edge._temporal._sent[-1].pending.base
        server.close()
        assert edge(images[0]).where == "edge"
        with Server(model_dir, port=server.port, threads=1):
            assert soon(lambda: edge._link.up)
            again = [edge(image) for image in images]
    assert [result.where for result in again] == ["cloud"] * 20
    assert again[0].sent_bytes > 1.5 * again[5].sent_bytes
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.outputs["logits"], other.outputs["logits"])


def test_a_server_that_forgot_gets_the_frame_again_within_its_deadline(model_dir, server):
    images = static(12)
    with Edge(model_dir, cloud=server.address, plan="q8") as edge:
        wanted = [edge(image) for image in images]
    with Edge(model_dir, cloud=server.address, plan="q8", deadline=5, temporal=True) as edge:
        for place, image in enumerate(images):
            if place == 6:
                kept = next(k for k in _streams(server) if k._frames)
                kept._frames.clear()
            result = edge(image)
            assert (result.where, result.reason) == ("cloud", None)
            np.testing.assert_array_equal(result.outputs["logits"], wanted[place].outputs["logits"])
            if place == 6:  # the difference in vain, and the keyframe
                assert result.sent_bytes > wanted[place].sent_bytes
                assert edge._temporal._sent[-1].pending.base == 0
        assert edge._temporal._sent[-1].pending.base


def test_a_server_that_always_wants_keyframes_gets_no_answer_accepted(model_dir, image):
    def answers(frame):
        return [packet.refusal(frame.seq, wire.NEED_KEY, "never enough")]

    with lying(answers) as address:
        with Edge(model_dir, cloud=address, plan="q8", deadline=1, temporal=True) as edge:
            result = edge(image)
    assert (result.where, result.plan) == ("edge", "exit")
    assert "never enough" in result.reason


def test_a_server_that_keeps_nothing_gets_keyframes_only(model_dir):
    bases = []

    def answers(frame):
        bases.append(frame.base)
        zeros = wire.Tensor(shape=[10], data=bytes(40))
        return [wire.Answer(seq=frame.seq, status=wire.OK, outputs=[zeros])]

    with lying(answers) as address:  # as one of before: its Welcome does not speak of bases
        with Edge(model_dir, cloud=address, plan="q8", deadline=5, temporal=True) as edge:
            assert all(edge(image).where == "cloud" for image in static(10))
    assert bases == [0] * 10


def _streams(server):
    import gc

    from splitrt.cloud.kept import Kept

    return [thing for thing in gc.get_objects() if isinstance(thing, Kept)]
