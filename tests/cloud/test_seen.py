"""What a server tells others than devices: by reflection its services, its figures as a page."""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.error
import urllib.request

import grpc
import pytest
from cryptography import x509
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from prometheus_client.parser import text_string_to_metric_families

from splitrt.cloud import Guard, Seen, Server, oip, reception
from splitrt.cloud.figures import Histogram
from splitrt.errors import LinkError
from tests.attacks import frames
from tests.cloud.test_identity import made
from tests.cloud.test_operation import held
from tests.conftest import ROOT
from tests.edge.test_loopback import soon
from tests.line import Line


def figures(server: Server) -> dict[tuple[str, str], float]:
    """The page's samples by (name, all labels' values)."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=30) as page:
        families = text_string_to_metric_families(page.read().decode())
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_reflection_names_the_services_and_gives_their_messages(model_dir):
    with Server(model_dir, port=0, threads=1, seen=Seen(reflection=True)) as server:
        with grpc.insecure_channel(server.address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert set(database.get_services()) == {
                "grpc.health.v1.Health",
                "grpc.reflection.v1alpha.ServerReflection",
                "inference.GRPCInferenceService",
                "splitrt.wire.Tail",
            }
            pool = DescriptorPool(database)
            infer = pool.FindServiceByName(oip.SERVICE).methods_by_name["ModelInfer"]
            assert infer.input_type.fields_by_name["raw_input_contents"].number == 7
            stream = pool.FindServiceByName("splitrt.wire.Tail").methods_by_name["Stream"]
            assert stream.input_type.full_name == "splitrt.wire.ToServer"


def test_reflection_of_a_language_model_names_its_service(llama_dir):
    with Server(llama_dir, port=0, threads=1, seen=Seen(reflection=True)) as server:
        with grpc.insecure_channel(server.address) as channel:
            services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert "splitrt.wire.Decoder" in services and oip.SERVICE not in services


def test_without_the_flag_there_is_no_reflection(server):
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            ProtoReflectionDescriptorDatabase(channel).get_services()
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_prometheus_reads_what_the_tally_holds(model_dir):
    with Server(model_dir, port=0, threads=1, seen=Seen(metrics=0)) as server:
        good, bad = frames.good(server.manifest), frames.request(server.manifest, b"")
        with grpc.insecure_channel(server.address) as channel:
            for raw in (good, good, good, bad):
                frames.infer(channel, raw)
            frames.stream(channel, frames.streamed(good))
        found = figures(server)
        tally = dict(server.tally)
    assert tally == {"OK": 4, "INVALID": 1}
    for name, count in tally.items():
        assert found["splitrt_answers_total", name] == count
    for part in ("request", "queue", "open", "compute"):
        assert found[f"splitrt_{part}_seconds_count", "small"] == 4
    assert found["splitrt_batch_size_sum", "small"] == 4
    payloads = sum(len(frames.wire.Request.FromString(raw).frame.payload) for raw in [good] * 4)
    assert found["splitrt_payload_bytes_total", "small"] == payloads
    for code, count in tally.items():
        assert found["splitrt_requests_total", f"{code},q8,small"] == count
    for gauge in ("inflight", "queue", "streams"):
        assert found[f"splitrt_{gauge}", ""] == 0
    assert found["process_open_fds", ""] > 0


def test_what_a_stranger_sends_never_becomes_a_label(model_dir):
    """A plan that there is not, or that is the device's own, counts for no codec."""
    with Server(model_dir, port=0, threads=1, seen=Seen(metrics=0)) as server:
        stored = frames.stored(server.manifest)
        plans = [len(server.manifest.plans), 2**32 - 1, *range(1000, 1050)]
        with grpc.insecure_channel(server.address) as channel:
            for plan in plans:
                frames.infer(channel, frames.request(server.manifest, stored, plan=plan))
            frames.infer(channel, frames.request(server.manifest, stored, "exit"))
            frames.infer(channel, frames.request(server.manifest, stored, "f32"))
        found = figures(server)
    counted = {labels: n for (name, labels), n in found.items() if name == "splitrt_requests_total"}
    assert counted == {"INVALID,,small": len(plans) + 1, "INVALID,f32,small": 1}


