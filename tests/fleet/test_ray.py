"""Replicas under Ray Serve, by `splitrt serve --ray`: placed, killed, changed, drained."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from splitrt import Edge, SplitrtError, Trust
from splitrt.cloud import Guard, Quota, Seen, oip
from splitrt.core.manifest import Manifest
from splitrt.edge.fleet import replicas
from splitrt.wire import fleet_pb2 as wire
from splitrt.wire.fleet_pb2_grpc import FleetStub
from tests.cloud.guest import arrays, asking, call, code, jpeg
from tests.conftest import ROOT, pictures

pytest.importorskip("ray", reason="the extra `ray` is not installed")

START = 180.0  # seconds
READY = "ModelReadyRequest"


@dataclass(slots=True)
class Running:
    """`splitrt serve --ray`: its process, its door, its port for stock clients, its model."""

    process: subprocess.Popen[str]
    door: str
    stock: str
    folder: Path

    @property
    def known(self) -> list[wire.Replica]:
        """Those that live, as the door tells."""
        with grpc.insecure_channel(self.door) as channel:
            return list(FleetStub(channel).Replicas(wire.Inquiry(), timeout=10).replicas)


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def soon(condition: Callable[[], bool], seconds: float = START) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def listener(address: str) -> int:
    """The process that listens there."""
    port = int(address.rsplit(":", 1)[1])
    tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    nodes = [row[9] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) in {f"socket:[{node}]" for node in nodes}:
                return int(link.parts[2])
        except OSError:  # it has ended
            continue
    raise AssertionError(f"nobody listens at {address}")


def below(pid: int) -> set[int]:
    """A process and all that it began."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # it has ended
            continue
    found = {pid}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@pytest.fixture(scope="module")
