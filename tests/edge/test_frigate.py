"""A detector for Frigate: a client that keeps to the published protocol, and some that do not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import tomllib
from hypothesis import given, settings
from hypothesis import strategies as st

from splitrt import Edge
from splitrt.cloud import Server
from splitrt.core.boxes import Boxes, found
from splitrt.edge.finder import Finder
from splitrt.errors import ModelError, SplitrtError
from splitrt.relay import Relay
from splitrt.wire import tail_pb2 as wire
from tests.attacks.test_lying_server import lying
from tests.conftest import ROOT
from tests.detector import boxed

zmq = pytest.importorskip("zmq", reason="no pyzmq here: the extra `frigate`")
from splitrt.edge import frigate  # noqa: E402
from splitrt.edge.frigate import EMPTY, Booth, picture, rows  # noqa: E402

ZEROS = np.zeros((20, 6), np.float32)


@pytest.fixture(scope="module")
def folder(boxed_dir) -> Path:
    return boxed_dir


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Server]:
    with Server(folder, port=0, threads=1) as running:
        yield running


def image(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


class Client:
    """Frigate's side: one REQ socket, a timeout, zeros and a fresh socket where it runs out."""

    def __init__(self, endpoint: str, timeout: float = 20.0) -> None:
        self.endpoint, self.timeout = endpoint, round(1000 * timeout)
        self.context, self.socket = zmq.Context(), None
        self.renew()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(linger=0)

    def renew(self) -> None:
        if self.socket is not None:
            self.socket.close(linger=0)
        self.socket = self.context.socket(zmq.REQ)
        for option in (zmq.RCVTIMEO, zmq.SNDTIMEO):
            self.socket.setsockopt(option, self.timeout)
        self.socket.connect(self.endpoint)

    def told(self, *parts: bytes) -> list[bytes]:
        self.socket.send_multipart(parts)
        return self.socket.recv_multipart()

    def ready(self) -> bool:
        """The handshake: whether the model is there and loaded."""
        ask = {"model_request": True, "model_name": "yolov9-t.onnx"}
        (raw,) = self.told(json.dumps(ask).encode())
        answer = json.loads(raw)
        return answer["model_available"] is True and answer["model_loaded"] is True

    def detect(self, tensor: np.ndarray) -> np.ndarray:
        """[20, 6], class, score, top, left, bottom, right."""
        shape, kind = list(tensor.shape), tensor.dtype.name
        header = {"shape": shape, "dtype": kind, "model_type": "yologeneric"}
        try:
            (raw,) = self.told(json.dumps(header).encode(), tensor.tobytes(order="C"))
        except zmq.Again:
            self.renew()
            return ZEROS
        assert len(raw) == 480
        return np.frombuffer(raw, np.float32).reshape(20, 6)


@dataclass(slots=True)
class Place:
    finder: Finder
    booth: Booth
    endpoint: str


@contextlib.contextmanager
def running(folder: Path, cloud: str | None = None, **options: object) -> Iterator[Place]:
    over = threading.Event()
    with Finder(folder, cloud, threads=1, **options) as finder, Booth(finder, "small") as booth:
        endpoint = booth.open("tcp://127.0.0.1:*")
        thread = threading.Thread(target=booth.run, args=[over])
        thread.start()
        try:
            yield Place(finder, booth, endpoint)
        finally:
            over.set()
            thread.join()


@pytest.fixture(scope="module")
def here(folder) -> Iterator[Place]:
    """Without a server."""
    with running(folder) as place:
        yield place


def whole(folder: Path, *images: np.ndarray) -> list[np.ndarray]:
    """What the model finds when it is run here by itself, as rows."""
    with Edge(folder, plan="local", threads=1) as edge:
        return [
            rows(found(edge.manifest, edge(one), one.shape[:2]), one.shape[:2]) for one in images
        ]


