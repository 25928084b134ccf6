"""The chat page: its routes over a real socket, its server's counters, and itself in a browser."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from splitrt.cloud import Server
from splitrt.edge.api import Door
from splitrt.edge.api import server as web
from splitrt.edge.chat import Chat
from splitrt.edge.desk import Desk
from splitrt.edge.teller import Teller
from splitrt.edge.tokens import Words
from splitrt.parlour import PAGES, Paced, Parlour
from splitrt.relay import Relay
from splitrt.train import divide
from tests.conftest import ROOT
from tests.language import checkpoint
from tests.page import opened

HELLO = [{"role": "user", "content": "Tell me"}]
EVIL = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


@dataclass(slots=True)
class Place:
    """A running page and what is behind it."""

    port: int
    server: Server
    relay: Relay
    chat: Chat
    desk: Desk

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        """One request; its status and its JSON."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(link):
            link.request(method, path, body, {"content-type": "application/json", **headers})
            answer = link.getresponse()
            raw = answer.read()
            told = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(raw) if told else raw

    def post(self, path: str, **what: object) -> tuple[int, Any]:
        return self.ask("POST", path, json.dumps(what).encode())

    def state(self) -> dict[str, Any]:
        return self.ask("GET", "/state")[1]

    def say(self, **what: object) -> Iterator[dict[str, Any]]:
        """The pieces of an answer as they come."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(link):
            body = json.dumps({"messages": HELLO, **what})
            link.request("POST", "/say", body, {"content-type": "application/json"})
            answer = link.getresponse()
            assert answer.status == 200, answer.read()
            for line in answer:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])


def soon(holds: Callable[[], object]) -> bool:
    """Whether it comes about within a minute."""
    for _ in range(3000):
        if holds():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    top = tmp_path_factory.mktemp("language")
    made = checkpoint(top / "checkpoint", seed=3, eos_token_id=None)  # it never ends by itself
    divide(made, top / "tiny", cut=2, exits=[1, 2], weights="fp32")
    return top / "tiny"


@pytest.fixture
def there(folder) -> Iterator[Place]:
    words = Words(folder)
    with (
        Server(folder, port=0, threads=1) as server,
        Relay(server.address) as relay,
        Chat(folder, relay.address, patience=0.3) as chat,
    ):
        speaker = Paced(chat)
        with Desk(Teller(words, speaker), line=0, rest=chat.rejoin) as desk:
            with Door(port=0).listening() as plug:
                running = web(Parlour(desk, speaker, words, relay).app)
                thread = threading.Thread(target=running.run, kwargs={"sockets": [plug]})
                thread.start()
                try:
                    assert soon(lambda: chat.up)
                    yield Place(plug.getsockname()[1], server, relay, chat, desk)
                finally:
                    running.should_exit = True
                    thread.join()


def text(pieces: list[dict[str, Any]]) -> str:
    return "".join(piece["token"]["text"] for piece in pieces if "token" in piece)


def test_spec_says_what_ask_says_and_every_token_tells_where_it_was_made(there):
    spec = list(there.say(max_tokens=40, how={"mode": "spec", "drafts": 4}))
    ask = list(there.say(max_tokens=40, how={"mode": "ask"}))
    assert text(spec) == text(ask) != ""
    assert {piece["token"]["where"] for piece in spec[:-1]} <= {"draft", "cloud"}
    assert {piece["token"]["where"] for piece in ask[:-1]} == {"cloud"}
    last = spec[-1]
    assert last["end"] in ("length", "stop") and last["tally"]["drafted"] > 0
    assert sum(last["tally"]["where"].values()) == last["tally"]["tokens"] == 40
    assert last["tally"]["bytes_up"] > 0 and last["tally"]["first_s"] > 0
    assert last["tally"]["requests_per_token"] <= ask[-1]["tally"]["requests_per_token"] == 1


def test_the_mode_may_change_between_answers_and_edge_asks_nobody(there):
    list(there.say(max_tokens=10, how={"mode": "ask"}))
    answered = there.server.tally["OK"]
    alone = list(there.say(max_tokens=30, how={"mode": "edge"}))
    assert {piece["token"]["where"] for piece in alone[:-1]} == {"edge"}
    assert alone[-1]["tally"]["requests_per_token"] == 0
    assert alone[-1]["tally"]["bytes_up"] < 64  # beats; a row has more
    assert there.server.tally["OK"] == answered and not there.state()["away"]
    gated = list(there.say(max_tokens=30, how={"mode": "gated"}))
    assert gated[-1]["tally"]["where"]["draft"] == 0 and gated[-1]["tally"]["tokens"] == 30
    again = list(there.say(max_tokens=10, how={"mode": "ask"}))
    assert {piece["token"]["where"] for piece in again[:-1]} == {"cloud"}


def test_a_seed_makes_the_same_text(there):
    one, same, other = (
        text(list(there.say(max_tokens=16, temperature=1.0, seed=seed))) for seed in (1, 1, 2)
    )
    assert one == same != other


def test_a_pace_slows_the_answer_and_not_its_figures(there):
    started = time.monotonic()
    *_, last = there.say(max_tokens=12, how={"mode": "edge", "pace": 10})
    assert time.monotonic() - started > 1 > last["tally"]["seconds"]


def test_stop_cancels_the_question_on_the_server(there):
    there.post("/link", rtt_ms=60)
    pieces = there.say(max_tokens=400, how={"mode": "ask"})
    seen = [next(pieces)]
    held, go = threading.Event(), threading.Event()
    inbox = there.server.scheduler._inbox
    inbox.put(lambda: held.set() or go.wait(60))
    try:
        assert held.wait(60)
        assert soon(lambda: inbox.qsize() >= 1)  # a question waits, and nothing goes behind it
        waiting, before = inbox.qsize(), there.server.tally.get("CANCELLED_ASK", 0)
        assert there.post("/stop") == (200, {"stopped": True})
        assert soon(lambda: inbox.qsize() > waiting)
        seen += list(pieces)  # the page is told at once: the server still answers nothing
    finally:
        go.set()
    assert seen[-1]["end"] == "stopped" and 0 < len(seen) < 400
    assert soon(lambda: there.server.tally.get("CANCELLED_ASK", 0) == before + 1)
    answered = there.server.tally["OK"]
    assert there.post("/stop") == (200, {"stopped": False})
    assert text(list(there.say(max_tokens=5)))  # the next one is said as ever
    assert there.server.tally["OK"] > answered


def test_who_leaves_in_the_middle_stops_the_answer(there):
    pieces = there.say(max_tokens=400, how={"mode": "edge", "pace": 20})
    next(pieces)
    assert there.state()["saying"]
    pieces.close()
    assert soon(lambda: not there.state()["saying"])


def test_one_answer_at_a_time_and_the_other_is_told_so(there):
    pieces = there.say(max_tokens=400, how={"mode": "edge", "pace": 20})
    next(pieces)
    status, told = there.post("/say", messages=HELLO, how={"mode": "ask"})
    assert status == 409 and "help:" in told["error"]["message"]
    assert there.chat.mode == "edge"  # the one that is said goes on as it began
    there.post("/stop")
    assert list(pieces)[-1]["end"] == "stopped"


def test_a_link_that_is_cut_leaves_the_device_alone_and_its_return_shows_the_difference(there):
    """Both while an answer is said and after it."""
    pieces = there.say(max_tokens=400, how={"mode": "spec", "drafts": 4, "pace": 20})
    seen = [next(pieces)]
    status, now = there.post("/link", cut=True)
    assert status == 200 and now["cut"] and now["differences"] == 0
    for piece in pieces:
        seen.append(piece)
        if sum(one["token"]["where"] == "edge" for one in seen) == 20:
            break
    assert there.state()["away"]
    there.post("/stop")
    list(pieces)
    assert there.state()["away"] and there.state()["difference"] is None
    assert there.post("/link", cut=False)[1]["cut"] is False
    assert soon(lambda: there.state()["differences"] == 1)
    now = there.state()
    assert now["up"] and not now["away"]
    places = {one["token"]["position"]: one["token"] for one in seen}
    assert places[now["difference"]["position"]]["where"] == "edge"
    assert now["difference"]["said"] != now["difference"]["instead"]
    *_, last = there.say(max_tokens=5, how={"mode": "ask"})
    assert last["tally"]["where"]["cloud"] == 5


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/say", b"", 400),
        ("/say", b"[]", 400),
        ("/say", b"[" * 5000, 400),
        ("/say", b"\xff", 400),
        ("/say", b"{}", 400),
        ("/say", b'{"messages": []}', 400),
        ("/say", b'{"messages": [{"role": "king", "content": "x"}]}', 400),
        ("/say", b'{"messages": [{"role": "user", "content": "x"}], "how": 1}', 400),
        ("/say", b'{"messages": [{"role": "user", "content": "x"}], "how": {"mode": "x"}}', 400),
        ("/say", b'{"messages": [{"role": "user", "content": "x"}], "how": {"drafts": -1}}', 400),
        ("/say", b'{"messages": [{"role": "user", "content": "x"}], "how": {"pace": 0}}', 400),
        ("/say", b'{"messages": [{"role": "user", "content": "x"}], "how": {"pace": NaN}}', 400),
        ("/say", b'{"messages": [{"role": "user", "content": "x"}], "temperature": "1"}', 400),
        ("/say", b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', 400),
        ("/say", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        ("/say", b'{"messages": [{"role": "user", "content": "%s"}]}' % (b"x " * 3000), 400),
        ("/say", b" " * (1 << 21), 413),
        ("/link", b"{}x", 400),
        ("/link", b'{"cut": 1}', 400),
        ("/link", b'{"rtt_ms": -1}', 400),
        ("/link", b'{"rtt_ms": 1e999}', 400),
        ("/link", b'{"hole": true}', 400),
        ("/stop", b"no", 400),
        ("/nowhere", b"{}", 404),
        ("/state", b"{}", 405),
    ],
)
def test_what_is_wrong_is_refused_with_words(there, path, body, status):
    found, told = there.ask("POST", path, body)
    assert found == status and len(told["error"]["message"]) > 8
    assert text(list(there.say(max_tokens=3)))


def test_another_site_cannot_steer_the_page(there):
    body = json.dumps({"cut": True}).encode()
    kind = {"content-type": "text/plain"}  # what a form of another site may send unasked
    assert there.ask("POST", "/link", body, **kind)[0] == 415
    assert there.ask("POST", "/link", body, host="evil.example")[0] == 400
    assert there.ask("GET", "/state", host="evil.example:80")[0] == 400
    for path in ("/pages/../parlour.py", "/pages/%2e%2e/parlour.py", "/pages//etc/passwd"):
        assert there.ask("GET", path)[0] == 404
    assert not there.relay.hole


def test_the_page_names_no_other_host_and_runs_no_script_of_its_own_html():
    for name in ("chat.html", "chat.css", "chat.js", "look.css"):
        assert not re.search(r"https?://|innerHTML|eval\(|<script>", (PAGES / name).read_text())


def test_in_a_browser_a_story_streams_is_cut_and_comes_back(there, tmp_path):
    with opened(there.address) as page:
        page.locator("#link[data-where=cloud]").wait_for()
        page.fill("#text", EVIL)
        page.click("#say")
        page.locator(".token").nth(5).wait_for()
        assert page.locator(".turn.asked").inner_text() == EVIL  # as text, not as HTML
        assert page.locator("#said img, #said script").count() == 0
        assert set(page.locator(".token").evaluate_all("all => all.map(x => x.dataset.where)")) <= {
            "draft", "cloud",
        }  # fmt: skip
        page.screenshot(path=tmp_path / "streaming.png")
        page.click("#cut")
        page.locator("text=goes on alone.").wait_for(timeout=30000)
        page.locator(".token[data-where=edge]").nth(20).wait_for(timeout=30000)
        page.screenshot(path=tmp_path / "cut.png")
        page.click("#stop")
        page.locator("text=Stopped.").wait_for()
        page.screenshot(path=tmp_path / "stopped.png")
        page.click("#cut")
        page.locator("text=/server has read.*would have said/").wait_for(timeout=30000)
        page.locator(".token.differs").wait_for()
        assert page.locator(".token.differs").get_attribute("data-where") == "edge"
        page.screenshot(path=tmp_path / "back.png")
        assert page.title() == "splitrt chat"
    sizes = [path.stat().st_size for path in tmp_path.glob("*.png")]
    assert len(sizes) == 4 and min(sizes) > 10_000


def test_on_a_phone_nothing_is_wider_than_the_screen_and_the_figures_come(there):
    with opened(there.address, width=390, dark=True) as page:
        page.select_option("#pace", "")
        page.click("#say")
        page.locator(".ended").wait_for(timeout=30000)
        assert float(page.inner_text("#requests")) > 0 and float(page.inner_text("#speed")) > 0
        assert int(page.inner_text("#bytes").replace(",", "")) > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.check("input[value=edge]")
        page.fill("#text", "Why?")
        page.click("#say")
        page.locator(".token[data-where=edge]").nth(3).wait_for(timeout=30000)


def test_the_verb_opens_a_page_and_ends_when_it_is_told_to(folder):
    command = [sys.executable, "-m", "splitrt.cli", "demo", "chat", "--model", str(folder)]
    demo = subprocess.Popen(
        [*command, "--page", "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    alarm = threading.Timer(90, demo.kill)
    alarm.start()
    try:
        line = demo.stdout.readline()
        port = int(line.rsplit(":", 1)[1])
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(link):
            link.request("GET", "/")
            answer = link.getresponse()
            assert answer.status == 200 and b"splitrt chat" in answer.read()
            assert "script" not in answer.headers["content-security-policy"]
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(60) == 0
    finally:
        alarm.cancel()
        demo.kill()
        demo.wait()
