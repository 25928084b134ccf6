"""deploy/kubernetes.yaml against the program: its options, ports, probes, times are real ones."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import PurePosixPath
from typing import Any

import pytest
import typer

from splitrt.cli import app
from splitrt.cloud import Seen, Server, reception, server
from splitrt.edge.roll import proved
from tests.conftest import ROOT

yaml = pytest.importorskip("yaml", reason="PyYAML")

TEXT = (ROOT / "deploy" / "kubernetes.yaml").read_text()
PARTS = {part["kind"]: part for part in yaml.safe_load_all(TEXT)}
POD = PARTS["Deployment"]["spec"]["template"]
SPEC = POD["spec"]
[BOX] = SPEC["containers"]
PORTS = {port["name"]: port["containerPort"] for port in BOX["ports"]}
PROBES = {name: BOX[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
LABELS = POD["metadata"]["labels"]
SERVE = typer.main.get_command(app).commands["serve"]


def entry() -> list[str]:
    """What the image starts, without a shell: its words."""
    docker = (ROOT / "deploy" / "server.Dockerfile").read_text()
    words = json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", docker, re.MULTILINE)[1])
    assert words[0].endswith("/splitrt") and words[1] == "serve"
    return words[2:]


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """The options of `splitrt serve` as it reads them in the container."""
    return SERVE.make_context("serve", [*entry(), *BOX["args"]]).params


def test_every_option_in_it_is_one_that_the_command_has(told):
    there = {name for option in SERVE.params for name in option.opts}
    lines = re.findall(r"^\s*(?:# )?- (--[a-z-]+)", TEXT, re.MULTILINE)
    assert len(lines) > len(BOX["args"]) and set(lines) <= there
    assert set(re.findall(r"serve (--\S+)", TEXT)) <= there
    assert told["folder"] == PurePosixPath("/models/birds")


def test_the_devices_words_are_options_too():
    edge = {
        name for one in typer.main.get_command(app).commands["edge"].params for name in one.opts
    }
    line = re.search(r"splitrt edge … (.*)", TEXT)[1]
    assert set(re.findall(r"--[a-z-]+", line)) <= edge
    address, service = re.search(r"--cloud (\S+)", line)[1], PARTS["Service"]
    assert proved(address).startswith(
        "dns:///{name}.{namespace}.svc.".format(**service["metadata"])
    )
    assert int(address.rpartition(":")[2]) == service["spec"]["ports"][0]["port"]


def test_its_ports_agree(told):
    assert {"grpc": told["port"], "metrics": told["metrics_port"]} == PORTS
    assert told["host"] == told["metrics_host"] == "0.0.0.0"
    [port] = PARTS["Service"]["spec"]["ports"]
    assert port["targetPort"] == "grpc" and port["port"] == told["port"]
    annotations = POD["metadata"]["annotations"]
    assert int(annotations["prometheus.io/port"]) == told["metrics_port"]
    let_in = [
        port["port"] for rule in PARTS["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]
    ]
    assert let_in == ["grpc", "metrics"]


def test_the_name_is_for_ready_servers_and_all_parts_mean_the_same_pods():
    service = PARTS["Service"]["spec"]
    assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"] is False
    assert service["selector"] == LABELS
    for kind, key in (
        ("Deployment", "selector"),
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
    ):
        assert PARTS[kind]["spec"][key]["matchLabels"] == LABELS
    deployment = PARTS["Deployment"]
    found = PARTS["HorizontalPodAutoscaler"]["spec"]
    assert found["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert 2 <= deployment["spec"]["replicas"] == found["minReplicas"] < found["maxReplicas"]
    assert PARTS["PodDisruptionBudget"]["spec"]["maxUnavailable"] < found["minReplicas"]


def test_probes_ask_what_the_server_answers(model_dir):
    wanted = {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
    assert {name: probe["httpGet"]["path"] for name, probe in PROBES.items()} == wanted
    assert {probe["httpGet"]["port"] for probe in PROBES.values()} == {"metrics"}
    paths = {*wanted.values(), POD["metadata"]["annotations"]["prometheus.io/path"]}
    with Server(model_dir, port=0, threads=1, seen=Seen(metrics=0)) as running:
        for path in paths:
            with urllib.request.urlopen(f"http://{running.metrics}{path}", timeout=30) as page:
                assert page.status == 200
                if path == "/metrics":
                    figures = page.read().decode()
    for name in set(re.findall(r"\bsplitrt_\w+", TEXT)):
        assert name in figures


def test_a_probe_waits_longer_than_a_server_takes_to_say_that_it_is_stuck():
    assert all(probe["timeoutSeconds"] > reception.STUCK for probe in PROBES.values())
    startup = PROBES["startup"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60  # torch, and a large model


def test_nothing_is_killed_before_its_time(told):
    [command, seconds] = BOX["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    whole = float(seconds) + told["grace"] + server.LAST
    assert SPEC["terminationGracePeriodSeconds"] > whole + 5
    ready = PROBES["readiness"]
    assert float(seconds) > ready["periodSeconds"] * ready["failureThreshold"]
    behaviour = PARTS["HorizontalPodAutoscaler"]["spec"]["behavior"]
    assert behaviour["scaleDown"]["stabilizationWindowSeconds"] > told["max_age"] * 1.1


def test_every_file_is_mounted_and_every_mount_has_a_volume(told):
    volumes = {volume["name"]: volume for volume in SPEC["volumes"]}
    mounts = {PurePosixPath(one["mountPath"]): one["name"] for one in BOX["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    files = {"tls_cert": "tls", "tls_key": "tls", "tokens": "tokens", "folder": "models"}
    for option, volume in files.items():
        assert mounts[PurePosixPath(told[option]).parent] == volume
    claim = PARTS["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["models"]["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
    for volume in ("tls", "tokens"):
        secret = volumes[volume]["secret"]
        assert secret["defaultMode"] == 0o440
        assert re.search(rf"create secret \w+ {secret['secretName']} ", TEXT)
    writable = [one["name"] for one in BOX["volumeMounts"] if not one.get("readOnly")]
    assert writable == ["tmp"]


def test_it_runs_as_nobody_in_particular_and_writes_nowhere_else():
    assert SPEC["securityContext"]["runAsNonRoot"] and SPEC["securityContext"]["runAsUser"] > 0
    assert not SPEC["automountServiceAccountToken"]
    box = BOX["securityContext"]
    assert box["readOnlyRootFilesystem"] and box["allowPrivilegeEscalation"] is False
    assert box["capabilities"] == {"drop": ["ALL"]}


def test_its_parts_are_what_kubernetes_knows():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate")
    for part in yaml.safe_load_all(TEXT):
        for version in ("1.27", None):
            validate.validate(part, version or validate.latest_version(), strict=True)