def test_a_client_of_the_published_protocol_gets_the_servers_boxes(folder, server):
    images = [image(seed) for seed in range(6)]
    with running(folder, server.address, deadline=20.0, plan="f32") as place:
        with Client(place.endpoint) as client:
            assert client.ready()
            seen = [client.detect(one[None]) for one in images]
        assert place.finder.counts == {"cloud": 6} and place.booth.counts["refused"] == 0
    for table, wanted in zip(seen, whole(folder, *images), strict=True):
        np.testing.assert_allclose(table, wanted, atol=1e-3)
        assert (table[0, 1] > 0) and (np.diff(table[:, 1]) <= 0).all()
        assert set(table[:, 0].astype(int)) <= set(range(5))
        assert (table[:, 2:] >= 0).all() and (table[:, 2:] <= 1).all()
        count = (table[:, 1] > 0).sum()
        assert (table[:count, 4] > table[:count, 2]).all()
        assert (table[:count, 5] > table[:count, 3]).all()


def test_every_layout_that_frigate_sends_is_the_same_picture(here):
    one = image(3)
    tensors = [
        one, one[None], one.transpose(2, 0, 1), one.transpose(2, 0, 1)[None],
        (one / np.float32(255))[None], one[None].astype(np.float32),
    ]  # fmt: skip
    with Client(here.endpoint) as client:
        first, *others = [client.detect(np.ascontiguousarray(tensor)) for tensor in tensors]
    assert first[0, 1] > 0
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_the_rows_are_shares_of_the_picture_best_first_and_zeros_behind():
    boxes = Boxes(
        np.array([[10, 20, 30, 60], [0, 0, 100, 200]], np.float32),
        np.array([0.9, 0.5], np.float32),
        np.array([4, 0]),
    )
    table = rows(boxes, (200, 100))
    np.testing.assert_allclose(table[:2], [[4, 0.9, 0.1, 0.1, 0.3, 0.3], [0, 0.5, 0, 0, 1, 1]])
    assert table.shape == (20, 6) and table.dtype == np.float32 and not table[2:].any()
    many = Boxes(np.ones((50, 4), np.float32), np.ones(50, np.float32), np.zeros(50, int))
    assert rows(many, (1, 1)).shape == (20, 6)
    assert rows(Boxes.none(), (5, 5)).tobytes() == EMPTY


def test_a_model_that_is_sent_is_here_already(here):
    with Client(here.endpoint) as client:
        header = {"model_data": True, "model_name": "../../etc/x.onnx"}
        (raw,) = client.told(json.dumps(header).encode(), b"not read" * 1000)
        answer = json.loads(raw)
        assert answer["model_saved"] is True and answer["model_loaded"] is True
        assert client.detect(image(0)[None])[0, 1] > 0


def test_several_clients_in_turn_and_at_once_each_get_their_own(here, folder):
    images = [image(seed) for seed in range(8)]
    wanted = whole(folder, *images)
    seen: dict[int, np.ndarray] = {}

    def ask(number: int) -> None:
        with Client(here.endpoint) as client:
            assert client.ready()
            for _ in range(5):
                seen[number] = client.detect(images[number][None])

    ask(0)
    threads = [threading.Thread(target=ask, args=[number]) for number in range(1, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, table in enumerate(wanted):
        np.testing.assert_array_equal(seen[number], table)


def head(**changes: object) -> bytes:
    return json.dumps({"shape": [1, 96, 128, 3], "dtype": "uint8", **changes}).encode()


RAW = image(0).tobytes()
BAD = [
    [b""],
    [b"", b""],
    [b"\xff\xfe"],
    [b"null", RAW],
    [b"[" * 60000, RAW],
    [b"7", RAW],
    [b"{}" + b" " * (1 << 17), RAW],
    [head()],
    [head(), RAW[:-1]],
    [head(), RAW + b"x"],
    [head(), RAW, b""],
    [head(), *[b"x"] * 50],
    [head(shape=None), RAW],
    [head(shape="96"), RAW],
    [head(shape=[]), b""],
    [head(shape=[0, 0, 3]), b""],
    [head(shape=[96, 128, 4]), RAW],
    [head(shape=[2, 96, 128, 3]), RAW * 2],
    [head(shape=[1, 96, 128.0, 3]), RAW],
    [head(shape=[1, True, 1, 3]), b"abc"],
    [head(shape=[1, -96, -128, 3]), RAW],
    [head(shape=[1, 1 << 40, 1 << 40, 3]), RAW],
    [head(shape=[1, 1 << 12, 1 << 12, 3]), RAW],
    [head(shape=[[1], 96, 128, 3]), RAW],
    [head(dtype="object"), RAW],
    [head(dtype="float64"), RAW * 8],
    [head(dtype=["uint8"]), RAW],
    [head(dtype={}), RAW],
    [head(dtype=None), RAW],
    [head(dtype="float32"), RAW],
    [head(dtype="float32"), np.full(96 * 128 * 3, np.nan, np.float32).tobytes()],
    [head(dtype="float32"), np.full(96 * 128 * 3, np.inf, np.float32).tobytes()],
]


@pytest.mark.parametrize("parts", BAD, ids=range(len(BAD)))
def test_what_is_no_picture_gets_no_boxes_and_harms_nothing(here, parts):
    before = here.booth.counts["refused"]
    with Client(here.endpoint) as client:
        assert client.told(*parts) == [EMPTY]
        assert here.booth.counts["refused"] == before + 1 and here.booth.counts["failed"] == 0
        assert client.detect(image(0)[None])[0, 1] > 0


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["shape", "dtype", "model_type", "model_name"]),
        st.recursive(
            st.none() | st.integers() | st.floats() | st.text() | st.just("uint8"),
            lambda inner: st.lists(inner, max_size=5),
        ),
    ),
    st.lists(st.binary(max_size=64), max_size=3),
)
def test_no_header_breaks_the_booth(header, parts):
    with Booth(lambda image: Boxes.none()) as booth:
        assert booth.answer([json.dumps(header).encode(), *parts]) == EMPTY
        assert booth.counts["failed"] == 0


