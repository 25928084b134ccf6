"""Devices that are sent on to another server, by age or because theirs closes: nothing is lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from splitrt import Edge, Frame, LinkDown, SplitrtError
from splitrt.cloud import Server
from splitrt.core.manifest import Manifest
from splitrt.edge.chat import Chat
from splitrt.edge.link import FIRST_RETRY, Link
from splitrt.wire import tail_pb2 as wire
from splitrt.wire.tail_pb2_grpc import add_TailServicer_to_server
from tests.cloud.test_operation import held
from tests.cloud.tongue import made
from tests.conftest import pictures
from tests.edge.names import Names
from tests.edge.test_link import Scripted, parcel, right, soon
from tests.line import Line

AGE = 0.3  # seconds
PACE = 1 / 60  # seconds between frames
PROMPT = [(11 * place) % 290 + 2 for place in range(20)]


@pytest.fixture(scope="module")
def images():
    return pictures(8, seed=3).images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made(tmp_path_factory.mktemp("language"))


def shown(images, over: threading.Event, most: int = 3000) -> Iterator[Frame]:
    """Sixty frames a second until it is over."""
    for index in range(most):
        if over.wait(PACE):
            return
        yield Frame(images[index % len(images)], index, time.monotonic(), f"{index}")


def seen(edge: Edge, images, over: threading.Event) -> list[tuple[int, str | None, str | None]]:
    """Each frame's number, where it was answered, and the reason if not by a server."""
    return [
        (frame.index, result.where, result.reason)
        for frame, result in edge.stream(shown(images, over))
    ]


def whole(found: list[tuple[int, str | None, str | None]]) -> bool:
    """Each frame once, in order, and by a server: not even the device stood in for one."""
    assert [index for index, _, _ in found] == list(range(len(found)))
    assert Counter(where for _, where, _ in found) == {"cloud": len(found)}, found
    return True


def after(condition: Callable[[], bool], over: threading.Event) -> threading.Thread:
    """Sets `over` once that has come about, or has not for long."""

    def wait() -> None:
        soon(condition, 40)
        over.set()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def answered(servers: list[Server]) -> int:
    return sum(server.tally.get("OK", 0) for server in servers)


class Clinging(Scripted):
    """Asks to leave after the first frame, answers nothing, and ends no stream before its time."""

    def __init__(self) -> None:
        super().__init__(right)
        self.over = threading.Event()

    def Stream(self, messages, context):
        next(messages)
        yield wire.ToEdge(welcome=wire.Welcome(protocol=1, max_inflight=8))
        next(messages)
        yield wire.ToEdge(leave=True)
        self.over.wait(30)


@contextmanager
def scripts(*several: Scripted) -> Iterator[str]:
    """Their addresses, with a comma between them."""
    servers = [grpc.server(ThreadPoolExecutor(4)) for _ in several]
    for server, script in zip(servers, several, strict=True):
        add_TailServicer_to_server(script, server)
    ports = [server.add_insecure_port("127.0.0.1:0") for server in servers]
    for server in servers:
        server.start()
    yield ",".join(f"127.0.0.1:{port}" for port in ports)
    for server in servers:
        server.stop(0).wait()


@pytest.mark.parametrize("count", [1, 2])
def test_who_is_sent_on_by_age_loses_no_frame(model_dir, images, count):
    over = threading.Event()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(Server(model_dir, port=0, threads=1, max_age=AGE))
            for _ in range(count)
        ]
        cloud = ",".join(server.address for server in servers)
        edge = stack.enter_context(Edge(model_dir, cloud=cloud, plan="q4"))
        waiting = after(lambda: edge._link._stream > 6, over)
        assert whole(seen(edge, images, over)) and edge._link._stream > 6
        waiting.join()
        assert all(answered([server]) > 0 for server in servers)


def test_servers_that_are_restarted_one_after_the_other_lose_no_frame(model_dir, images):
    over, rolled = threading.Event(), []

    def roll(servers: list[Server]) -> None:
        for place in (0, 1, 0, 1):
            before = answered(servers)
            assert soon(lambda before=before: answered(servers) > before + 20)
            servers[place].close()
            servers[place] = Server(model_dir, port=servers[place].port, threads=1)
            rolled.append(place)
        assert soon(lambda: all(one.inflight == 0 for one in servers))
        over.set()

    servers = [Server(model_dir, port=0, threads=1) for _ in range(2)]
    cloud = ",".join(server.address for server in servers)
    with Edge(model_dir, cloud=cloud, plan="q4") as edge:
        rolling = threading.Thread(target=roll, args=(servers,))
        rolling.start()
        found = seen(edge, images, over)
        rolling.join()
    for server in servers:
        server.close()
    assert whole(found) and len(rolled) == 4


def test_a_server_that_comes_later_gets_its_share_of_the_devices(monkeypatch, model_dir):
    """Twelve devices of a name; its second address is there when they are sent on."""
    names = Names(monkeypatch, tails=["127.0.0.1"])
    how = {"threads": 1, "max_age": 2 * AGE}
    with Server(model_dir, port=0, **how) as first, ExitStack() as stack:
        manifest = Manifest.load(model_dir)
        links = [Link(f"dns:///tails.test:{first.port}", manifest) for _ in range(12)]
        for link in links:
            stack.callback(link.close)
        assert soon(lambda: len(first._front.streams) == 12)
        second = stack.enter_context(Server(model_dir, port=first.port, host="127.0.0.2", **how))
        names.table["tails.test"].append("127.0.0.2")
        assert soon(lambda: min(len(one._front.streams) for one in (first, second)) >= 3)
        assert soon(lambda: all(link.up for link in links))


