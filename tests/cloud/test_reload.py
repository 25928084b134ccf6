"""A model directory that changes while devices are served."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from splitrt import Edge, ModelError, Refused
from splitrt.cloud import Server
from splitrt.cloud.batch import Batcher, Job
from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire
from tests.edge.test_loopback import soon
from tests.line import Line

FACTORS = (1, 4, 16, 64)


def scaled(source: Path, to: Path, factor: int) -> Path:
    """The same head; a tail whose answers are `factor` times as large."""
    shutil.copytree(source, to)
    path = to / "tail.pt2"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    program = torch.export.load(str(path))
    with torch.no_grad():
        for name, tensor in program.state_dict.items():
            if "classify" in name:
                tensor *= factor
    torch.export.save(program, str(path))
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    toml = to / "model.toml"
    toml.write_text(toml.read_text().replace(before, after))
    return to


@pytest.fixture(scope="module")
def revisions(model_dir, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("revisions")
    return [scaled(model_dir, folder / str(factor), factor) for factor in FACTORS]


def put(current: Path, revision: Path) -> None:
    """Let the link `current` lead there, at once."""
    fresh = current.with_name("fresh")
    fresh.symlink_to(revision)
    os.replace(fresh, current)


@pytest.fixture
def current(tmp_path, revisions) -> Path:
    put(tmp_path / "current", revisions[0])
    return tmp_path / "current"


def factor(answer: wire.Answer, base: np.ndarray) -> float:
    """How many times the first revision's answer that is; it must be exactly one revision's."""
    logits = np.frombuffer(answer.outputs[0].data, np.float32)
    times = float(logits @ base / (base @ base))
    near = min(FACTORS, key=lambda one: abs(one - times))
    np.testing.assert_allclose(logits, near * base, rtol=1e-3, atol=1e-4 * near)
    return near


def test_a_stream_runs_through_reloads_and_no_batch_mixes(current, revisions):
    manifest = Manifest.load(current)
    with Server(current, port=0, threads=1) as server:
        batches, deliver = [], server.batcher._deliver

        def record(pairs):
            batches.append([answer for _, answer in pairs])
            deliver(pairs)

        server.batcher._deliver = record
        with Line(server.address, manifest) as line:
            line.frame(1)
            base = np.frombuffer(line.get().answer.outputs[0].data, np.float32)
        answers, over = [[], [], []], threading.Event()

        def send(into: list[wire.Answer]) -> None:
            with Line(server.address, manifest) as line:
                seq = 0
                while seq < 4:
                    seq += 1
                    line.frame(seq)
                for message in line:
                    into.append(message.answer)
                    if over.is_set():
                        line.put(None)
                    else:
                        seq += 1
                        line.frame(seq)

        threads = [threading.Thread(target=send, args=(into,)) for into in answers]
        for thread in threads:
            thread.start()
        for revision in [*revisions[1:], revisions[0]]:
            put(current, revision)
            found = server.reload()
            assert found.digest == Manifest.load(revision).digest == server.manifest.digest
            count = len(answers[0])
            assert soon(lambda count=count: len(answers[0]) > count + 20)
        over.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    for into in answers:
        assert [answer.status for answer in into] == [wire.OK] * len(into)
        assert sorted(answer.seq for answer in into) == list(range(1, len(into) + 1))
    seen = [{factor(answer, base) for answer in batch} for batch in batches]
    assert all(len(one) == 1 for one in seen)
    order = [one.pop() for one in seen]
    turns = [one for place, one in enumerate(order) if place == 0 or one != order[place - 1]]
    assert turns == [1, 4, 16, 64, 1]


def test_new_devices_of_the_old_and_of_the_new_revision_are_both_answered(current, revisions):
    first, second = (Manifest.load(revision) for revision in revisions[:2])
    with Server(current, port=0, threads=1) as server:
        with pytest.raises(grpc.RpcError):
            Line(server.address, second)
        put(current, revisions[1])
        server.reload()
        logits = []
        for manifest in (first, second):
            with Line(server.address, manifest) as line:
                line.frame(1)
                logits.append(line.get().answer.outputs[0].data)
    assert logits[0] == logits[1]


def test_a_directory_that_does_not_prove_is_refused_and_the_old_goes_on(
    current, revisions, tmp_path
):
    broken = tmp_path / "broken"
    shutil.copytree(revisions[1], broken)
    with (broken / "tail.pt2").open("ab") as file:
        file.write(b"x")
    manifest = Manifest.load(current)
    with Server(current, port=0, threads=1) as server:
        with Line(server.address, manifest) as line:
            line.frame(1)
            before = line.get().answer
            for wrong in (broken, tmp_path / "nowhere"):
                put(current, wrong)
                with pytest.raises(ModelError, match="help:"):
                    server.reload()
                line.frame(2)
                assert line.get().answer.outputs == before.outputs
            (broken / "extra").write_text("")
            put(current, broken)
            with pytest.raises(ModelError, match="extra"):
                server.reload()
        assert server.manifest.digest == manifest.digest


def test_another_head_makes_old_frames_stale_until_the_old_one_is_back(
    tmp_path, model_dir, plain_dir, image
):
    current = tmp_path / "current"
    put(current, plain_dir)
    old, new = Manifest.load(plain_dir), Manifest.load(model_dir)
    with Server(current, port=0, threads=1) as server:
        with (
            Line(server.address, old) as line,
            Edge(plain_dir, cloud=server.address, plan="f32", deadline=20, standin=False) as edge,
        ):
            assert edge(image).where == "cloud"
            put(current, model_dir)
            server.reload()
            line.frame(1)
            assert line.get().answer.status == wire.STALE
            with pytest.raises(Refused, match="another model"):  # nobody stands in
                edge(image)
            with pytest.raises(grpc.RpcError) as raised:
                Line(server.address, old)
            assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            with Line(server.address, new) as fresh:
                fresh.frame(1)
                assert fresh.get().answer.status == wire.OK
            put(current, plain_dir)
            server.reload()
            line.frame(2)
            assert line.get().answer.status == wire.OK
            assert edge(image).where == "cloud"


def test_outputs_of_another_form_are_another_revision_to_a_device(current, model_dir, tmp_path):
    """The payload is the same, but what the device would read is not."""
    other = shutil.copytree(model_dir, tmp_path / "other")
    toml = other / "model.toml"
    toml.write_text(toml.read_text().replace('dtype = "float32"', 'dtype = "float16"'))
    old, new = Manifest.load(current), Manifest.load(other)
    assert old.contract == new.contract and old.outputs != new.outputs
    with Server(current, port=0, threads=1) as server:
        with Line(server.address, old) as line:
            put(current, other)
            server.reload()
            line.frame(1)
            assert line.get().answer.status == wire.STALE


def test_frames_larger_than_the_server_was_started_for_need_a_restart(current, plain_dir):
    with Server(current, port=0, threads=1, max_inflight=1) as server:
        put(current, plain_dir)
        with pytest.raises(ModelError, match="start it again"):
            server.reload()


def test_a_directory_that_changes_while_it_is_loaded_is_refused(current, revisions, monkeypatch):
    from splitrt.cloud import reload

    class Slow(reload.Tail):
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            put(current, revisions[2])

    with Server(current, port=0, threads=1) as server:
        monkeypatch.setattr(reload, "Tail", Slow)
        put(current, revisions[1])
        with pytest.raises(ModelError, match="changed while"):
            server.reload()
        assert server.manifest.digest == Manifest.load(revisions[0]).digest


class Revision:
    """A tail that answers with its number, when it may; knows the devices of some digests."""

    def __init__(self, number: int, known: set[bytes]) -> None:
        self.number, self.known, self.go = number, known, threading.Event()
        self.running = threading.Event()

    def answering(self, wanted):
        return wanted if set(wanted) <= self.known else None

    def open(self, plan, payload, size=None):
        return payload

    def __call__(self, codes, size=None, sides=(), wanted=()):
        self.running.set()
        self.go.wait(20)
        return [[np.array([self.number], np.float32)] for _ in codes]


def test_a_batch_runs_to_its_end_on_its_tail_and_what_waited_goes_by_the_next():
    old, new = Revision(1, {b"a", b"b"}), Revision(2, {b"b"})
    batches: list[list[wire.Answer]] = []
    batcher = Batcher(old, deliver=lambda pairs: batches.append([answer for _, answer in pairs]))

    def submit(seq: int, digest: bytes) -> None:
        batcher.submit(Job(seq, "q8", b"x", time.monotonic(), None, print, tails=(digest,)))

    submit(1, b"a")
    assert old.running.wait(20)
    for seq, digest in ((2, b"a"), (3, b"b"), (4, b"b")):
        submit(seq, digest)
    batcher.tail = new
    old.go.set()
    new.go.set()
    batcher.close()
    said = [
        [(a.seq, a.status, a.outputs and np.frombuffer(a.outputs[0].data, np.float32)[0])
         for a in batch]
        for batch in batches
    ]  # fmt: skip
    assert said == [
        [(1, wire.OK, 1.0)],
        [(2, wire.STALE, [])],
        [(3, wire.OK, 2.0), (4, wire.OK, 2.0)],
    ]


def test_watching_and_the_hang_up_signal_reload_and_sigterm_ends_well(current, revisions):
    command = [sys.executable, "-m", "splitrt.cli", "serve", str(current), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    address = process.stdout.readline().split()[-1]
    manifest = Manifest.load(current)

    def answer(line: Line) -> bytes:
        line.frame(1)
        return line.get().answer.outputs[0].data

    with Line(address, manifest) as line:
        first = answer(line)
        put(current, revisions[1])  # seen by --watch
        assert soon(lambda: answer(line) != first, 60)
        second = answer(line)
        put(current, revisions[0])
        process.send_signal(signal.SIGHUP)
        assert soon(lambda: answer(line) == first, 60)
        put(current, current.with_name("nowhere"))
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert second != first == answer(line)
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "now " in log and "not reloaded, the old goes on" in log and "Traceback" not in log