def test_a_message_that_is_too_large_is_hung_up_on_and_others_are_served(here, monkeypatch):
    with Client(here.endpoint, timeout=1.0) as client:
        client.socket.send_multipart([head(), bytes(frigate.LARGEST + 1)])
        with pytest.raises(zmq.Again):
            client.socket.recv_multipart()
    with Client(here.endpoint) as other:
        assert other.detect(image(0)[None])[0, 1] > 0


def test_who_sends_without_waiting_or_speaks_another_language_holds_up_nobody(here):
    host, port = re.fullmatch(r"tcp://(.*):(\d+)", here.endpoint).groups()
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        context = zmq.Context()
        gone = context.socket(zmq.DEALER)
        gone.connect(here.endpoint)
        for _ in range(50):
            gone.send_multipart([b"", head(), RAW])
        with Client(here.endpoint) as client:
            assert client.detect(image(0)[None])[0, 1] > 0
        context.destroy(linger=0)
    with Client(here.endpoint) as client:
        assert client.detect(image(0)[None])[0, 1] > 0


def test_a_fault_of_the_detector_is_an_answer_without_boxes_and_is_logged(caplog):
    def broken(image: np.ndarray) -> Boxes:
        raise RuntimeError("boom")

    with Booth(broken) as booth:
        assert booth.answer([head(), RAW]) == EMPTY
        assert booth.counts["failed"] == 1 and "boom" in caplog.text


def test_a_server_that_is_lost_is_stood_in_for_and_taken_up_again(folder, caplog):
    """By the local tail: the answers stay what they are, and each comes."""
    one = image(1)
    (wanted,) = whole(folder, one)
    with Server(folder, port=0, threads=1) as server, Relay(server.address) as relay:
        with running(folder, relay.address, deadline=1.5, plan="f32") as place:
            assert "local tail" in place.finder.stands_in
            with Client(place.endpoint) as client:
                assert client.ready()
                np.testing.assert_allclose(client.detect(one[None]), wanted, atol=1e-3)
                assert place.finder.counts["cloud"] == 1
                relay.hole = True
                for _ in range(6):
                    np.testing.assert_allclose(client.detect(one[None]), wanted, atol=1e-3)
                assert place.finder.counts == {"cloud": 1, "edge": 6}
                relay.hole = False
                for _ in range(600):
                    table = client.detect(one[None])
                    if place.finder.counts["cloud"] > 1:
                        break
                    time.sleep(0.05)
                np.testing.assert_allclose(table, wanted, atol=1e-3)
    assert place.finder.counts["cloud"] > 1 and place.finder.counts["none"] == 0
    told = [record.getMessage() for record in caplog.records if "server" in record.getMessage()]
    assert sum("no answer" in line for line in told) == 1  # once, not for every picture


