"""The daemon as a process: signals, systemd, what Prometheus reads, what it logs and prints."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from splitrt import connect
from splitrt.daemon import journal
from splitrt.daemon.notify import Notify
from splitrt.daemon.shelf import STUCK
from splitrt.daemon.unit import unit
from tests.conftest import ROOT
from tests.daemon.house import in_order, lines, picture, process, running, told, until, write


def daemon(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`splitrt daemon daemon.toml` with these words, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "splitrt.cli", "daemon", "daemon.toml", *words],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
        env={"PYTHONPATH": ":".join([str(ROOT), *sys.path]), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def test_sighup_reloads_and_sigterm_answers_what_is_in_flight(tmp_path, model_dir, server):
    """systemd hears of each step: a datagram socket in its place."""
    tables = told(tmp_path, model_dir, server.address, log="json")
    write(tmp_path, tables)
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)

        def hear(word: str) -> str:
            while not heard or word not in heard[-1]:
                heard.append(systemd.recv(4096).decode())
            return heard[-1]

        watched = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        with process(tmp_path, **watched) as running:
            assert "STATUS=1 models, 1 cameras" in hear("READY=1")
            hear("WATCHDOG=1")
            until(lambda: any(one["where"] == "cloud" for one in lines(tmp_path / "door.jsonl")))
            tables["models"]["small"]["plan"] = "exit"
            write(tmp_path, tables)
            running.send_signal(signal.SIGHUP)
            assert re.search(r"MONOTONIC_USEC=\d+", hear("RELOADING=1"))
            hear("READY=1")
            until(lambda: lines(tmp_path / "door.jsonl")[-1]["where"] == "edge")
            write(tmp_path, {**tables, "models": {}})
            running.send_signal(signal.SIGHUP)
            hear("RELOADING=1")
            hear("READY=1")
            running.send_signal(signal.SIGTERM)
            hear("STOPPING=1")
            assert running.wait(60) == 0
    found = lines(tmp_path / "door.jsonl")
    assert in_order(found) and {line["where"] for line in found} >= {"cloud", "edge"}
    assert not (tmp_path / "s").exists()
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    messages = [one["message"] for one in log]
    assert "reloaded: model small: changed" in messages and messages[-1] == "ended"
    refused = next(one for one in log if "not reloaded" in one["message"])
    assert refused["level"] == "error" and "models = {}" in refused["message"]


def test_the_verbs_options_check_ask_and_reload(tmp_path, model_dir):
    tables = told(tmp_path, model_dir)
    write(tmp_path, tables)
    done = daemon(tmp_path, "--check")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("models.small: small, ") and "cameras.door: " in done.stdout
    done = daemon(tmp_path, "--status")
    assert done.returncode == 1 and "no daemon at" in done.stderr
    with running(tmp_path, tables):
        assert json.loads(daemon(tmp_path, "--status").stdout)["status"] == "ok"
        assert daemon(tmp_path, "--reload").stdout == "nothing changed\n"
        write(tmp_path, {**tables, "grase": 1})
        for words in (("--reload",), ("--check",), ()):
            done = daemon(tmp_path, *words)
            assert done.returncode == 1 and "Traceback" not in done.stderr
            assert "did you mean 'grace'?" in done.stderr
        assert daemon(tmp_path, "--check", "--reload").returncode == 2


def test_answers_on_standard_output_are_json_lines(tmp_path, model_dir):
    tables = told(tmp_path, model_dir)
    tables["cameras"]["door"] |= {"output": "stdout", "repeat": False}
    write(tmp_path, tables)
    with process(tmp_path, "--log-json") as running:
        assert running.stdout is not None
        found = [json.loads(running.stdout.readline()) for _ in range(20)]
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    assert in_order(found) and {line["camera"] for line in found} == {"door"}


def test_prometheus_reads_frames_times_links_and_memory(tmp_path, model_dir, server):
    pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
    from prometheus_client.parser import text_string_to_metric_families

    tables = told(tmp_path, model_dir, server.address, metrics_port=0)
    del tables["models"]["small"]["plan"]  # the controller, for its estimate
    tables["cameras"]["door"] |= {"repeat": False}
    with running(tmp_path, tables) as house:
        until(lambda: house.status()["cameras"]["door"]["state"] == "done")
        with connect(tmp_path / "s") as remote:
            for _ in range(3):
                remote(picture())
        assert house.page is not None
        there = f"http://127.0.0.1:{house.page.port}"
        text = urllib.request.urlopen(f"{there}/metrics", timeout=20).read().decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                found.setdefault(one.name, []).append((one.labels, one.value))
        by_camera = {"door": 0.0, "api": 0.0}
        for labels, value in found["splitrt_frames_total"]:
            assert set(labels) == {"camera", "model", "plan", "where", "cause"}
            by_camera[labels["camera"]] += value
        assert by_camera == {"door": 20, "api": 3}
        lines_bytes = sum(line["sent_bytes"] for line in lines(tmp_path / "door.jsonl"))
        assert ({"camera": "door", "model": "small"}, lines_bytes) in found[
            "splitrt_sent_bytes_total"
        ]
        total = ({"camera": "door", "stage": "total"}, 20.0)
        assert total in found["splitrt_frame_seconds_count"]
        assert ({"model": "small"}, 1.0) in found["splitrt_link_up"]
        for name in ("link_rtt_seconds", "link_bytes_per_second", "server_seconds"):
            assert found[f"splitrt_{name}"][0][1] > 0
        assert found["process_resident_memory_bytes"][0][1] > 1 << 20
        assert found["process_open_fds"][0][1] > 3
        health = json.loads(urllib.request.urlopen(f"{there}/healthz", timeout=20).read())
        assert health["status"] == "ok" and health["models"]["small"]["link"] == "up"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{there}/etc/passwd", timeout=20)


def test_metrics_without_their_library_say_what_to_install(tmp_path, model_dir):
    write(tmp_path, told(tmp_path, model_dir, metrics_port=0))
    code = (
        "import sys; sys.modules['prometheus_client'] = None;"
        "sys.argv[1:] = ['daemon', 'daemon.toml'];"
        "from splitrt.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        env={"PYTHONPATH": ":".join([str(ROOT), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 1 and "pip install 'splitrt[daemon]'" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "s").exists()


def test_a_head_that_hangs_is_no_health_and_a_lost_camera_is_some(tmp_path, model_dir):
    pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
    tables = told(tmp_path, model_dir, metrics_port=0)
    tables["cameras"] = {"door": {"source": "nowhere", "model": "small"}}
    with running(tmp_path, tables) as house:
        assert house.page is not None
        there = f"http://127.0.0.1:{house.page.port}/healthz"
        until(lambda: house.status()["cameras"]["door"]["state"] == "lost")
        with urllib.request.urlopen(there, timeout=20) as answer:
            assert json.loads(answer.read())["status"] == "degraded"
        house.shelf.find("small").since = time.monotonic() - 1.1 * STUCK
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            urllib.request.urlopen(there, timeout=20)
        assert json.loads(caught.value.read())["status"] == "failing"


def test_systemd_takes_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = daemon(tmp_path, "--install-unit")
    assert done.returncode == 0, done.stderr
    assert "Type=notify" in done.stdout and str(tmp_path / "daemon.toml") in done.stdout
    (tmp_path / "splitrt.service").write_text(done.stdout)
    proved = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "splitrt.service"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert proved.returncode == 0 and not proved.stderr, proved.stderr
    (tmp_path / "splitrt.service").write_text(done.stdout.replace("Type=notify", "Type=notyfi"))
    proved = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "splitrt.service"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "notyfi" in proved.stderr  # so it would have said so


def test_a_units_words_are_quoted():
    text = unit(["/opt/my venv/bin/splitrt"], Path("/etc/100%/a b.toml"))
    assert "ExecStart='/opt/my venv/bin/splitrt' daemon '/etc/100%%/a b.toml'" in text


def test_signs_of_life_are_for_the_process_that_is_watched(tmp_path):
    assert Notify({}).every is None
    there = {"NOTIFY_SOCKET": str(tmp_path / "none"), "WATCHDOG_USEC": "3000000"}
    assert Notify(there).every == 1.5
    assert Notify({**there, "WATCHDOG_PID": "1"}).every is None
    assert Notify({**there, "WATCHDOG_USEC": "soon"}).every is None
    Notify(there).alive()  # nobody listens: no error


def test_a_line_of_the_log_is_one_line_with_its_level():
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "two\nlines %s", ("a b",), None)
    record.camera = "door"
    text = journal.Line("text", journal=True).format(record)
    assert text == '<4>level=warning camera=door message="two\\nlines a b" logger=x'
    found = json.loads(journal.Line("json", journal=False).format(record))
    assert found["message"] == "two\nlines a b" and found["camera"] == "door"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["at"])


@pytest.mark.parametrize("name", ["server", "device"])
def test_a_dockerfile_copies_what_is_there(name):
    """They cannot be built here; what they name can be looked for."""
    text = (ROOT / "deploy" / f"{name}.Dockerfile").read_text()
    for words in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for word in words.split():
            assert (ROOT / word).exists(), word
    extras = re.findall(r"'\.\[([a-z,]+)\]'", text)
    project = (ROOT / "pyproject.toml").read_text()
    assert extras and all(f"\n{one} = [" in project for one in extras[0].split(","))