def running(model_dir, tmp_path_factory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("ray") / "small"
    shutil.copytree(model_dir, folder)
    stock = f"127.0.0.1:{free()}"
    words = ["serve", folder, "--threads", "1", "--port", "0", "--ray", "--replicas", "2"]
    words += ["--stock-port", stock.rsplit(":", 1)[1]]
    process = subprocess.Popen(
        [sys.executable, "-m", "splitrt.cli", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    alarm = threading.Timer(START, process.kill)
    alarm.start()
    try:
        lines = iter(process.stdout.readline, "")
        found = next(filter(None, (re.search(r"fleet://(\S+)$", line.strip()) for line in lines)))
        yield Running(process, found[1], stock, folder)
    finally:
        alarm.cancel()
        process.terminate()
        process.wait(60)


@pytest.fixture
def channel(running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.stock) as opened:
        yield opened


def test_devices_ask_the_door_and_go_to_the_replicas_themselves(running, server):
    image = pictures(1).images[0]
    told = replicas(running.door, Trust())
    assert len(told) == 2 and running.door not in told
    assert soon(lambda: all(set(replicas(one, Trust())) == set(told) for one in told))
    digest = Manifest.load(running.folder).digest
    assert all([one.manifest for one in known.models] == [digest] for known in running.known)
    with Edge(running.folder, cloud=server.address, plan="q4") as edge:
        alone = edge(image).outputs["logits"]
    with Edge(running.folder, cloud=f"fleet://{running.door}", plan="q4") as edge:
        answer = edge(image)
        assert answer.where == "cloud"
        assert np.array_equal(answer.outputs["logits"], alone)
        assert soon(lambda: sum(one.devices for one in running.known) == 1)


def test_stock_clients_are_answered_by_ray_as_by_a_replica(running, channel):
    files = [jpeg(image) for image in pictures(3, seed=3).images]
    request = asking("small", {"image": files}, id="7")
    with grpc.insecure_channel(running.known[0].address) as direct:
        wanted = call(direct, "ModelInfer", request)
    found = call(channel, "ModelInfer", request)
    assert found.id == "7" and found == wanted
    assert arrays(found)["logits"].shape == (3, 10)
    assert call(channel, "ServerLive").live and call(channel, "ServerReady").ready
    assert call(channel, "ServerMetadata").name == "splitrt"
    name = oip.message(READY)(name="small")
    assert call(channel, "ModelReady", name).ready
    metadata = oip.message("ModelMetadataRequest")(name="small")
    assert call(channel, "ModelMetadata", metadata).outputs[0].name == "logits"


def test_a_stock_client_is_told_what_was_wrong(running, channel):
    assert code(channel, "ModelReady", oip.message(READY)(name="other"))[0] == "NOT_FOUND"
    found = code(channel, "ModelInfer", asking("small", {"image": [b"no picture"]}))
    with grpc.insecure_channel(running.known[0].address) as direct:
        assert found == code(direct, "ModelInfer", asking("small", {"image": [b"no picture"]}))
    assert found[0] == "INVALID_ARGUMENT"
    assert code(channel, "ModelInfer", b"\xff\xff")[0] == "INVALID_ARGUMENT"


def test_a_stream_of_a_stock_client_passes_through_ray(channel):
    files = [jpeg(image) for image in pictures(3, seed=3).images]
    requests = [asking("small", {"image": [f]}, id=str(n)) for n, f in enumerate(files)]
    raws = iter([one.SerializeToString() for one in requests])
    streamed = channel.stream_stream(f"/{oip.SERVICE}/ModelStreamInfer")(raws, timeout=60)
    kind = oip.message("ModelStreamInferResponse")
    assert [kind.FromString(raw).infer_response.id for raw in streamed] == ["0", "1", "2"]


class Load:
    """Devices that send a frame after the other, each in a thread, until it is left.

    pause: seconds between two frames.
    """

    def __init__(self, folder: Path, cloud: str, devices: int, pause: float = 0.03) -> None:
        self._told, self._over = (folder, cloud), threading.Event()
        self._pause = pause
        self.seen: list[list[str | None]] = [[] for _ in range(devices)]
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in self.seen]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(START)

    def _run(self, seen: list[str | None]) -> None:
        image = pictures(1).images[0]
        folder, cloud = self._told
        with Edge(folder, cloud=cloud, plan="q4") as edge:
            while not self._over.wait(self._pause):
                result = edge(image)
                assert result.outputs
                seen.append(result.where)

    def answered(self, count: int) -> bool:
        """Whether every device gets so many more answers of a server."""
        wanted = [seen.count("cloud") + count for seen in self.seen]
        pairs = list(zip(self.seen, wanted, strict=True))
        return soon(lambda: all(seen.count("cloud") >= count for seen, count in pairs))


def test_a_killed_replica_costs_no_frame_and_its_successor_is_used(running):
    with Load(running.folder, f"fleet://{running.door}", devices=2) as load:
        assert load.answered(20)
        assert soon(lambda: [one.devices for one in running.known] == [1, 1])
        before = {one.address for one in running.known}
        os.kill(listener(killed := min(before)), signal.SIGKILL)
        assert load.answered(20)
        assert soon(lambda: killed not in {one.address for one in running.known})
        assert soon(lambda: len(running.known) == 2)
        assert soon(lambda: [one.devices for one in running.known] == [1, 1])
        assert load.answered(20)
    seen = Counter(where for one in load.seen for where in one)
    assert set(seen) <= {"cloud", "edge"} and seen["edge"] < 0.1 * seen["cloud"]
    assert all(one[-1] == "cloud" for one in load.seen)


def test_a_changed_model_is_taken_up_by_every_replica(running, channel):
    text = (running.folder / "model.toml").read_text()
    (running.folder / "model.toml").write_text(text.replace('name = "small"', 'name = "newer"', 1))
    running.process.send_signal(signal.SIGHUP)
    wanted = {"newer": Manifest.load(running.folder).digest}

    def taken() -> bool:
        return all({m.name: m.manifest for m in one.models} == wanted for one in running.known)

    assert soon(taken) and len(running.known) == 2
    assert code(channel, "ModelReady", oip.message(READY)(name="newer"))[0] == "OK"


def test_at_the_end_all_is_answered_and_nothing_of_ray_stays(running):
    """The last of this file: it ends what the others asked."""
    processes = below(running.process.pid)
    assert len(processes) > 4
    with Load(running.folder, f"fleet://{running.door}", devices=2) as load:
        assert load.answered(20)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
        assert soon(lambda: all("edge" in seen for seen in load.seen))
    for seen in load.seen:  # each until the end, and then each device by itself
        assert None not in seen
        last = len(seen) - seen[::-1].index("cloud")
        assert seen[:last].count("edge") <= 2
    assert soon(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), 30)


def test_replicas_come_with_more_frames_and_go_without_losing_one(model_dir):
    from splitrt.fleet.fleet import Fleet, Place
    from splitrt.fleet.scale import Scale

    def spread() -> bool:
        with grpc.insecure_channel(fleet.address.removeprefix("fleet://")) as channel:
            known = FleetStub(channel).Replicas(wire.Inquiry(), timeout=10).replicas
        return [one.devices for one in known] == [1, 1]

    scale = Scale(1, 2, busy=0.05, up=1.0, down=8.0)
    with Fleet(model_dir, {"threads": 1}, place=Place(port=0), scale=scale) as fleet:
        assert len(fleet.replicas) == 1
        with Load(model_dir, fleet.address, devices=4):
            assert soon(lambda: len(fleet.replicas) == 2)
        with Load(model_dir, fleet.address, devices=2, pause=0.3) as load:
            assert soon(spread)
            assert soon(lambda: len(fleet.replicas) == 1)
            assert load.answered(10)
        for seen in load.seen:
            assert "edge" not in seen[seen.index("cloud") :]


def test_what_ray_cannot_do_is_said_before_it_starts(model_dir, tmp_path):
    from splitrt.fleet.fleet import Fleet, Place

    tokens = tmp_path / "tokens"
    tokens.write_text(f"door-cam:{'c0ffee' * 8}\n")
    for options, place, words in (
        ({"seen": Seen(9100)}, Place(), "cannot share a port for metrics"),
        ({"guard": Guard(tokens=tokens)}, Place(stock=9000), "tokens would travel unencrypted"),
        ({"host": "0.0.0.0", "guard": Guard(tokens=tokens)}, Place(), "would travel unencrypted"),
    ):
        with pytest.raises(SplitrtError, match=words):
            Fleet(model_dir, options, place=place)


def test_files_are_named_wholly_for_other_machines(monkeypatch, tmp_path):
    from splitrt.fleet.fleet import absolute

    monkeypatch.chdir(tmp_path)
    quota = Quota(frames_per_second=5)
    found = absolute({"guard": Guard(tokens="tokens"), "tails": ["more"], "quota": quota})
    assert found["guard"].tokens == tmp_path / "tokens" and found["guard"].cert is None
    assert found["tails"] == [tmp_path / "more"] and found["quota"] is quota


def test_a_gpu_is_asked_for_where_the_tail_runs_on_one():
    from splitrt.fleet.fleet import deployment
    from splitrt.fleet.scale import Scale

    told = deployment({"device": "cuda", "grace": 5.0}, Scale(3, 3))
    assert told["ray_actor_options"]["num_gpus"] == 1 and told["num_replicas"] == 3
    told = deployment({"device": "cpu", "grace": 5.0, "threads": 2}, Scale(1, 4, busy=6))
    assert told["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0}
    assert told["autoscaling_config"]["max_replicas"] == 4
    assert told["graceful_shutdown_timeout_s"] > 5.0


def test_why_replicas_do_not_start_is_told_in_their_own_words():
    from splitrt.fleet.fleet import _told

    def app(message: str) -> SimpleNamespace:
        return SimpleNamespace(deployments={"Replica": SimpleNamespace(message=message)})

    trace = "Traceback:\n  File\nsplitrt.errors.ModelError: no model.toml\nhelp: name it\n\n"
    assert _told(app(trace)) == "splitrt.errors.ModelError: no model.toml\nhelp: name it"
    assert _told(app("waits for 1 GPU")).startswith("waits for 1 GPU\nhelp: what it needs")
    assert _told(None).startswith("no reason is known\nhelp: ")


def test_a_replica_lives_on_while_neither_the_book_nor_ray_answers(monkeypatch):
    from ray.exceptions import RaySystemError

    from splitrt.fleet import replica

    def silent(*_: object) -> None:
        raise RaySystemError("nobody answers")

    one, beats = replica.Replica.__new__(replica.Replica), []

    def beat() -> None:
        beats.append(None)
        if len(beats) == 3:
            one._over.set()
        silent()

    one._life, one._over, one._samples, one._named = ExitStack(), threading.Event(), [], "book"
    one.server, one._beat = SimpleNamespace(inflight=0), beat
    monkeypatch.setattr(replica, "opened", silent)
    monkeypatch.setattr(replica, "BEAT", 0.05)
    one._live()
    assert len(beats) == 3


def test_of_a_stock_client_it_is_passed_on_who_asks_and_in_which_trace():
    from splitrt.fleet.replica import _passed

    known = [("authorization", "Bearer x"), ("traceparent", "00-a-b-01")]
    told = [("user-agent", "grpc"), *known]
    assert _passed(SimpleNamespace(invocation_metadata=lambda: told)) == known
