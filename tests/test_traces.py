"""One trace over device and server: two processes, and a collector to which both send."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from splitrt.cloud import Seen, Server
from splitrt.errors import SplitrtError
from tests.collector import Collector, Span, around, collecting, serving
from tests.conftest import ROOT
from tests.daemon.house import folder_of, lines, process, told, until, write

CLI = [sys.executable, "-m", "splitrt.cli"]
INTERNAL, SERVER, CLIENT = 1, 2, 3  # of OTLP
HERE = ["capture", "head", "gate", "codec"]
THERE = {"server", "batch", "tail"}
ALL = 1 + len(HERE) + 1 + len(THERE)  # spans of a frame that is sent


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture
def pile(collector) -> Collector:
    """The collector, empty."""
    collector.spans.clear()
    return collector


@pytest.fixture(scope="module")
def address(model_dir, collector) -> Iterator[str]:
    """Of a server that traces."""
    with serving(model_dir, "--trace", **collector.environ) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return folder_of(tmp_path_factory.mktemp("pictures"), 6)


def device(model: Path, folder: Path, *words: str, **environ: str) -> list[dict]:
    """What `splitrt edge` says of the folder's pictures."""
    command = [*CLI, "edge", str(model), "--source", str(folder), "--json", "--threads", "1"]
    done = subprocess.run(
        [*command, *words],
        cwd=ROOT,
        env=around(**environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def within(inner: Span, outer: Span) -> bool:
    """Times are in ns of float seconds: a microsecond's rounding."""
    return outer.start - 1000 <= inner.start <= inner.end <= outer.end + 1000


def test_a_frame_is_one_trace_over_device_and_server(address, model_dir, folder, pile):
    words = ("--cloud", address, "--plan", "q8", "--trace")
    said = device(model_dir, folder, *words, **pile.environ)
    until(lambda: len(pile.spans) >= 6 * ALL)
    roots = sorted(pile.named("frame"), key=lambda span: span.start)
    assert len({root.trace for root in roots}) == len(said) == 6
    assert len(pile.spans) == 6 * ALL
    for root, line in zip(roots, said, strict=True):
        _whole(pile.of(root.trace), line)


def _whole(spans: Mapping[str, Span], line: dict) -> None:
    """A frame's spans hang together, and say what the frame's line says."""
    root, link, server = spans["frame"], spans["link"], spans["server"]
    assert root.parent == "" and root.error is None
    for name in (*HERE, "link"):
        assert spans[name].parent == root.span and within(spans[name], root)
    for before, after in itertools.pairwise(HERE):
        assert spans[before].end <= spans[after].start + 1000
    assert server.parent == link.span
    for name in ("batch", "tail"):
        assert spans[name].parent == server.span and within(spans[name], server)
    assert {span.service for name, span in spans.items() if name in THERE} == {"splitrt-serve"}
    assert {spans[name].service for name in ("frame", *HERE, "link")} == {"splitrt-edge"}
    assert (root.kind, link.kind, server.kind) == (INTERNAL, CLIENT, SERVER)
    about = root.attributes
    assert about["splitrt.model"] == "small" and about["splitrt.plan"] == "q8"
    assert about["splitrt.where"] == line["where"] == "cloud"
    assert about["splitrt.sent_bytes"] == line["sent_bytes"]
    assert server.attributes["splitrt.status"] == "OK"
    there = sum(link.attributes[f"splitrt.{word}_ms"] for word in THERE)
    assert 0 < there <= (link.end - link.start) / 1e6 <= line["ms"] + 0.01
    assert (root.end - root.start) / 1e6 == pytest.approx(line["ms"], abs=0.01)


def test_a_frame_without_an_answer_is_an_error(plain_dir, folder, pile):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        there = f"127.0.0.1:{nobody.getsockname()[1]}"
        words = ("--cloud", there, "--deadline", "0.3", "--plan", "q8", "--trace", "--no-standin")
        said = device(plain_dir, folder, *words, **pile.environ)
    assert [line["where"] for line in said] == [None] * 6
    roots = sorted(pile.named("frame"), key=lambda span: span.start)
    assert [root.error for root in roots] == [line["reason"] for line in said]
    assert all("splitrt.where" not in root.attributes for root in roots)
    assert {link.error for link in pile.named("link")} <= {line["reason"] for line in said}


def test_a_frame_that_stays_here_has_no_link(model_dir, folder, pile):
    said = device(model_dir, folder, "--plan", "exit", "--trace", **pile.environ)
    assert [line["where"] for line in said] == ["edge"] * 6
    assert {span.name for span in pile.spans} == {"frame", "capture", "head", "gate"}
    assert len(pile.spans) == 4 * 6


def test_the_environment_names_and_samples(address, model_dir, folder, pile):
    words = ("--cloud", address, "--plan", "f32")
    off = {**pile.environ, "OTEL_TRACES_SAMPLER": "always_off"}
    sampled_out = device(model_dir, folder, *words, "--trace", **off)
    untraced = device(model_dir, folder, *words, **pile.environ)
    named = {**pile.environ, "OTEL_SERVICE_NAME": "porch"}
    traced = device(model_dir, folder, *words, "--trace", **named)
    until(lambda: len(pile.spans) >= 6 * ALL)
    assert {span.service for span in pile.spans} == {"porch", "splitrt-serve"}
    assert {span.trace for span in pile.spans} == {span.trace for span in pile.named("frame")}
    assert len(pile.named("frame", "porch")) == 6  # of the last run alone
    size, *_ = {line["sent_bytes"] for line in untraced}
    assert [line["sent_bytes"] for line in sampled_out] == [size] * 6
    assert [line["sent_bytes"] for line in traced] == [size + 27] * 6


def test_endpoints_that_nobody_serves_end_nothing(model_dir, folder):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="no extra `trace` here")
    with socket.socket() as silent, socket.socket() as nobody:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # a peer that never says anything
        nobody.bind(("127.0.0.1", 0))
        dead, deaf = (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{end.getsockname()[1]}"}
            for end in (nobody, silent)
        )
        with serving(model_dir, "--trace", **deaf) as address:
            words = ("--cloud", address, "--plan", "q8", "--trace")
            said = device(model_dir, folder, *words, **dead)
    assert [line["where"] for line in said] == ["cloud"] * 6


def test_the_daemon_traces_its_cameras(tmp_path, model_dir, pile):
    write(tmp_path, told(tmp_path, model_dir, trace=True))
    with process(tmp_path, **pile.environ) as running:
        until(lambda: len(lines(tmp_path / "door.jsonl")) > 5)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    assert len(pile.named("frame", "splitrt-daemon")) == len(lines(tmp_path / "door.jsonl"))


def test_a_language_models_server_says_that_it_makes_none():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="no extra `trace` here")
    with pytest.raises(SplitrtError, match="makes no traces\nhelp"):
        Server(ROOT / "models" / "stories", port=0, seen=Seen(traces=True))


