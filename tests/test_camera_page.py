"""`splitrt demo camera`: what its page is told, what it may ask for, and how it looks and ends."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

from splitrt import Frame, Result
from splitrt.core.layouts import Layout
from tests.conftest import ROOT
from tests.page import opened

APP = ROOT / "demos" / "camera"
DEADLINE = 60.0  # seconds for whatever is waited for
DRAWN = (  # something, on a canvas
    "id => new Uint32Array(document.getElementById(id).getContext('2d')"
    ".getImageData(0, 0, 400, 100).data.buffer).some(Boolean)"
)
FAULTS = {"stall": False, "hole": False, "cut": False}
GOOD = {"mbps": 20.0, "rtt_ms": 30.0, "jitter_ms": 0.0, **FAULTS}


class Demo:
    """A running demo and its address."""

    def __init__(self, *words: object, at: object = "-m splitrt.cli demo camera") -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *str(at).split(), "--port", "0", *map(str, words)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + self.process.stderr.read()
        self.address = found[0]

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()  # not kill: its server would go on without it
        try:
            self.process.wait(DEADLINE)
        finally:
            self.process.kill()
        self.process.stdout.close()
        self.process.stderr.close()

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str):
        """(status, headers, body) of one request."""
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=DEADLINE)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def turn(self, **change: object) -> dict:
        body = json.dumps(change).encode()
        status, _, told = self.ask("POST", "/link", body, content_type="application/json")
        assert status == 200, told
        return json.loads(told)

    def events(self) -> Iterator[tuple[str, dict]]:
        """What a page hears."""
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.request("GET", "/events")
            answer, event = connection.getresponse(), ""
            assert answer.status == 200
            for raw in answer:
                key, _, value = raw.decode().rstrip("\n").partition(": ")
                if key == "event":
                    event = value
                elif key == "data":
                    yield event, json.loads(value)

    def frames(self) -> Iterator[dict]:
        return (told for event, told in self.events() if event == "frame")

    def until(self, wanted: Callable[[dict], bool]) -> dict:
        """The first frame of that kind."""
        until = time.monotonic() + DEADLINE
        with contextlib.closing(self.frames()) as frames:
            for frame in frames:
                if wanted(frame):
                    return frame
                assert time.monotonic() < until, frame
        raise AssertionError("the stream ended")


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with Demo() as running:
        yield running


def from_server(frame: dict) -> bool:
    return frame["kind"] == "cloud"


def test_a_page_hears_what_is_known_and_then_every_frame(demo):
    demo.until(from_server)  # before, the device answers while it connects
    with contextlib.closing(demo.events()) as events:
        event, hello = next(events)
        assert event == "hello" and hello["link"].keys() == GOOD.keys()
        assert hello["about"]["model"] == "cifar10-resnet"
        heard = []
        for event, told in events:
            heard += [told] if event == "frame" else []
            if len(heard) == 20:
                break
    for frame in heard:
        assert frame["picture"].startswith("data:image/jpeg;base64,")
        assert frame["kind"] in ("cloud", "own", "stead") and 0 <= frame["score"] <= 1
        assert sum(frame["stages"].values()) == pytest.approx(frame["total"], abs=0.2)
        assert frame["joules"] > 0 and frame["label"] and frame["plan"]
        assert frame["up"] is True and frame["mbps"] > 0 and frame["rtt_ms"] > 0
    times = [frame["t"] for frame in heard]
    assert times == sorted(times)
    with contextlib.closing(demo.events()) as events:
        past = next(events)[1]["past"]
    assert {frame["t"] for frame in heard} <= {frame["t"] for frame in past}
    assert "picture" not in past[0]


def test_a_cut_link_is_answered_by_the_device_and_the_server_returns(demo):
    demo.turn(**GOOD)
    demo.until(from_server)
    assert demo.turn(cut=True)["cut"] is True
    alone = demo.until(lambda frame: frame["up"] is False and frame["reason"])
    assert alone["kind"] == "stead" and alone["bytes"] == 0
    with contextlib.closing(demo.frames()) as frames:
        kinds = {next(frames)["kind"] for _ in range(10)}
    assert "cloud" not in kinds and "none" not in kinds
    demo.turn(cut=False)
    assert demo.until(from_server)["up"] is True


def test_a_thin_link_gets_leaner_plans(demo):
    demo.turn(**GOOD)
    rich = demo.until(lambda frame: from_server(frame) and "jpeg" in frame["plan"])
    demo.turn(mbps=0.01, rtt_ms=60)
    lean = demo.until(lambda frame: from_server(frame) and "jpeg" not in frame["plan"])
    assert lean["bytes"] < rich["bytes"] / 4
    assert lean["link"]["mbps"] == 0.01
    demo.turn(**GOOD)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "the body"),
        (b"{", "the body"),
        (b"[1]", "the body"),
        (b"\xff\xfe", "the body"),
        (b"{}", "nothing is to be set"),
        (b'{"mbps": 0}', "mbps"),
        (b'{"mbps": NaN}', "mbps"),
        (b'{"mbps": "2"}', "mbps"),
        (b'{"mbps": null}', "mbps"),
        (b'{"rtt_ms": -1}', "rtt_ms"),
        (b'{"rtt_ms": 1e99}', "rtt_ms"),
        (b'{"jitter_ms": Infinity}', "jitter_ms"),
        (b'{"cut": 1}', "cut"),
        (b'{"rate": 1, "mbps": 2}', "rate"),
        (b"[" * 3000, "the body"),
    ],
)
def test_a_wrong_wish_is_told_what_is_wrong_and_changes_nothing(demo, body, told):
    before = json.loads(demo.ask("GET", "/state")[2])["link"]
    status, _, answer = demo.ask("POST", "/link", body, content_type="application/json")
    error = json.loads(answer)["error"]
    assert status == 422 and told in error and "\nhelp: " in error
    assert json.loads(demo.ask("GET", "/state")[2])["link"] == before


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/link", b'{"cut": true}', {}, 415),
        ("POST", "/link", b'{"cut": true}', {"content_type": "text/plain"}, 415),
        ("POST", "/link", b" " * 5000, {"content_type": "application/json"}, 413),
        ("GET", "/link", None, {}, 405),
        ("POST", "/", b"", {}, 405),
        ("DELETE", "/events", None, {}, 405),
        ("GET", "/nothing", None, {}, 404),
        ("GET", "/page/nothing.js", None, {}, 404),
        ("GET", "/page/../web.py", None, {}, 404),
        ("GET", "/page/%2e%2e/web.py", None, {}, 404),
        ("GET", "/page//etc/passwd", None, {}, 404),
        ("GET", "/state", None, {"host": "another.example"}, 400),
    ],
)
def test_a_wrong_request_gets_a_status_that_says_so(demo, method, path, body, headers, status):
    got, _, told = demo.ask(method, path, body, **headers)
    assert got == status
    assert status == 400 or json.loads(told)["error"]


def test_no_more_pages_look_than_there_is_room_for(demo):
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            look = stack.enter_context(contextlib.closing(demo.events()))
            while next(look)[0] != "frame":  # nothing but a stream that runs holds a place
                pass
        status, _, told = demo.ask("GET", "/events")
        assert status == 503 and "16 pages look already\nhelp: " in json.loads(told)["error"]
    demo.until(lambda frame: True)  # those that left gave their places back


def test_the_page_asks_no_other_host(demo):
    status, headers, _ = demo.ask("GET", "/")
    assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
    for path in ("/", "/look.css", "/page/camera.css", "/page/camera.js", "/page/charts.js"):
        status, _, text = demo.ask("GET", path)
        assert status == 200 and not re.search(rb"https?://|['\"(]//|@import", text), path


def test_the_page_shows_the_cut_and_the_return(demo):
    demo.turn(**GOOD)
    with opened(demo.address) as page:
        page.wait_for_selector("#badge[data-kind=cloud]", timeout=1000 * DEADLINE)
        shown = "document.getElementById('picture').naturalWidth > 0"  # a new one is decoded first
        page.wait_for_function(shown, timeout=1000 * DEADLINE)
        page.wait_for_selector("#state[data-state=live]", timeout=1000 * DEADLINE)
        assert page.inner_text("#label")
        page.click("#cut")
        page.wait_for_selector("#badge[data-kind=stead]", timeout=1000 * DEADLINE)
        page.wait_for_selector("#way-link.down", timeout=1000 * DEADLINE)
        assert page.get_attribute("#cut", "aria-pressed") == "true"
        assert page.inner_text("#badge") == "the device, instead"
        page.wait_for_selector("#believed:has-text('down')", timeout=1000 * DEADLINE)
        page.click("#cut")
        page.wait_for_selector("#badge[data-kind=cloud]", timeout=1000 * DEADLINE)
        for chart in ("latency", "kinds", "plans", "bytes", "rate", "trip", "joules"):
            assert page.evaluate(DRAWN, chart), chart


def test_a_slider_and_a_preset_set_the_link(demo):
    demo.turn(**GOOD)
    with opened(demo.address) as page:
        page.wait_for_selector("#state[data-state=live]", timeout=1000 * DEADLINE)
        page.fill("#mbps", "-1")
        page.fill("#rtt", "120")
        demo.until(lambda frame: {"mbps": 0.1, "rtt_ms": 120}.items() <= frame["link"].items())
        assert page.inner_text("#mbps-told") == "100 kbit/s"
        page.click("text=LTE")
        lte = {"mbps": 6, "rtt_ms": 70, "jitter_ms": 20}
        demo.until(lambda frame: lte.items() <= frame["link"].items())
        page.wait_for_selector("#mbps-told:text-is('6 Mbit/s')", timeout=1000 * DEADLINE)


def test_the_page_fits_a_phone_in_light_and_dark(demo):
    seen = set()
    for dark in (False, True):
        with opened(demo.address, width=360, dark=dark) as page:
            page.wait_for_selector("#state[data-state=live]", timeout=1000 * DEADLINE)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            seen.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2


def test_a_detectors_boxes_are_told_in_shares_of_the_picture():
    spec = importlib.util.spec_from_file_location("answer", APP / "answer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    taken = SimpleNamespace(shape=(64, 64, 3), kind="pixels")
    layout = Layout(kind="boxes", threshold=0.3)
    manifest = SimpleNamespace(boxes=layout, labels=["cat", "cup"], sizes=None, input=taken)
    edge = SimpleNamespace(manifest=manifest)
    frame = Frame(np.zeros((100, 200, 3), np.uint8), 0, 0.0, "frame")

    def told(*outputs: list) -> dict:
        named = zip(("boxes", "scores", "labels"), outputs, strict=False)
        arrays = {name: np.array(value, np.float32) for name, value in named}
        return module.answer(edge, frame, Result(arrays, "cloud", "q8"))

    two = told([[0, 0, 32, 32], [16, 32, 48, 64], [0, 0, 9, 9]], [0.5, 0.9, 0.1], [0, 1, 1])
    assert two["label"] == "2 found"
    assert two["boxes"] == [[0.25, 0.5, 0.75, 1, "cup", 0.9], [0, 0, 0.5, 0.5, "cat", 0.5]]
    assert told([[0, 0, 9, 9]], [0.1], [0])["label"] == "nothing found"
    wrong = told([[0, 0, 9]], [0.1], [0])
    assert wrong["boxes"] == [] and wrong["label"] not in ("nothing found", None)


def test_a_detectors_boxes_are_drawn_and_its_local_tail_stands_in(boxed_dir):
    with Demo("--model", boxed_dir) as demo, opened(demo.address) as page:
        page.wait_for_selector("#badge[data-kind=cloud]", timeout=1000 * DEADLINE)
        page.wait_for_function(DRAWN, arg="boxes", timeout=1000 * DEADLINE)
        assert demo.turn(cut=True)["cut"] is True
        page.wait_for_selector("#badge[data-kind=stead]", timeout=1000 * DEADLINE)
        alone = demo.until(lambda frame: frame["kind"] == "stead")
        assert alone["boxes"] and alone["plan"] == "local" and alone["reason"]
        assert sum(alone["stages"].values()) == pytest.approx(alone["total"], abs=0.2)
        assert alone["stages"]["server"] == 0 and alone["stages"]["head"] > 0
        page.wait_for_selector("#fault:has-text('by its local tail')", timeout=1000 * DEADLINE)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in text.split()]


def test_an_interrupt_ends_the_demo_and_its_server_while_a_page_looks():
    with Demo(at=APP) as demo:
        with contextlib.closing(demo.frames()) as frames:
            next(frames)
            helpers = children(demo.process.pid)
            assert helpers
            demo.process.send_signal(signal.SIGINT)
            assert demo.process.wait(DEADLINE) == 0
        assert demo.process.stderr.read() == ""
        assert not [pid for pid in helpers if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--source", "gopher://x"), "no source 'gopher://x'"),
        (("--source", "pan:nowhere.jpg"), "there is no nowhere.jpg"),
        (("--model", "nowhere"), "no model.toml"),
        (("--host", "256.1.1.1"), "cannot be bound"),
    ],
)
def test_a_wrong_option_is_an_error_before_anything_runs(words, told):
    command = [sys.executable, "-m", "splitrt.cli", "demo", "camera", "--port", "0", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert told in done.stderr and "Traceback" not in done.stderr and "help: " in done.stderr
