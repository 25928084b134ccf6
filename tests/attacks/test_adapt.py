"""Adapting under lies: a server that sends no revisions, a device that sends no samples."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from safetensors.numpy import save

from splitrt import Edge
from splitrt.cloud import Server
from splitrt.core.manifest import Manifest
from splitrt.core.revision import LARGEST, Revision, wanted
from splitrt.edge.pupil import FLOOD
from splitrt.wire import adapt_pb2 as wire
from tests.attacks.unharmed import discreet
from tests.conftest import ROOT
from tests.edge.test_loopback import frames, soon
from tests.lessons import (
    CLASSES,
    LEARN,
    MAPS,
    Class,
    Parrot,
    after_ready,
    eager,
    favouring,
    ready,
    sample,
    start,
    teaching,
)

MOST = 2**32 - 1


@pytest.fixture(scope="module")
def manifest(model_dir) -> Manifest:
    return Manifest.load(model_dir)


# servers that lie


def forged(manifest: Manifest, spoil: Callable[[dict[str, np.ndarray], dict], None]) -> bytes:
    """A revision's body with other weights, or another header."""
    good = favouring(manifest)
    weights = {name: array.astype(np.float16) for name, array in good.weights.items()}
    said = {"number": 1, "model": good.model.hex(), "width": good.width, "plan": good.plan}
    spoil(weights, said)
    return save(weights, {"revision": json.dumps(said)})


def bodied(body: bytes) -> wire.ToPupil:
    """A revision of that body, rightly hashed."""
    return wire.ToPupil(
        revision=wire.Revision(
            number=1, width="full", sha256=hashlib.sha256(body).digest(), body=body
        )
    )