def test_without_the_extra_both_halves_name_it(model_dir, folder):
    for words in (["serve", str(model_dir)], ["edge", str(model_dir), "--source", str(folder)]):
        code = (
            "import sys; sys.modules['opentelemetry'] = None;"
            f"sys.argv = {['splitrt', *words, '--trace']!r};"
            "from splitrt.cli import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=around(), check=False
        )
        assert done.returncode == 1 and not done.stdout
        assert "help: pip install 'splitrt[trace]'" in done.stderr


def test_a_similar_frame_and_one_that_does_not_fit_are_traces_too(model_dir):
    """In this process, by a provider of its own."""
    pytest.importorskip("opentelemetry.sdk.trace", reason="no extra `trace` here")
    code = """
import sys, time
import numpy as np
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from splitrt import Edge, Frame, traced

seen = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(seen))
trace.set_tracer_provider(provider)
image = np.zeros((32, 32, 3), np.uint8)
shown = [image, image, np.zeros((3, 3), np.float32)]
frames = [Frame(one, n, time.monotonic(), str(n)) for n, one in enumerate(shown)]
with traced(Edge(sys.argv[1], similar=1.0)) as edge:
    found = [result.where for _, result in edge.stream(frames, inflight=1)]
    print(found)
for span in seen.get_finished_spans():
    if span.name == "frame":
        print(span.attributes["splitrt.plan"], span.status.status_code.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(model_dir)],
        capture_output=True,
        text=True,
        env=around(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, *spans = done.stdout.splitlines()
    assert said == "['edge', 'edge', None]"
    assert spans[0].endswith("UNSET") and spans[1] == "similar UNSET"
    assert spans[2].endswith("ERROR")
