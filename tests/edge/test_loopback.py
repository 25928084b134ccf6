"""Device and server over real sockets: the identity first, then what goes wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from splitrt import (
    DeadlineMissed,
    Edge,
    Frame,
    LinkDown,
    LinkError,
    ModelMismatch,
    PacketError,
    SplitrtError,
)
from splitrt.cloud import Server
from splitrt.edge.link import OPTIONS
from splitrt.relay import Relay
from tests.conftest import pictures


def frames(count: int) -> Iterator[Frame]:
    for index, image in enumerate(pictures(count, seed=3).images):
        yield Frame(image, index, time.monotonic(), f"{index}")


def soon(condition, seconds: float = 20.0) -> bool:
    """Whether it becomes true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_split_model_answers_as_the_whole_one_did(plain_dir, whole, image):
    from splitrt.train import Pixels

    with Server(plain_dir, port=0, threads=1) as server:
        with Edge(plain_dir, cloud=server.address, plan="f32") as edge:
            result = edge({"image": image})
    wanted = whole(Pixels()(torch.from_numpy(image)[None]))[0].detach().numpy()
    gap = np.linalg.norm(result.outputs["logits"] - wanted) / np.linalg.norm(wanted)
    assert gap <= 1e-4
    assert (result.where, result.reason) == ("cloud", None)


@pytest.mark.parametrize("plan", ["f32", "f16", "q8", "q4"])
def test_every_rung_answers_and_fewer_bits_are_fewer_bytes(model_dir, server, image, plan):
    with Edge(model_dir, cloud=server.address, plan="f32") as edge:
        exact = edge(image)
    with Edge(model_dir, cloud=server.address, plan=plan) as edge:
        result = edge(image)
    assert result.plan == plan
    assert result.where == "cloud"
    assert result.sent_bytes <= exact.sent_bytes
    far = np.linalg.norm(result.outputs["logits"] - exact.outputs["logits"])
    assert far <= {"f32": 0, "f16": 1e-2, "q8": 0.1, "q4": 0.5}[plan] * np.linalg.norm(
        exact.outputs["logits"]
    )


def test_a_whole_picture_as_jpeg_is_answered_as_the_whole_model_answers_that_jpeg(
    model_dir, server, whole
):
    from splitrt.core.codec import codecs
    from splitrt.core.manifest import Manifest
    from splitrt.train import Pixels

    codec = codecs(model_dir, Manifest.load(model_dir))["jpeg"]
    with Edge(model_dir, cloud=server.address, plan="jpeg") as edge:
        for frame, result in edge.stream(frames(6)):
            seen = codec.open(codec.encode(frame.image))
            pixels = torch.frombuffer(bytearray(seen), dtype=torch.uint8).view(1, 32, 32, 3)
            wanted = whole(Pixels()(pixels))[0].detach().numpy()
            assert (result.where, result.plan, result.reason) == ("cloud", "jpeg", None)
            np.testing.assert_allclose(result.outputs["logits"], wanted, rtol=1e-4, atol=1e-5)
    with Edge(model_dir, cloud="127.0.0.1:1", plan="jpeg") as edge:
        assert edge(frame.image).plan == "exit"  # which stands in


def test_the_envelope_costs_less_than_twenty_bytes(model_dir, server, image):
    with Edge(model_dir, cloud=server.address, plan="f32", deadline=5) as edge:
        assert edge(image).sent_bytes - 4 * edge.manifest.widths[-1].elements < 20


def test_the_timings_add_up(model_dir, server, image):
    with Edge(model_dir, cloud=server.address, plan="q4") as edge:
        timings = edge(image).timings
    words = timings.capture + timings.head + timings.gate + timings.codec
    words += timings.link + timings.server + timings.batch + timings.tail
    assert words <= timings.total + 0.01
    assert min(timings.head, timings.link, timings.tail) > 0


def test_a_stream_gives_each_frame_once_in_order(model_dir, server):
    with Edge(model_dir, cloud=server.address, plan="q4") as edge:
        streamed = list(edge.stream(frames(200)))
        single = [edge(frame.image) for frame in frames(200)]
    assert [frame.index for frame, _ in streamed] == list(range(200))
    assert all(result.where == "cloud" for _, result in streamed)
    for (_, one), other in zip(streamed, single, strict=True):
        np.testing.assert_allclose(one.outputs["logits"], other.outputs["logits"], atol=1e-4)