BODIES: dict[str, Callable[[Manifest], bytes]] = {
    "noise": lambda m: bytes(range(256)) * 8,
    "half of it": lambda m: favouring(m).encode()[:-40],
    "a header of 2^63 bytes": lambda m: (2**63).to_bytes(8, "little") + b"{}",
    "as large as may be": lambda m: bytes(LARGEST),
    "NaN": lambda m: forged(m, lambda w, s: w["bias"].fill(np.nan)),
    "infinity": lambda m: forged(m, lambda w, s: w["join"].fill(np.inf)),
    "a scale of 0": lambda m: forged(m, lambda w, s: w["scale"].fill(0)),
    "another shape": lambda m: forged(m, lambda w, s: w.update(bias=np.zeros(11, np.float16))),
    "a weight too many": lambda m: forged(m, lambda w, s: w.update(more=np.zeros(1, np.float16))),
    "a weight too few": lambda m: forged(m, lambda w, s: w.pop("mix")),
    "another model": lambda m: forged(m, lambda w, s: s.update(model="00" * 32)),
    "an unknown width": lambda m: forged(m, lambda w, s: s.update(width="w999")),
    "an unknown plan": lambda m: forged(m, lambda w, s: s.update(plan="q999")),
    "a plan of pictures": lambda m: forged(m, lambda w, s: s.update(plan="jpeg")),
    "another number": lambda m: forged(m, lambda w, s: s.update(number=2)),
    "a number that is none": lambda m: forged(m, lambda w, s: s.update(number="1")),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_that_is_no_revision_changes_no_answer(model_dir, manifest, image, caplog, kind):
    lie = bodied(BODIES[kind](manifest))
    with caplog.at_level(logging.WARNING), teaching(after_ready(lie)) as address:
        with (
            Edge(model_dir, plan="exit") as plain,
            Edge(model_dir, cloud=address, plan="exit", adapt=True) as edge,
        ):
            assert soon(lambda: "no revision for this exit" in caplog.text)
            found, before = edge(image), plain(image)
            assert np.array_equal(found.outputs["logits"], before.outputs["logits"])
            assert edge.revision == found.revision == 0
            assert edge._pupil.up  # the call goes on
    assert all(line.isprintable() and len(line) < 600 for line in caplog.messages)


def flood(messages: int) -> Callable:
    def script(requests, context):
        next(requests)
        yield ready()
        for number in range(1, messages + 1):
            yield wire.ToPupil(revision=wire.Revision(number=number, width="full"))
        yield from (request for request in requests if request is None)

    return script


def ending(code: grpc.StatusCode, words: str) -> Callable:
    def script(requests, context):
        context.abort(code, words)
        yield b""

    return script


def silent(requests, context) -> Iterator[bytes]:
    next(requests)
    yield from (b"" for request in requests if request is None)


HUGE = wire.ToPupil(revision=wire.Revision(number=1, width="full", body=bytes(100 << 20)))
EMPTY = wire.ToPupil(revision=wire.Revision(number=1, width="full"))
TALK = wire.ToPupil(taken=wire.Taken(seq=MOST))
SCRIPTS: dict[str, Callable] = {
    "100 MiB": after_ready(HUGE),
    "a flood of revisions": flood(5000),
    "ten thousand acknowledgements of nothing": after_ready(*[TALK] * 10_000),
    "a thousand times ready": after_ready(*[ready(MOST, MOST)] * 1000),
    "ready for nothing": lambda requests, context: iter([ready(0, 0)]),
    "a revision before it is ready": lambda requests, context: iter([EMPTY, TALK, ready()]),
    "noise": after_ready(b"\xff\xff\xff"),
    "empty messages": after_ready(*[b""] * 1000),
    "silence": silent,
    "another model": ending(grpc.StatusCode.FAILED_PRECONDITION, "../../etc \x1b[2J" + "x" * 1000),
    "a long reason": ending(grpc.StatusCode.RESOURCE_EXHAUSTED, "x" * 3000),
    "escapes": ending(grpc.StatusCode.INTERNAL, "\x1b[2J\n\n\x07no"),
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_server_that_breaks_the_protocol_costs_no_frame(
    model_dir, server, image, monkeypatch, caplog, kind
):
    eager(monkeypatch)
    calls: list[None] = []

    def counted(requests, context):
        calls.append(None)
        return SCRIPTS[kind](requests, context)

    with caplog.at_level(logging.WARNING), teaching(counted) as liar:
        addresses = f"{server.address},{liar}"  # the first does not adapt
        with Edge(model_dir, cloud=addresses, plan="q4", adapt=True) as edge:
            assert soon(lambda: edge._link.up and calls)
            until, results = time.monotonic() + 1.0, []
            while time.monotonic() < until:
                results += edge.stream(frames(10))
            assert edge.revision == 0
            assert len(edge._pupil.satchel) <= 16
    assert all(result.where == "cloud" and not result.reason for _, result in results)
    assert all(line.isprintable() and len(line) < 600 for line in caplog.messages)
    assert len(caplog.messages) < 10 * FLOOD


def test_what_a_liar_sends_leaves_no_memory(model_dir, manifest):
    import tracemalloc

    lie = bodied(forged(manifest, lambda w, s: w["bias"].fill(np.nan)))
    with teaching(after_ready(*[lie] * FLOOD)) as address:
        with Edge(model_dir, cloud=address, plan="exit", adapt=True) as edge:
            assert soon(lambda: len(edge._pupil._revised) == FLOOD)
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            time.sleep(2.0)  # it hangs up and comes back
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
    assert grown < 2 << 20


def test_a_revision_that_overflows_is_dropped_at_the_frame_and_the_exit_answers(
    model_dir, manifest, image
):
    """Finite in float16; what it makes of a frame is not, if anything can be."""
    from splitrt.core.codec import codecs
    from splitrt.edge.study import Study

    own = Study(model_dir, manifest, manifest.widths[-1], codecs(model_dir, manifest))
    shipped = np.full(CLASSES, 3e38, np.float32)
    shape = wanted(CLASSES, manifest.widths[-1].shape[0], MAPS)
    weights = {name: np.zeros(one) for name, one in shape.items()}
    weights["scale"][:], weights["edge"][:] = 65504.0, -1.0
    found = Revision(1, manifest.contract, "full", manifest.default_plan, weights)
    own.adopt(1, "full", found.sha256, found.encode())
    with np.errstate(over="ignore"):
        view = own.view(shipped, np.ones(manifest.widths[-1].shape, np.uint8))
    assert view.logits is shipped and view.number == 0 and own.used == 0


# devices that lie


@pytest.fixture
def taught(model_dir, monkeypatch) -> Iterator[Server]:
    eager(monkeypatch)
    with Server(model_dir, port=0, threads=1, adapt=True) as server:
        yield server


STARTS: dict[str, tuple[Callable[[Manifest], wire.ToTeacher], str]] = {
    "a sample": (lambda m: sample(m), "INVALID_ARGUMENT"),
    "nothing": (lambda m: wire.ToTeacher(), "INVALID_ARGUMENT"),
    "an unknown width": (lambda m: start(m, width="w999"), "INVALID_ARGUMENT"),
    "a width of a megabyte": (lambda m: start(m, width="w" * 1000), "INVALID_ARGUMENT"),
    "the largest number": (lambda m: start(m, seen=MOST), "INVALID_ARGUMENT"),
    "one used that it never saw": (lambda m: start(m, used=2, seen=1), "INVALID_ARGUMENT"),
    "another model": (
        lambda m: start(m, hello=wire.Start(hello={"protocol": 1, "manifest": b"x" * 32}).hello),
        "FAILED_PRECONDITION",
    ),
    "another protocol": (
        lambda m: start(m, hello=wire.Start(hello={"protocol": 2, "manifest": m.digest}).hello),
        "FAILED_PRECONDITION",
    ),
    "no hello": (lambda m: wire.ToTeacher(start=wire.Start(width="full")), "FAILED_PRECONDITION"),
}


@pytest.mark.parametrize("kind", STARTS)
def test_a_wrong_start_gets_a_status_and_no_desk(taught, manifest, kind):
    first, code = STARTS[kind]
    with pytest.raises(grpc.RpcError) as raised:
        Class(taught.address, first(manifest))
    assert raised.value.code().name == code
    assert discreet(raised.value.details())
    assert soon(lambda: len(taught._front.school) == 0 and taught.tally == {code: 1})


def place(manifest: Manifest, name: str) -> int:
    return [plan.name for plan in manifest.plans].index(name)


def numbers(*values: float) -> bytes:
    return np.array(values, "<f2").tobytes()


SAMPLES: dict[str, tuple[Callable[[Manifest], wire.ToTeacher], str]] = {
    "logits one short": (lambda m: sample(m, logits=bytes(18)), "18 bytes, 20 wanted"),
    "no logits": (lambda m: sample(m, logits=b""), "0 bytes, 20 wanted"),
    "logits of NaN": (lambda m: sample(m, logits=numbers(*[np.nan] * 10)), "NaN or infinity"),
    "infinite logits": (lambda m: sample(m, logits=numbers(*[np.inf] * 10)), "NaN or infinity"),
    "a level one long": (lambda m: sample(m, level=bytes(10)), "10 bytes, 8 wanted"),
    "a level of NaN": (lambda m: sample(m, level=numbers(*[np.nan] * 4)), "NaN or infinity"),
    "no payload": (lambda m: sample(m, payload=b""), "flag byte"),
    "half a payload": (lambda m: sample(m, payload=b"\0" + bytes(100)), "packed bytes"),
    "noise": (lambda m: sample(m, payload=b"\1" + b"\xab" * 60), "decompress"),
    "an unknown plan": (lambda m: sample(m, plan=MOST), "not one of the server's"),
    "a plan of the device": (lambda m: sample(m, plan=place(m, "exit")), "not one of the server's"),
    "a plan of pictures": (lambda m: sample(m, plan=place(m, "jpeg")), "sends no codes"),
    "a plan of floats": (lambda m: sample(m, plan=place(m, "f32")), "sends no codes"),
    "a number before its turn": (lambda m: sample(m, seq=9), "1 would be next"),
    "number 0": (lambda m: sample(m, seq=0), "1 would be next"),
    "a second start": (lambda m: start(m), "neither a sample nor"),
    "nothing": (lambda m: wire.ToTeacher(), "neither a sample nor"),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_wrong_sample_ends_its_call_alone(taught, manifest, model_dir, image, kind):
    lie, words = SAMPLES[kind]
    with (
        Class(taught.address, start(manifest)) as liar,
        Class(taught.address, start(manifest)) as honest,
    ):
        liar.put(lie(manifest))
        code, said = liar.ended()
        assert code == "INVALID_ARGUMENT" and words in said and discreet(said)
        honest.put(sample(manifest))
        assert honest.until("taken").taken.seq == 1
        with Edge(model_dir, cloud=taught.address, plan="q4") as edge:
            assert edge(image).where == "cloud"
        assert soon(lambda: len(taught._front.school) == 1)
    assert soon(lambda: taught.lessons == {"taken": 1})
    assert taught.tally["INVALID_ARGUMENT"] == 1


def test_a_flood_of_samples_ends_its_call(taught, manifest, monkeypatch):
    monkeypatch.setattr("splitrt.cloud.lesson.RATE", 1)
    with Class(taught.address, start(manifest)) as liar:
        for seq in range(1, 2001):
            liar.put(sample(manifest, seq))
        code, words = liar.ended()
    assert code == "RESOURCE_EXHAUSTED" and discreet(words)
    assert soon(lambda: not taught._front.streams)
    assert sum(len(learner.seen) for learner in Parrot.made) <= 64


def test_a_flood_of_drops_of_what_was_never_sent_reverts_nothing(taught, manifest):
    with Class(taught.address, start(manifest)) as liar:
        liar.put(sample(manifest))
        for number in range(1000):
            liar.put(wire.ToTeacher(dropped=wire.Dropped(number=number)))
        assert soon(lambda: taught.lessons.get("reverted", 0) == 1000)
        assert [learner.reverts for learner in Parrot.made] == [0]


def test_many_calls_of_one_host_are_given_its_share_of_desks(taught, manifest):
    from splitrt.cloud.desk import OF_ONE

    calls = [Class(taught.address, start(manifest)) for _ in range(OF_ONE)]
    with pytest.raises(grpc.RpcError) as raised:
        Class(taught.address, start(manifest))
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.close()
    assert soon(lambda: len(taught._front.school) == 0)


def test_bytes_that_are_no_message_end_the_call(taught, manifest):
    with grpc.insecure_channel(taught.address) as channel:
        for raw in ([b"\xff\xff"], [start(manifest).SerializeToString(), b"\xff\xff"]):
            with pytest.raises(grpc.RpcError) as raised:
                list(channel.stream_stream(LEARN)(iter(raw), timeout=20))
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert discreet(raised.value.details())
        huge = [start(manifest).SerializeToString(), bytes(8 << 20)]
        with pytest.raises(grpc.RpcError) as raised:
            list(channel.stream_stream(LEARN)(iter(huge), timeout=20))
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ROOT.name not in raised.value.details()
