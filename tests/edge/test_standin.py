"""A model without an exit: its own tail, on the device, answers for a server that does not."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import tomllib

from splitrt import Edge, Frame
from splitrt.cloud import Server
from splitrt.core import memory
from splitrt.edge import standin
from splitrt.errors import LinkDown, ModelError, ModelMismatch
from splitrt.relay import Relay

NOBODY = "127.0.0.1:1"
LONG = 20.0  # seconds: no deadline that a loaded machine could miss


@pytest.fixture(scope="module")
def server(plain_dir) -> Iterator[Server]:
    with Server(plain_dir, port=0, threads=1) as running:
        yield running


def alone(folder: Path, *inputs: np.ndarray) -> list[dict[str, np.ndarray]]:
    """What the device answers by itself."""
    with Edge(folder, plan="local", threads=1) as edge:
        return [edge(one).outputs for one in inputs]


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)


def reached(edge: Edge) -> None:
    """Wait for the server."""
    until = time.monotonic() + LONG
    while not edge.up and time.monotonic() < until:
        time.sleep(0.01)


def recorded(folder: Path, to: Path) -> Path:
    """The same model with a record, so that a controller chooses its plans."""
    shutil.copytree(folder, to)
    said = tomllib.loads((to / "model.toml").read_text())
    for plan in said["plans"]:
        if plan["place"] == "cloud":
            plan |= {"accuracy": 0.9, "bytes_mean": 1000.0}
    (to / "model.toml").write_text(tomli_w.dumps(said))
    return to


def test_without_a_server_the_local_tail_answers_a_call_and_every_frame(plain_dir, image):
    (wanted,) = alone(plain_dir, image)
    with Edge(plain_dir, cloud=NOBODY, plan="f32", deadline=LONG, threads=1) as edge:
        assert edge.standin == "local"
        result = edge(image)
        frames = [Frame(image, number, time.monotonic(), str(number)) for number in range(5)]
        streamed = [result for _, result in edge.stream(frames)]
    for one in [result, *streamed]:
        assert (one.where, one.plan) == ("edge", "local") and NOBODY in one.reason
        assert one.sent_bytes == 0 and one.timings.tail > 0
        same(one.outputs, wanted)


def test_a_plan_that_needs_no_head_is_stood_in_for_by_head_and_tail(plain_dir, image):
    (wanted,) = alone(plain_dir, image)
    with Edge(plain_dir, cloud=NOBODY, plan="jpeg", deadline=LONG, threads=1) as edge:
        result = edge(image)
    assert (result.where, result.plan) == ("edge", "local")
    same(result.outputs, wanted)


def test_a_server_that_is_late_is_waited_for_and_then_stood_in_for(plain_dir, server, image):
    (wanted,) = alone(plain_dir, image)
    with Relay(server.address) as relay:
        with Edge(plain_dir, cloud=relay.address, plan="f32", deadline=1.0, threads=1) as edge:
            reached(edge)
            relay.hole = True
            result = edge(image)
    assert (result.where, result.plan) == ("edge", "local")
    assert "no answer within 1000 ms" in result.reason
    assert result.sent_bytes > 0
    same(result.outputs, wanted)


def test_a_server_in_time_answers_and_the_tail_does_not_run(plain_dir, server, image):
    with Edge(plain_dir, cloud=server.address, plan="f32", deadline=LONG, threads=1) as edge:
        before = edge._standin.tail.seconds
        assert edge(image).where == "cloud"
        assert edge._standin.tail.seconds == before


def test_what_the_server_answers_while_the_tail_runs_still_counts(plain_dir, server, image):
    class Watching:
        """A tail that is not done before the server is, and is said to take nearly all time."""

        seconds, ran, real = LONG - 0.5, 0, None

        def __init__(self, tail):
            self.real, self.sides = tail, tail.sides

        def __call__(self, features, sides):
            self.ran += 1
            flight.pending.future.result(LONG)
            return self.real(features, sides)

    with Relay(server.address) as relay:
        with Edge(plain_dir, cloud=relay.address, plan="f32", deadline=LONG, threads=1) as edge:
            reached(edge)
            relay.rtt = 1.0
            tail = edge._standin.tail = Watching(edge._standin.tail)
            flight = edge.launch(image, time.monotonic())
            result, error = edge.land(flight)
    assert error is None and tail.ran == 1
    assert (result.where, result.plan, result.reason) == ("cloud", "f32", None)


def test_a_tail_without_time_left_is_not_begun_and_the_reason_says_so(plain_dir, image):
    with Edge(plain_dir, cloud=NOBODY, plan="f32", deadline=LONG, threads=1) as edge:
        slow = edge._standin.tail.seconds = 2 * LONG
        (frame,) = [Frame(image, 0, time.monotonic(), "0")]
        ((_, result),) = edge.stream([frame])
        assert (result.where, result.outputs) == (None, {})
        assert NOBODY in result.reason and "no time for the local tail" in result.reason
        assert edge._standin.tail.seconds < slow  # so that it is tried again
        for _ in range(20):
            ((_, result),) = edge.stream([Frame(image, 0, time.monotonic(), "0")])
        assert result.where == "edge"


def test_a_device_that_is_too_slow_for_the_deadline_keeps_no_tail(plain_dir, image, caplog):
    with Edge(plain_dir, cloud=NOBODY, plan="f32", deadline=1e-6, threads=1) as edge:
        assert edge.standin is None and "head and tail take" in caplog.text


def test_a_device_without_room_keeps_no_tail(plain_dir, image, caplog, monkeypatch):
    size = (plain_dir / "tail.onnx").stat().st_size
    monkeypatch.setattr(standin, "available", lambda: standin.ROOM * size - 1)
    with Edge(plain_dir, cloud=NOBODY, plan="f32", deadline=0.5, threads=1) as edge:
        assert edge.standin is None and "are free" in caplog.text
        with pytest.raises(LinkDown):
            edge(image)
    monkeypatch.setattr(standin, "available", lambda: standin.ROOM * size)
    with Edge(plain_dir, cloud=NOBODY, plan="f32", deadline=LONG, threads=1) as edge:
        assert edge.standin == "local"


def test_nobody_stands_in_where_that_is_not_wanted_or_not_there(plain_dir, tmp_path, image):
    shutil.copytree(plain_dir, tmp_path / "bare")
    (tmp_path / "bare" / "tail.onnx").unlink()
    for folder, wanted in ((plain_dir, False), (tmp_path / "bare", True)):
        with Edge(
            folder, cloud=NOBODY, plan="f32", deadline=0.5, threads=1, standin=wanted
        ) as edge:
            assert edge.standin is None
            with pytest.raises(LinkDown):
                edge(image)


def test_an_exit_stands_in_before_any_tail(model_dir, image):
    with Edge(model_dir, cloud=NOBODY, plan="q4", deadline=LONG, threads=1) as edge:
        assert edge.standin == "exit" and edge._standin is None
        assert edge(image).plan == "exit"


def test_a_tail_that_was_changed_is_an_error_and_not_a_stand_in(plain_dir, tmp_path):
    shutil.copytree(plain_dir, tmp_path / "m")
    with (tmp_path / "m" / "tail.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match=r"tail\.onnx"):
        Edge(tmp_path / "m", cloud=NOBODY, plan="f32")


def test_a_server_of_another_model_is_an_error_still(plain_dir, model_dir, image):
    with Server(model_dir, port=0, threads=1) as other:
        with Edge(plain_dir, cloud=other.address, plan="f32", deadline=LONG, threads=1) as edge:
            with pytest.raises(ModelMismatch):
                edge(image)


def test_frames_that_a_controller_does_not_send_are_answered_here(plain_dir, tmp_path, image):
    folder = recorded(plain_dir, tmp_path / "m")
    (wanted,) = alone(folder, image)
    with Server(folder, port=0, threads=1) as server, Relay(server.address) as relay:
        with Edge(folder, cloud=relay.address, deadline=LONG, threads=1) as edge:
            assert edge.estimate is not None and edge.standin == "local"
            reached(edge)
            assert edge(image).where == "cloud"  # the tail, which is as good, is for need alone
            edge._course.pilot.broke()
            result = edge(image)
    assert (result.where, result.plan) == ("edge", "local")
    assert result.reason == "the link is down"
    same(result.outputs, wanted)


def test_free_memory_is_what_the_system_tells_else_half_of_all(tmp_path, monkeypatch):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal: 900 kB\nMemAvailable:     300 kB\n")
    monkeypatch.setattr(memory, "TOLD", told)
    assert memory.available() == 300 << 10
    told.unlink()
    assert memory.available() > 1 << 20