def test_a_conversation_goes_on_at_another_address_of_the_name(monkeypatch, folder):
    names = Names(monkeypatch, tails=["127.0.0.1"])
    how = {"codec": "f32", "resume": "hidden", "drafts": 2, "patience": 60.0}
    first = Server(folder, port=0, threads=1)
    with Server(folder, port=first.port, host="127.0.0.2", threads=1) as second:
        with Chat(folder, f"dns:///tails.test:{first.port}", **how) as chat:
            answer = chat.answer(PROMPT, most=60)
            found = [next(answer) for _ in range(20)]
            assert second.scheduler.sessions == 0
            names.table["tails.test"] = ["127.0.0.2"]
            closing = threading.Thread(target=first.close)
            closing.start()
            found += list(answer)
            assert second.scheduler.sessions == 1 and chat._session.opened == 2
            closing.join(20)
            again = Chat(folder, second.address, **how)
        with again:
            wanted = [token.id for token in again.answer(PROMPT, most=60)]
    assert [token.id for token in found] == wanted
    assert {token.where for token in found} <= {"cloud", "draft"}


def test_a_server_that_closes_waits_for_what_was_sent_before_the_device_knew(model_dir, images):
    server, other = (Server(model_dir, port=0, threads=1, grace=20) for _ in range(2))
    go = held(server)
    with Edge(model_dir, cloud=f"{server.address},{other.address}", plan="q4", deadline=20) as edge:
        first = edge.launch(images[0], time.monotonic())
        assert soon(lambda: server.inflight == 1)
        closing = threading.Thread(target=server.close)
        closing.start()
        assert soon(lambda: edge._link._moving)
        second = edge.launch(images[1], time.monotonic())
        assert server.inflight == 1 and other.inflight == 0  # it waits for its server
        go.set()
        assert [edge.land(one)[0].where for one in (first, second)] == ["cloud"] * 2
    closing.join(20)
    assert server.tally == {"OK": 1} and other.tally["OK"] == 1
    other.close()


def test_a_device_that_does_not_know_how_to_go_is_left_when_it_is_quiet(model_dir):
    with Server(model_dir, port=0, threads=1, max_age=AGE) as server:
        go = held(server)
        with Line(server.address, Manifest.load(model_dir)) as line:
            line.frame(1)
            assert soon(lambda: next(iter(server._front.streams)).began < time.monotonic() - 2)
            go.set()
            assert [message.WhichOneof("kind") for message in line] == ["answer"]


def test_a_server_that_asks_to_leave_and_does_not_end_is_left(model_dir):
    """It never answers what it has: that goes to the other one, as what came behind it does."""
    clinging = Clinging()
    with scripts(clinging, Scripted(right)) as addresses:
        link = Link(addresses, Manifest.load(model_dir))
        before = link.send(parcel())
        assert soon(lambda: link._moving)
        behind = link.send(parcel())
        assert {one.future.result(20).answer.status for one in (before, behind)} == {wire.OK}
        assert before.again and not behind.again
        link.close()
        clinging.over.set()


def test_servers_that_send_a_device_on_at_once_are_not_asked_faster_than_others(model_dir):
    class Hasty(Scripted):
        streams = 0

        def Stream(self, messages, context):
            next(messages)
            Hasty.streams += 1
            yield wire.ToEdge(welcome=wire.Welcome(protocol=1, max_inflight=8))
            yield wire.ToEdge(leave=True)
            list(messages)

    with scripts(Hasty(right), Hasty(right)) as addresses:
        started = time.monotonic()
        link = Link(addresses, Manifest.load(model_dir))
        assert soon(lambda: Hasty.streams > 4)
        link.close()
        assert Hasty.streams <= 2 + (time.monotonic() - started) / FIRST_RETRY


def test_closing_while_a_frame_waits_for_the_next_server_ends_it(model_dir):
    clinging = Clinging()
    with scripts(clinging) as address:
        link = Link(address, Manifest.load(model_dir))
        before = link.send(parcel())
        assert soon(lambda: link._moving)
        behind = link.send(parcel())
        link.close()
        assert [type(one.future.exception(20)) for one in (before, behind)] == [LinkDown] * 2
        clinging.over.set()


@pytest.mark.parametrize("count", [1, 2])
def test_a_conversation_that_is_sent_on_says_the_same_text(folder, count):
    """One server takes the session up again; of two, each in turn has it replayed."""
    how = {"codec": "f32", "resume": "hidden", "drafts": 2, "patience": 60.0}
    with Server(folder, port=0, threads=1) as server:
        with Chat(folder, server.address, **how) as chat:
            wanted = [token.id for token in chat.answer(PROMPT, most=200)]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(Server(folder, port=0, threads=1, max_age=AGE))
            for _ in range(count)
        ]
        cloud = ",".join(server.address for server in servers)
        chat = stack.enter_context(Chat(folder, cloud, **how))
        answer, found = chat.answer(PROMPT, most=200), []
        for token in answer:
            found.append(token)
            time.sleep(0.01)
        assert chat._session.opened > 3
        assert {token.where for token in found} <= {"cloud", "draft"} and not chat.away
    assert [token.id for token in found] == wanted


@pytest.mark.parametrize("age", [0.0, -1.0, float("inf"), float("nan")])
def test_an_age_that_is_none_is_refused(model_dir, age):
    with pytest.raises(SplitrtError, match=r"max_age = .*\nhelp: seconds"):
        Server(model_dir, port=0, max_age=age)