def test_a_port_that_is_taken_is_said(model_dir, server):
    with pytest.raises(LinkError, match="cannot be bound"):
        Server(model_dir, port=server.port)


def test_without_a_server_the_device_answers(model_dir, image):
    with Edge(model_dir) as edge:
        assert (edge(image).where, edge(image).plan) == ("edge", "exit")
    with Edge(model_dir, plan="local") as edge:
        result = edge(image)
    assert (result.where, result.sent_bytes) == ("edge", 0)
    assert result.timings.tail > 0 and result.timings.link == 0


def test_local_is_the_same_model_as_the_server(model_dir, server, image):
    with Edge(model_dir, plan="local") as edge:
        here = edge(image).outputs["logits"]
    with Edge(model_dir, cloud=server.address, plan="f32") as edge:
        np.testing.assert_allclose(edge(image).outputs["logits"], here, rtol=1e-4, atol=1e-5)


def test_another_model_is_an_error_and_never_an_answer(model_dir, plain_dir, image):
    with Server(plain_dir, port=0, threads=1) as server:
        with Edge(model_dir, cloud=server.address, plan="q4") as edge:
            with pytest.raises(ModelMismatch, match="help:"):
                edge(image)
            with pytest.raises(ModelMismatch):
                list(edge.stream(frames(3)))


def test_another_model_stays_an_error_until_the_right_server_comes(model_dir, plain_dir, image):
    wrong = Server(plain_dir, port=0, threads=1)
    with Edge(model_dir, cloud=wrong.address, plan="q4") as edge:
        with pytest.raises(ModelMismatch):
            edge(image)
        wrong.close()
        for _ in range(10):
            time.sleep(0.1)  # it is tried again meanwhile, and nobody is there
            with pytest.raises(ModelMismatch):
                edge(image)
        with Server(model_dir, port=wrong.port, threads=1):
            assert soon(lambda: edge._link.up)
            assert edge(image).where == "cloud"


def test_nobody_there_is_answered_locally_with_the_reason(model_dir, image):
    with Edge(model_dir, cloud="127.0.0.1:1", plan="q4", deadline=0.5) as edge:
        result = edge(image)
    assert result.where == "edge"
    assert "127.0.0.1:1" in result.reason


def test_nobody_there_and_nobody_to_stand_in_raises_or_is_named(plain_dir, image):
    with Edge(plain_dir, cloud="127.0.0.1:1", plan="f16", deadline=0.5, standin=False) as edge:
        with pytest.raises(LinkDown):
            edge(image)
        ((_, result),) = edge.stream(frames(1))
    assert (result.where, result.outputs) == (None, {})
    assert result.reason


def test_a_late_answer_is_not_an_answer(model_dir, plain_dir, server, image):
    with Relay(server.address) as relay:
        with Edge(model_dir, cloud=relay.address, plan="q4", deadline=0.3) as edge:
            assert soon(lambda: edge(image).where == "cloud")
            relay.rtt = 0.6
            result = edge(image)
            assert (result.where, result.plan) == ("edge", "exit")
            assert "300 ms" in result.reason
            assert result.timings.total < 1000


def test_a_late_answer_without_a_stand_in_is_deadline_missed(plain_dir, image):
    with Server(plain_dir, port=0, threads=1) as server, Relay(server.address) as relay:
        with Edge(plain_dir, cloud=relay.address, plan="f16", deadline=0.3, standin=False) as edge:
            assert soon(lambda: next(iter(edge.stream(frames(1))))[1].where == "cloud")
            relay.rtt = 0.6
            with pytest.raises(DeadlineMissed):
                edge(image)


def test_a_cut_line_loses_no_frame_and_comes_back(model_dir, server):
    with Relay(server.address) as relay:
        with Edge(model_dir, cloud=relay.address, plan="q4", deadline=0.5) as edge:
            results = []
            for frame, result in edge.stream(frames(60)):
                results.append((frame.index, result.where))
                if frame.index in (20, 40):
                    relay.cut()
            assert [index for index, _ in results] == list(range(60))
            assert all(where in ("edge", "cloud") for _, where in results)
            assert soon(lambda: edge(pictures(1).images[0]).where == "cloud")


