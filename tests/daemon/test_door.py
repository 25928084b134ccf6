"""The socket: an Edge's calls from another program, and what strangers may send to it."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from splitrt import (
    Edge,
    Frame,
    LinkDown,
    LinkError,
    ModelError,
    PacketError,
    Pictures,
    Result,
    SplitrtError,
    connect,
)
from splitrt.daemon import arrays
from splitrt.daemon.life import Daemon
from splitrt.wire import daemon_pb2 as wire
from splitrt.wire.daemon_pb2_grpc import DaemonStub
from tests.daemon.house import folder_of, picture, running, told, until, write


@pytest.fixture(scope="module")
def house(tmp_path_factory, model_dir, server) -> Iterator[tuple[Path, Daemon]]:
    folder = tmp_path_factory.mktemp("house")
    tables = told(folder, model_dir, server.address)
    tables["models"]["alone"] = {"path": str(model_dir), "threads": 1}
    with running(folder, tables) as daemon:
        yield folder, daemon


@contextmanager
def raw(folder: Path) -> Iterator[Any]:
    """The stub itself, which sends whatever it is told."""
    with grpc.insecure_channel(f"unix:{folder / 's'}") as channel:
        yield DaemonStub(channel)


def test_a_program_is_answered_as_by_an_edge_of_its_own(house, model_dir, server, image):
    folder, _ = house
    with (
        connect(folder / "s", model="small") as remote,
        Edge(model_dir, cloud=server.address, plan="q4", deadline=5) as edge,
    ):
        assert remote.manifest == edge.manifest
        assert remote.manifest.digest == edge.manifest.digest
        assert (remote.plan, remote.deadline) == ("q4", 5.0)
        for inputs in (image, {edge.manifest.input.name: image}):
            here, there = edge(inputs), remote(inputs)
            np.testing.assert_allclose(there.outputs["logits"], here.outputs["logits"], atol=1e-3)
            assert (there.where, there.plan, there.reason) == (here.where, here.plan, here.reason)
            assert there.sent_bytes == here.sent_bytes and there.confidence is not None
            assert 0 < there.timings.head < there.timings.total
            there.outputs["logits"][0] = 1.0  # it is the caller's


def test_a_stream_gives_every_frame_once_in_order(house, model_dir):
    folder, _ = house
    source = folder_of(folder / "others", 30, seed=5)
    with connect(folder / "s", model="small") as remote, Edge(model_dir, plan="exit") as edge:
        found = list(remote.stream(Pictures(source), inflight=3))
        assert [frame.index for frame, _ in found] == list(range(30))
        assert {result.where for _, result in found} == {"cloud"}
        remote.plan = "exit"  # pinned for all who use it
        wanted = [result for _, result in edge.stream(Pictures(source))]
        found = list(remote.stream(Pictures(source)))
        remote.plan = "q4"
    assert {result.where for _, result in found} == {"edge"}
    for (_, one), two in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.outputs["logits"], two.outputs["logits"], atol=1e-5)


def test_a_stream_can_be_left_and_what_its_source_raises_is_raised(house):
    folder, _ = house

    def broken() -> Iterator[Frame]:
        yield Frame(picture(), 0, time.monotonic(), "first")
        raise OSError("unplugged")

    with connect(folder / "s", model="small") as remote:
        for _ in remote.stream(Pictures(folder / "camera")):
            break
        with pytest.raises(OSError, match="unplugged"):
            list(remote.stream(broken()))
        with pytest.raises(SplitrtError, match="at least 1"):
            list(remote.stream([], inflight=0))
        assert list(remote.stream([])) == []
    until(lambda: not [one for one in threading.enumerate() if one.name == "feed-api"])


def test_a_camera_can_be_watched(house):
    folder, daemon = house
    with connect(folder / "s", model="small") as remote:
        names = []
        for name, result, size in remote.watch("door"):
            assert result.where == "cloud" and result.outputs["logits"].shape == (10,)
            assert size == (32, 32)
            names.append(name)
            if len(names) == 25:
                break
        files = [path.name for path in Pictures(folder / "camera").files]
        start = files.index(names[0])
        assert names == [files[(start + step) % 20] for step in range(25)]
        with pytest.raises(SplitrtError, match="did you mean 'door'"):
            next(remote.watch("doors"))
    until(lambda: daemon.audience.size == 0)


def test_errors_come_as_what_an_edge_raises(house):
    folder, _ = house
    with pytest.raises(SplitrtError, match="no model 'smal' in this daemon\nhelp: did you mean"):
        connect(folder / "s", model="smal")
    with pytest.raises(SplitrtError, match="one of small, alone"):
        connect(folder / "s")
    with pytest.raises(LinkDown, match="no daemon at"):
        connect(folder / "none")
    with connect(folder / "s", model="small") as remote:
        with pytest.raises(SplitrtError, match="did you mean 'q4'"):
            remote.plan = "q44"
        with pytest.raises(PacketError, match="inputs \\['nothing'\\]"):
            remote({"nothing": picture()})
        with pytest.raises(PacketError, match="float64"):
            remote(np.zeros((32, 32, 3)))
        with pytest.raises(PacketError, match="should be uint8"):
            remote(np.zeros((32, 32, 3), np.float32))
    with connect(folder / "s", model="alone") as remote:
        with pytest.raises(SplitrtError, match="needs a server"):
            remote.plan = "q4"


def test_a_model_without_a_stand_in_raises_what_its_link_does(tmp_path, plain_dir):
    tables = told(tmp_path, plain_dir, "127.0.0.1:9")
    tables["models"]["small"] |= {"plan": "q8", "deadline": 0.2, "standin": False}
    tables["cameras"] = {}
    with running(tmp_path, tables), connect(tmp_path / "s") as remote:
        with pytest.raises(LinkError):
            remote(picture())


ARRAYS = {
    "one byte short": ("uint8", [32, 32, 3], 3071),
    "one byte more": ("uint8", [32, 32, 3], 3073),
    "no bytes": ("uint8", [32, 32, 3], 0),
    "a shape of 2^66 bytes": ("uint8", [1 << 33, 1 << 33], 16),
    "a shape that wraps to 0": ("int64", [1 << 63, 2], 0),
    "too many dimensions": ("uint8", [1] * 100_000, 1),
    "nothing times 2^60": ("uint8", [0, 1 << 60], 0),
    "an object": ("object", [1], 8),
    "a pickle": ("O", [1], 8),
    "a structure": ("i4,i4", [1], 8),
    "a dtype of 1 MiB": ("x" * (1 << 20), [1], 1),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_that_is_not_what_it_says_is_refused(house, case):
    folder, daemon = house
    dtype, shape, size = ARRAYS[case]
    one = wire.Array(dtype=dtype, shape=shape, data=b"\x80" * size)
    with raw(folder) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Ask(wire.Question(model="small", inputs=[one]), timeout=20)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.details().startswith("PacketError: ")
        assert len(caught.value.details()) < 500
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Stream(iter([wire.Question(model="small", inputs=[one])]), timeout=20))
        assert caught.value.details().startswith("PacketError: ")
    with connect(folder / "s", model="small") as remote:
        assert remote(picture()).where == "cloud"
    assert daemon.well


def test_names_that_are_none_and_too_many_arrays_are_refused(house):
    folder, _ = house
    good = arrays.packed({"": picture()})[0]
    with raw(folder) as stub:
        for question in (
            wire.Question(model="../../etc/passwd", inputs=[good]),
            wire.Question(model="x" * (1 << 20), inputs=[good]),
            wire.Question(model="small", inputs=[good, good]),
            wire.Question(model="small"),
            wire.Question(
                model="small", inputs=[wire.Array(name=f"{n}", dtype="uint8") for n in range(9999)]
            ),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Ask(question, timeout=20)
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert len(caught.value.details()) < 500


def test_a_message_over_the_limit_is_refused_before_it_is_read(house):
    folder, daemon = house
    huge = wire.Array(dtype="uint8", shape=[1], data=bytes(arrays.LARGEST))
    with raw(folder) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Ask(wire.Question(model="small", inputs=[huge]), timeout=60)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert daemon.well


def test_bytes_that_are_no_protocol_leave_it_well(house):
    folder, _ = house
    for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"PRI * HTTP/2.0\r\n\r\nSM"):
        with socket.socket(socket.AF_UNIX) as plug:
            plug.connect(str(folder / "s"))
            plug.sendall(junk)
    with connect(folder / "s", model="small") as remote:
        assert remote(picture()).where == "cloud"


def test_one_who_watches_and_never_reads_holds_nobody_up(house):
    folder, daemon = house
    with raw(folder) as stub:
        call = stub.Watch(wire.Which(name="door"))
        next(call)
        before = daemon.status()["cameras"]["door"]["frames"]
        until(lambda: daemon.status()["cameras"]["door"]["frames"] > before + 100)
        call.cancel()
    until(lambda: daemon.audience.size == 0)


def test_an_answer_that_cannot_be_is_an_error_of_the_caller():
    reply = arrays.reply("x", 0, Result({"logits": np.array([1, 2], np.float32)}, "edge", "exit"))
    assert arrays.result(reply).outputs["logits"].tolist() == [1.0, 2.0]
    reply.where = "elsewhere"
    with pytest.raises(PacketError, match="an answer from 'elsewhere'"):
        arrays.result(reply)
    reply.where = "edge"
    reply.outputs[0].shape[0] = 3
    with pytest.raises(PacketError, match="should have 12 bytes, has 8"):
        arrays.result(reply)


def test_the_socket_is_for_its_group_only(house):
    folder, _ = house
    mode = (folder / "s").stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o660


def test_two_daemons_do_not_share_a_socket_and_a_dead_ones_is_taken(tmp_path, model_dir):
    tables = told(tmp_path, model_dir)
    with running(tmp_path, tables):
        with pytest.raises(LinkError, match="a daemon listens"):
            Daemon(tmp_path / "daemon.toml", {})
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(tmp_path / "s"))  # and dies without removing it
    with running(tmp_path, tables), connect(tmp_path / "s") as remote:
        assert remote(picture()).where == "edge"
    (tmp_path / "s").write_text("precious")
    with pytest.raises(LinkError, match="is there and no socket"):
        Daemon(tmp_path / "daemon.toml", {})
    assert (tmp_path / "s").read_text() == "precious"
    write(tmp_path, {**tables, "socket": "x" * 120})
    with pytest.raises(LinkError, match="too long for a socket"):
        Daemon(tmp_path / "daemon.toml", {})


def test_a_daemon_that_ends_answers_what_was_asked(tmp_path, model_dir, server):
    """Frames go on until it ends; each that was taken has its answer, then the caller is told."""
    tables = told(tmp_path, model_dir, server.address)
    answered: list[int] = []

    def endless() -> Iterator[Frame]:
        index = 0
        while True:
            yield Frame(picture(), index, time.monotonic(), f"{index}")
            index += 1

    with running(tmp_path, tables) as daemon, connect(tmp_path / "s") as remote:
        with pytest.raises(LinkDown, match="ended"):
            for frame, result in remote.stream(endless()):
                assert result.where is not None
                answered.append(frame.index)
                if frame.index == 10:
                    threading.Thread(target=daemon.close).start()
    assert answered == list(range(len(answered))) and len(answered) > 10


def test_a_reload_through_the_socket_says_what_changed_or_why_not(tmp_path, model_dir):
    tables = told(tmp_path, model_dir)
    with running(tmp_path, tables), connect(tmp_path / "s") as remote:
        before = remote.manifest
        tables["models"]["small"]["plan"] = "local"
        write(tmp_path, tables)
        assert remote.reload() == ["model small: changed"]
        assert remote.plan == "local" and remote.manifest is before
        write(tmp_path, {**tables, "models": {"small": {"path": "nowhere"}}})
        with pytest.raises(ModelError, match=r"models.small: .*nowhere has no model.toml"):
            remote.reload()
        assert remote(picture()).plan == "local"
        assert remote.status()["reloads"] == {"done": 1, "refused": 1}
