"""The relay over real sockets: what it shapes, what it loses, what it spoils."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from splitrt import LinkError, SplitrtError
from splitrt.core import links
from splitrt.relay import Relay
from tests.conftest import ROOT

PATIENCE = 20.0  # seconds


class Peer:
    """Takes connections, keeps what each brought, and answers it with the same if it echoes."""

    def __init__(self, echo: bool = False) -> None:
        self.echo, self.heard = echo, []
        self.lines: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for line in self.lines:
            line.close()

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self.lines.append(line)
            self.heard.append(bytearray())
            threading.Thread(target=self._hear, args=(line, self.heard[-1]), daemon=True).start()

    def _hear(self, line: socket.socket, heard: bytearray) -> None:
        try:
            while piece := line.recv(65536):
                heard += piece
                if self.echo:
                    line.sendall(piece)
            line.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as running:
        yield running


@pytest.fixture
def echo() -> Iterator[Peer]:
    with Peer(echo=True) as running:
        yield running


def connected(relay: Relay) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", relay.port), PATIENCE)
    line.settimeout(PATIENCE)
    return line


def received(line: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (piece := line.recv(count - len(got))):
        got += piece
    return got


def soon(condition, seconds: float = PATIENCE) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.01)
    return False


def ended(line: socket.socket) -> bool:
    """Whether it is closed or reset, in time."""
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True


def test_bytes_cross_unchanged_both_ways_and_are_counted(echo):
    data = os.urandom(3_000_000)
    with Relay(echo.address) as relay, connected(relay) as line:
        threading.Thread(target=line.sendall, args=(data,), daemon=True).start()
        assert received(line, len(data)) == data
        counts = relay.counts
        assert (counts.up, counts.down) == (len(data), len(data))
        assert (counts.lines, counts.accepted, counts.swallowed) == (1, 1, 0)
    assert not relay._thread.is_alive()


def test_an_end_passes_on_and_the_other_direction_stays_open(peer):
    with Relay(peer.address, trace=8.0, rtt=0.02) as relay, connected(relay) as line:
        line.sendall(b"x" * 10_000)
        line.shutdown(socket.SHUT_WR)
        assert received(line, 1) == b""  # the peer ended when it had heard the end
        assert len(peer.heard[0]) == 10_000
        assert soon(lambda: relay.counts.lines == 0)


def test_the_round_trip_is_never_shorter_than_asked(echo):
    with Relay(echo.address, rtt=0.1, jitter=0.05) as relay, connected(relay) as line:
        line.sendall(b"-")  # a new line takes a round trip more
        received(line, 1)
        took = []
        for _ in range(10):
            started = time.monotonic()
            line.sendall(b"x" * 100)
            received(line, 100)
            took.append(time.monotonic() - started)
        assert min(took) >= 0.1 and sorted(took)[5] < 1.0
        relay.rtt = relay.jitter = 0.0
        started = time.monotonic()
        line.sendall(b"x")
        received(line, 1)
        assert time.monotonic() - started < 0.1 + min(took)


def test_the_rate_is_kept_and_two_lines_share_it(peer):
    with Relay(peer.address, trace=4.0) as relay:
        lines = [connected(relay), connected(relay)]
        started = time.monotonic()
        for line in lines:
            threading.Thread(target=line.sendall, args=(b"x" * 500_000,), daemon=True).start()
        assert soon(lambda: relay.counts.up == 1_000_000)
        took = time.monotonic() - started
        for line in lines:
            line.close()
    assert 2.0 * 0.99 <= took < 2.0 * 5  # 8 Mbit; late only if the machine is
    assert [len(heard) for heard in peer.heard] == [500_000, 500_000]


def test_the_way_back_has_a_rate_of_its_own(echo):
    with Relay(echo.address, down=2.0) as relay, connected(relay) as line:
        started = time.monotonic()
        threading.Thread(target=line.sendall, args=(b"x" * 250_000,), daemon=True).start()
        assert len(received(line, 250_000)) == 250_000
    assert time.monotonic() - started >= 0.99


def test_a_slow_link_pushes_back_and_its_queue_is_bounded(peer):
    with Relay(peer.address, trace=0.5, queue=20_000) as relay, connected(relay) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        line.setblocking(False)
        sent, until = 0, time.monotonic() + 1.0
        while time.monotonic() < until:
            try:
                sent += line.send(b"x" * 4096)
            except BlockingIOError:
                time.sleep(0.01)
            assert relay.counts.queue_up <= 20_000
        assert relay.counts.queue_up > 10_000
        assert sent < 2_000_000  # loopback alone would have taken a hundred times that


def test_a_trace_of_nothing_holds_and_the_rest_arrives_after_it(peer):
    with Relay(peer.address, trace=0.0) as relay, connected(relay) as line:
        line.sendall(b"abc" * 1000)
        assert soon(lambda: relay.counts.queue_up == 3000)
        time.sleep(0.3)
        assert relay.counts.up == 0
        relay.trace = 8.0
        assert soon(lambda: bytes(peer.heard[0]) == b"abc" * 1000)


def test_what_a_stall_holds_arrives_after_it(echo):
    with Relay(echo.address) as relay, connected(relay) as line:
        line.sendall(b"one")
        assert received(line, 3) == b"one"
        relay.stall = True
        line.sendall(b"two")
        line.settimeout(0.3)
        with pytest.raises(TimeoutError):
            line.recv(1)
        relay.stall = False
        line.settimeout(PATIENCE)
        assert received(line, 3) == b"two"


def test_a_hole_keeps_lines_open_accepts_new_ones_and_nothing_arrives_later(echo):
    with Relay(echo.address) as relay, connected(relay) as old:
        old.sendall(b"before")
        assert received(old, 6) == b"before"
        relay.hole = True
        new = connected(relay)
        old.sendall(b"gone")
        new.sendall(b"too")
        assert soon(lambda: relay.counts.swallowed == 7)
        relay.hole = False
        old.sendall(b"a gap would be before this")
        assert soon(lambda: relay.counts.swallowed == 33)
        for line in (old, new):
            line.settimeout(0.2)
            with pytest.raises(TimeoutError):
                line.recv(1)
        with connected(relay) as fresh:
            fresh.sendall(b"after")
            assert received(fresh, 5) == b"after"
        assert [bytes(heard) for heard in echo.heard] == [b"before", b"after"]
        new.close()


def test_lines_that_a_hole_has_spoiled_are_forgotten_when_it_is_over(peer):
    with Relay(peer.address) as relay:
        lines = [connected(relay) for _ in range(5)]
        assert soon(lambda: len(peer.heard) == 5)
        relay.hole = True
        for line in lines:
            line.sendall(b"x")
            line.close()
        assert soon(lambda: relay.counts.swallowed == 5)
        time.sleep(0.1)
        assert relay.counts.lines == 5  # the server has not heard of it
        relay.hole = False
        assert soon(lambda: relay.counts.lines == 0)


def test_a_cut_closes_both_ends_and_new_lines_come(peer):
    with Relay(peer.address) as relay, connected(relay) as line:
        assert soon(lambda: len(peer.heard) == 1)
        relay.cut()
        assert ended(line)
        with connected(relay):
            assert soon(lambda: len(peer.heard) == 2)


def test_refusing_resets_new_lines_and_leaves_the_open_ones(echo):
    with Relay(echo.address) as relay, connected(relay) as line:
        line.sendall(b"in")
        assert received(line, 2) == b"in"
        relay.refuse = True
        with pytest.raises(ConnectionResetError), connected(relay) as other:
            other.recv(1)
        line.sendall(b"still")
        assert received(line, 5) == b"still"
        relay.refuse = False
        with connected(relay) as other:
            other.sendall(b"again")
            assert received(other, 5) == b"again"


def test_a_target_that_is_not_there_closes_the_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Relay(f"127.0.0.1:{port}") as relay, connected(relay) as line:
        assert ended(line)


def test_a_piece_can_land_twice(peer):
    with Relay(peer.address) as relay, connected(relay) as line:
        relay.duplicate()
        line.sendall(b"one")
        assert soon(lambda: bytes(peer.heard[0]) == b"oneone" if peer.heard else False)
        line.sendall(b"two")
        assert soon(lambda: bytes(peer.heard[0]) == b"oneonetwo")


def test_a_byte_can_change_in_either_direction(echo):
    with Relay(echo.address) as relay, connected(relay) as line:
        relay.corrupt()
        line.sendall(b"abc")
        spoiled = received(line, 3)
        assert (spoiled[0], spoiled[2]) == (ord("a"), ord("c")) and spoiled[1] == ord("b") ^ 0xFF
        relay.corrupt(up=False)
        line.sendall(b"abc")
        assert received(line, 3) == spoiled
        assert bytes(echo.heard[0]) == spoiled + b"abc"
        line.sendall(b"abc")
        assert received(line, 3) == b"abc"


def test_a_line_can_end_in_the_middle_of_a_message(peer):
    with Relay(peer.address) as relay, connected(relay) as line:
        line.sendall(b"whole")
        assert soon(lambda: relay.counts.up == 5)
        relay.truncate = 3
        line.sendall(b"message")
        assert ended(line)
        assert soon(lambda: bytes(peer.heard[0]) == b"wholemes")
        relay.truncate = None
        with connected(relay) as other:
            other.sendall(b"message")
            assert soon(lambda: bytes(peer.heard[1]) == b"message" if peer.heard[1:] else False)


def test_settings_from_many_threads_leave_the_link_whole(echo):
    data = os.urandom(400_000)
    with Relay(echo.address) as relay, connected(relay) as line:

        def fiddle(seed: int) -> None:
            for step in range(30):
                relay.trace = 50.0 + (seed + step) % 7
                relay.rtt = 0.001 * (step % 4)
                relay.stall = step % 5 == 0

        threads = [threading.Thread(target=fiddle, args=(seed,)) for seed in range(4)]
        for thread in [*threads, threading.Thread(target=line.sendall, args=(data,), daemon=True)]:
            thread.start()
        for thread in threads:
            thread.join()
        relay.stall = False
        assert received(line, len(data)) == data


def test_a_link_by_trace_brings_its_round_trip():
    trace = links.generate(links.link("lte-fair"), 10)
    with Relay("127.0.0.1:1", trace=trace) as relay:
        assert relay.rtt == trace.rtt == 0.084
        assert relay.trace is trace
        relay.trace = 3.0
        assert relay.trace.at(99) == 3.0 and relay.counts.mbps == 3.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": "nowhere"}, "host:port"),
        ({"target": "host:0"}, "host:port"),
        ({"rtt": -1}, "rtt = -1"),
        ({"rtt": float("nan")}, "rtt = nan"),
        ({"jitter": 100}, "jitter = 100"),
        ({"trace": -1.0}, "0 or more"),
        ({"queue": 0}, "1 or more"),
    ],
)
def test_what_is_wrong_with_a_relay_is_said(settings, words):
    with pytest.raises(SplitrtError, match=words):
        Relay(**{"target": "127.0.0.1:1", **settings})


def test_a_taken_port_is_said():
    with Relay("127.0.0.1:1") as relay, pytest.raises(LinkError, match="cannot be bound"):
        Relay("127.0.0.1:1", port=relay.port)


def splitrt(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "splitrt.cli", "relay", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_verb_says_where_it_is_what_crosses_and_ends_when_told(echo, ending):
    words = ("--to", echo.address, "--link", "8mbps", "--rtt", "30", "--port", "0", "--verbose")
    process = splitrt(*words)
    try:
        first = process.stdout.readline()
        port = int(re.search(r"8mbps to \S+ at 127\.0\.0\.1:(\d+), round trip 30 ms", first)[1])
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as line:
            line.settimeout(PATIENCE)
            line.sendall(b"hello")
            assert received(line, 5) == b"hello"
            assert re.search(r"link    8.00 Mbit/s .* lines 1", process.stdout.readline())
        process.send_signal(ending)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--to", "127.0.0.1:1", "--link", "lte-fare"), "did you mean 'lte-fair'"),
        (("--to", "here"), "host:port"),
        (("--to", "127.0.0.1:1", "--trace", "nowhere.csv"), "no trace at"),
        (("--to", "127.0.0.1:1", "--rtt", "-5"), "rtt"),
    ],
)
def test_the_verb_says_what_is_wrong_without_a_traceback(words, told):
    process = splitrt(*words)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert told in errors and "help:" in errors and "Traceback" not in errors


def test_the_verb_takes_a_recorded_trace(tmp_path, echo):
    recorded = tmp_path / "walk.csv"
    recorded.write_text("seconds,mbps\n0,8\n1,4\n2,8\n")
    process = splitrt("--to", echo.address, "--trace", str(recorded), "--port", "0")
    try:
        assert process.stdout.readline().startswith(f"walk to {echo.address} at 127.0.0.1:")
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