def test_a_black_hole_is_left_after_the_silence(model_dir, server, image):
    with Relay(server.address) as relay:
        with Edge(model_dir, cloud=relay.address, plan="q4", deadline=0.2) as edge:
            assert soon(lambda: edge(image).where == "cloud")
            relay.hole = True
            until = time.monotonic() + 4
            while time.monotonic() < until:
                result = edge(image)
                assert result.where == "edge" and result.reason
                time.sleep(0.05)
            relay.hole = False
            assert soon(lambda: edge(image).where == "cloud")


def test_a_message_cut_in_the_middle_harms_nobody(model_dir, server, image):
    with Relay(server.address) as relay:
        relay.truncate = 400
        with Edge(model_dir, cloud=relay.address, plan="f32", deadline=0.5) as edge:
            assert all(edge(image).where == "edge" for _ in range(3))
            relay.truncate = None
            assert soon(lambda: edge(image).where == "cloud")


def test_a_killed_server_comes_back_on_the_same_port(model_dir, image):
    process, port = served(model_dir, 0)
    with Edge(model_dir, cloud=f"127.0.0.1:{port}", plan="q4", deadline=1.0) as edge:
        assert soon(lambda: edge(image).where == "cloud")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        result = edge(image)
        assert result.where == "edge" and result.reason
        process, _ = served(model_dir, port)
        try:
            assert soon(lambda: edge(image).where == "cloud")
        finally:
            process.terminate()
            assert process.wait(20) == 0


def test_a_server_closes_at_once_after_its_last_answers(model_dir, image):
    server = Server(model_dir, port=0, threads=1)
    with Edge(model_dir, cloud=server.address, plan="q4", deadline=5) as edge:
        assert edge(image).where == "cloud"
        flights = [edge.launch(image, time.monotonic()) for _ in range(8)]
        time.sleep(0.05)  # they have arrived
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 2  # though the device is still connected
        assert [edge.land(flight)[0].where for flight in flights] == ["cloud"] * 8


def test_every_channel_option_is_one_that_grpc_knows(server):
    """gRPC ignores a misspelt option without a word."""
    known = Path(grpc._cython.cygrpc.__file__).read_bytes()
    for name, _ in [*OPTIONS, *server._options()]:
        assert name.encode() in known, name


def served(folder: Path, port: int) -> tuple[subprocess.Popen, int]:
    command = [sys.executable, "-m", "splitrt.cli", "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.PIPE, text=True)
    found = re.search(r":(\d+)$", process.stdout.readline().strip())
    return process, int(found.group(1))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((32, 32), np.uint8), "uint8 .height, width, 3."),
        (np.zeros((32, 32, 3), np.float32), "float32"),
        ({"imago": np.zeros((32, 32, 3), np.uint8)}, "'image'"),
    ],
)
def test_bad_input_is_named(model_dir, wrong, words):
    with Edge(model_dir) as edge, pytest.raises(PacketError, match=words):
        edge(wrong)


def test_a_bad_frame_in_a_stream_is_a_result_and_the_next_goes_on(model_dir):
    def source():
        yield Frame(np.zeros((1, 1), np.uint8), 0, time.monotonic(), "bad")
        yield from frames(2)

    with Edge(model_dir) as edge:
        wheres = [result.where for _, result in edge.stream(source())]
    assert wheres == [None, "edge", "edge"]


def test_a_source_that_fails_fails_at_the_consumer(model_dir):
    def source():
        yield from frames(2)
        raise OSError("the camera fell down")

    with Edge(model_dir) as edge, pytest.raises(OSError, match="fell down"):
        list(edge.stream(source()))


def test_leaving_a_stream_early_ends_its_thread(model_dir):
    import threading

    with Edge(model_dir) as edge:
        for _ in edge.stream(frames(1000)):
            break
    assert soon(lambda: all(thread.name != "head" for thread in threading.enumerate()))


def test_unknown_plans_and_deadlines_are_named(model_dir):
    with pytest.raises(SplitrtError, match="did you mean 'q4'"):
        Edge(model_dir, cloud="127.0.0.1:1", plan="q44")
    with pytest.raises(SplitrtError, match="needs a server"):
        Edge(model_dir, plan="q4")
    with pytest.raises(SplitrtError, match="deadline"):
        Edge(model_dir, deadline=0)


def test_a_missing_provider_is_said_and_not_replaced(model_dir):
    with pytest.raises(SplitrtError, match="no CUDAExecutionProvider"):
        Edge(model_dir, provider="CUDA")