def test_a_language_models_server_has_figures_too(llama_dir):
    with Server(llama_dir, port=0, threads=1, seen=Seen(metrics=0)) as server:
        found = figures(server)
    assert found["splitrt_sessions", ""] == 0 and found["splitrt_inflight", ""] == 0


def test_a_metrics_port_that_is_taken_is_said_and_nothing_is_left_behind(model_dir):
    with Server(model_dir, port=0, threads=1, seen=Seen(metrics=0)) as server:
        taken = int(server.metrics.rpartition(":")[2])
        with pytest.raises(LinkError, match="metrics"):
            Server(model_dir, port=0, threads=1, seen=Seen(metrics=taken))
    with pytest.raises(OSError):
        figures(server)  # closed with the server
    with pytest.raises(LinkError, match="metrics"):
        Server(model_dir, port=0, threads=1, seen=Seen(metrics=70_000))


def test_the_command_says_where_its_figures_are(model_dir):
    command = [sys.executable, "-m", "splitrt.cli", "serve", str(model_dir), "--port", "0"]
    command += ["--threads", "1", "--metrics-port", "0", "--reflection"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        where, served = process.stdout.readline(), process.stdout.readline()
        try:
            url = where.removeprefix("figures at ").strip()
            with urllib.request.urlopen(url, timeout=30) as page:
                assert b"splitrt_inflight 0.0" in page.read()
            with grpc.insecure_channel(served.split()[-1]) as channel:
                assert oip.SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()
        finally:
            process.terminate()
    assert process.returncode == 0


def test_a_histogram_counts_a_bound_as_within():
    found = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        found.add(value)
    assert found.counts == [2, 2, 1] and found.sum == 7.5


def probed(server: Server, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{server.metrics}{path}", timeout=30) as page:
            return page.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_probe_is_told_whether_the_server_is_well_and_whether_it_is_ready(model_dir):
    with Server(model_dir, port=0, threads=1, grace=20, seen=Seen(metrics=0)) as server:
        go, closing = held(server), threading.Thread(target=server.close)
        assert [probed(server, path) for path in ("/healthz", "/readyz", "/")] == [200, 200, 404]
        with Line(server.address, server.manifest) as line:
            line.frame(1)
            assert soon(lambda: server.inflight == 1)
            closing.start()
            assert soon(lambda: probed(server, "/readyz") == 503)
            assert probed(server, "/healthz") == 200  # or it would be killed as it drains
            go.set()
        closing.join(20)


def test_a_probe_needs_no_certificate_where_devices_do(model_dir, tmp_path):
    ca = made(tmp_path, "ca", None, [])
    own = made(tmp_path, "server", ca, [x509.DNSName("tails.test")])
    guard = Guard(own.cert, own.key, ca.cert)
    with Server(model_dir, port=0, threads=1, guard=guard, seen=Seen(metrics=0)) as server:
        assert probed(server, "/readyz") == 200


def test_a_server_that_is_stuck_is_not_well(model_dir, monkeypatch):
    monkeypatch.setattr(reception, "STUCK", 0.2)
    with Server(model_dir, port=0, threads=1, seen=Seen(metrics=0)) as server:
        go = threading.Event()
        server._loop.call_soon_threadsafe(go.wait, 30)
        assert soon(lambda: probed(server, "/healthz") == 503)
        go.set()
        assert soon(lambda: probed(server, "/healthz") == 200)


def test_figures_are_for_this_machine_unless_a_host_is_named(model_dir):
    with Server(model_dir, port=0, threads=1, seen=Seen(metrics=0)) as server:
        assert server.metrics.startswith("127.0.0.1:")
    with Server(model_dir, port=0, threads=1, seen=Seen(metrics=0, host="127.0.0.2")) as server:
        assert server.metrics.startswith("127.0.0.2:") and probed(server, "/healthz") == 200