def test_without_a_server_and_without_a_tail_there_are_no_boxes_and_no_error(folder, tmp_path):
    """A directory without tail.onnx, a deadline, and nobody at the other end."""
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "tail.onnx").unlink()
    said = tomllib.loads((bare / "model.toml").read_text())
    said["plans"] = [plan for plan in said["plans"] if plan["name"] != "local"]
    del said["files"]["tail.onnx"]
    (bare / "model.toml").write_text(tomli_w.dumps(said))
    with running(bare, "127.0.0.1:1", deadline=0.5) as place:
        assert "nobody" in place.finder.stands_in
        with Client(place.endpoint) as client:
            assert client.ready()
            for _ in range(3):
                np.testing.assert_array_equal(client.detect(image(0)[None]), ZEROS)
        assert place.finder.counts == {"none": 3} and place.booth.counts["failed"] == 0


def test_a_server_of_another_model_is_no_error_either(folder, tmp_path):
    with Server(boxed(tmp_path / "other", 1), port=0, threads=1) as other:
        with running(folder, other.address, deadline=2.0) as place, Client(place.endpoint) as ask:
            assert ask.detect(image(0)[None])[0, 1] > 0
            assert place.finder.counts == {"edge": 1}


def test_a_server_that_lies_is_stood_in_for(folder):
    def answers(frame: wire.Frame) -> list[wire.Answer]:
        return [wire.Answer(seq=frame.seq, status=wire.OK, outputs=[wire.Tensor(shape=[3])])]

    one = image(2)
    (wanted,) = whole(folder, one)
    with lying(answers) as liar, running(folder, liar, deadline=5.0, plan="f32") as place:
        with Client(place.endpoint) as client:
            np.testing.assert_allclose(client.detect(one[None]), wanted, atol=1e-3)
        assert place.finder.counts == {"edge": 1} and place.booth.counts["refused"] == 0


def test_a_tail_that_takes_too_long_does_not_stand_in(folder, caplog):
    with Finder(folder, "127.0.0.1:1", deadline=1e-4, threads=1) as finder:
        assert "nobody" in finder.stands_in and "head and tail take" in caplog.text
        assert len(finder(image(0))) == 0


def test_what_is_no_detector_is_refused_with_words(folder):
    with pytest.raises(ModelError, match=r"\[boxes\]"):
        Finder(ROOT / "models" / "cifar10-resnet")
    with pytest.raises(SplitrtError, match="deadline = 0"):
        Finder(folder, deadline=0)
    with Booth(lambda image: Boxes.none()) as booth:
        for endpoint in ("nonsense", "tcp://192.0.2.1:5555", "udp://127.0.0.1:1", ""):
            with pytest.raises(SplitrtError, match="help: tcp://"):
                booth.open(endpoint)


def test_a_float_picture_that_is_dark_stays_dark():
    dark = np.zeros((8, 8, 3), np.float32)
    header = {"shape": [8, 8, 3], "dtype": "float32"}
    assert not picture(header, [dark.tobytes()]).any()
    assert picture(header, [(dark + 300).tobytes()]).min() == 255
    assert not picture(header, [(dark - 1).tobytes()]).any()


def test_the_verb_serves_says_what_frigate_needs_and_ends(folder, server, tmp_path):
    command = [sys.executable, "-m", "splitrt.cli", "frigate", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--config"], capture_output=True, text=True, check=True, env=environment
    )
    assert "type: zmq" in done.stdout and '2: "a \\"cat\\""' in done.stdout
    assert "width: 96" in done.stdout and "height: 64" in done.stdout
    endpoint = f"ipc://{tmp_path}/detector"
    words = ["--cloud", server.address, "--bind", endpoint, "--deadline", "20", "--plan", "f32"]
    running = subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, text=True, env=environment
    )
    alarm = threading.Timer(60, running.kill)
    alarm.start()
    try:
        assert "local tail" in running.stdout.readline()
        assert running.stdout.readline().strip().endswith(endpoint)
        with Client(endpoint) as client:
            assert client.ready() and client.detect(image(0)[None])[0, 1] > 0
        running.send_signal(signal.SIGTERM)
        assert "1 cloud" in running.stdout.read() and running.wait(30) == 0
    finally:
        alarm.cancel()
        running.kill()
        running.wait()
