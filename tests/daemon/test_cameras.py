"""Cameras that run for ever, models that are exchanged under them, and not a frame lost."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from splitrt import Edge, Frame, Manifest, ModelMismatch, SplitrtError, connect
from splitrt.core.result import Result
from splitrt.daemon import outlet, watch
from splitrt.daemon.audience import WAITING, Audience
from splitrt.daemon.feed import Feed
from splitrt.daemon.seen import Seen
from splitrt.edge.capture import Pictures
from splitrt.relay import Relay
from tests.conftest import pictures
from tests.daemon.house import copied, folder_of, in_order, lines, running, told, until, write


def seen(index: int, outputs: dict[str, np.ndarray] | None = None) -> Seen:
    result = Result(outputs=outputs or {}, where="edge", plan="exit")
    return Seen("door", "small", f"{index}", index, 0.0, result, "none")


def test_a_folder_is_answered_as_an_edge_would_and_ends(tmp_path, model_dir, server):
    tables = told(tmp_path, model_dir, server.address)
    tables["cameras"]["door"] |= {"repeat": False, "fps": 1000.0}
    with running(tmp_path, tables) as daemon:
        until(lambda: daemon.status()["cameras"]["door"]["state"] == "done")
        assert daemon.well
    found = lines(tmp_path / "door.jsonl")
    with Edge(model_dir, cloud=server.address, plan="q4", deadline=5) as edge:
        wanted = list(edge.stream(Pictures(tmp_path / "camera")))
    assert [line["frame"] for line in found] == [frame.name for frame, _ in wanted]
    assert in_order(found) and {line["where"] for line in found} == {"cloud"}
    for line, (_, result) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(line["outputs"]["logits"], result.outputs["logits"], atol=1e-3)
        assert line["cause"] == "none" and line["sent_bytes"] == result.sent_bytes


def test_a_reload_swaps_the_model_without_losing_a_frame(tmp_path, model_dir, server):
    """Twenty exchanges between a plan of the cloud and one here, while frames are on their way."""
    tables = told(tmp_path, model_dir, server.address)
    answers = tmp_path / "door.jsonl"
    with Relay(server.address, rtt=0.05) as relay, running(tmp_path, tables) as daemon:
        for turn in range(20):
            tables["models"]["small"] |= {
                "plan": "exit" if turn % 2 else "q4", "cloud": relay.address,
            }  # fmt: skip
            write(tmp_path, tables)
            assert daemon.reload() == ["model small: changed"]
            before = daemon.status()["cameras"]["door"]["frames"]
            until(lambda before=before: daemon.status()["cameras"]["door"]["frames"] > before + 5)
        assert len(daemon.shelf.residents) == 1
    found = lines(answers)
    assert in_order(found)
    changes = [one["where"] != two["where"] for one, two in pairwise(found)]
    assert sum(changes) >= 19
    assert {line["cause"] for line in found} == {"none"}
    until(lambda: not [one for one in threading.enumerate() if one.name.startswith("retire")])


def test_a_wrong_file_is_refused_and_the_old_goes_on(tmp_path, model_dir):
    tables = told(tmp_path, model_dir)
    with running(tmp_path, tables) as daemon:
        resident = daemon.shelf.find("small")
        for change, words in (
            ({"deadlin": 1.0}, "did you mean 'deadline'"),
            ({"path": str(tmp_path)}, "models.small: .*has no model.toml"),
            ({"plan": "q44"}, "models.small: no plan 'q44'"),
        ):
            write(
                tmp_path, {**tables, "models": {"small": {**tables["models"]["small"], **change}}}
            )
            with pytest.raises(SplitrtError, match=words):
                daemon.reload()
        write(tmp_path, {**tables, "socket": "elsewhere"})
        with pytest.raises(SplitrtError, match="start the daemon again"):
            daemon.reload()
        before = daemon.status()["cameras"]["door"]["frames"]
        until(lambda: daemon.status()["cameras"]["door"]["frames"] > before + 5)
        assert daemon.shelf.find("small") is resident
        assert daemon.status()["reloads"] == {"done": 0, "refused": 4}
    assert in_order(lines(tmp_path / "door.jsonl"))


def test_cameras_and_models_come_and_go_on_reload(tmp_path, model_dir):
    tables = told(tmp_path, model_dir)
    with running(tmp_path, tables) as daemon:
        until(lambda: lines(tmp_path / "door.jsonl"))
        assert daemon.reload() == ["nothing changed"]
        folder_of(tmp_path / "second", 3, seed=9)
        yard = {"source": "second", "model": "other", "output": "yard.jsonl"}
        tables["models"]["other"] = {"path": str(model_dir), "threads": 1}
        write(tmp_path, {**tables, "cameras": {"door": tables["cameras"]["door"], "yard": yard}})
        assert daemon.reload() == ["model other: added", "camera yard: added"]
        until(lambda: len(lines(tmp_path / "yard.jsonl")) == 3)
        old = daemon.shelf.find("other")
        del tables["models"]["other"]
        tables["cameras"]["door"]["fps"] = 100.0
        write(tmp_path, tables)
        told_of = daemon.reload()
        assert told_of == ["model other: removed", "camera yard: removed", "camera door: changed"]
        assert old.retired.is_set() and daemon.cameras() == ["door"]


def test_a_moved_file_of_answers_is_opened_anew_on_reload(tmp_path, model_dir):
    with running(tmp_path, told(tmp_path, model_dir)) as daemon:
        until(lambda: lines(tmp_path / "door.jsonl"))
        (tmp_path / "door.jsonl").rename(tmp_path / "door.1")
        daemon.reload()
        until(lambda: lines(tmp_path / "door.jsonl"))
    assert in_order(lines(tmp_path / "door.1") + lines(tmp_path / "door.jsonl"))


def test_a_camera_that_dies_is_opened_for_ever_and_others_go_on(tmp_path, model_dir, monkeypatch):
    monkeypatch.setattr(watch, "FIRST", 0.01)
    tables = told(tmp_path, model_dir)
    folder_of(tmp_path / "second", 3, seed=9)
    yard = {**tables["cameras"]["door"], "source": "second", "output": "yard.jsonl"}
    never = {"source": "rtsp://127.0.0.1:9/none", "model": "small"}
    tables["cameras"] |= {"yard": yard, "never": never}
    with running(tmp_path, tables) as daemon:
        for _ in range(3):
            until(lambda: daemon.status()["cameras"]["door"]["state"] == "running")
            (tmp_path / "camera").rename(tmp_path / "away")
            until(lambda: daemon.status()["cameras"]["door"]["state"] == "lost")
            before = daemon.status()["cameras"]["yard"]["frames"]
            until(lambda n=before: daemon.status()["cameras"]["yard"]["frames"] > n + 5)
            assert daemon.status()["status"] == "degraded" and daemon.well
            (tmp_path / "away").rename(tmp_path / "camera")
        until(lambda: daemon.status()["cameras"]["door"]["state"] == "running")
        told_of = daemon.status()["cameras"]
        assert told_of["door"]["opened"] >= 4 and told_of["never"]["state"] in ("opening", "lost")
    assert in_order(lines(tmp_path / "door.jsonl")) and in_order(lines(tmp_path / "yard.jsonl"))


def test_a_link_that_dies_and_comes_back_loses_no_frame(tmp_path, model_dir, server):
    with Relay(server.address) as relay:
        tables = told(tmp_path, model_dir, relay.address)
        tables["models"]["small"]["deadline"] = 0.5
        answers = tmp_path / "door.jsonl"
        with running(tmp_path, tables) as daemon:
            until(lambda: any(line["where"] == "cloud" for line in lines(answers)))
            for _ in range(2):
                relay.refuse = True
                relay.cut()
                until(lambda: lines(answers)[-1]["cause"] == "LinkDown")
                assert lines(answers)[-1]["where"] == "edge"
                assert daemon.status()["models"]["small"]["link"] == "down"
                relay.refuse = False
                until(lambda: lines(answers)[-1]["where"] == "cloud")
    assert in_order(lines(answers)) and all(line["where"] for line in lines(answers))


def test_a_server_of_another_model_ends_no_camera(tmp_path, model_dir, server):
    """The device holds another revision: its own answers go on, and say why."""
    other = copied(model_dir, tmp_path / "model")
    with (other / "model.toml").open("a") as file:
        file.write("\n# another revision\n")
    answers = tmp_path / "door.jsonl"
    with running(tmp_path, told(tmp_path, other, server.address)) as daemon:
        until(lambda: len(lines(answers)) > 30)
        assert daemon.well
        with connect(tmp_path / "s") as remote, pytest.raises(ModelMismatch):
            remote(pictures(1).images[0])
        shutil.copy(model_dir / "model.toml", other / "model.toml")
        assert daemon.reload() == ["model small: changed"]
        until(lambda: lines(answers)[-1]["where"] == "cloud")
    found = lines(answers)
    assert in_order(found) and found[10]["cause"] == "ModelMismatch"
    assert found[10]["where"] == "edge" and "model" in found[10]["reason"]


def test_a_video_is_run_to_its_end_or_for_ever(tmp_path, model_dir):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    made = cv2.VideoWriter(
        str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32)
    )
    for image in pictures(12).images:
        made.write(image)
    made.release()
    tables = told(tmp_path, model_dir)
    tables["cameras"]["door"] |= {"source": "film.avi", "repeat": False}
    with running(tmp_path, tables) as daemon:
        until(lambda: daemon.status()["cameras"]["door"]["state"] == "done")
        assert daemon.well and len(lines(tmp_path / "door.jsonl")) == 12
        tables["cameras"]["door"]["repeat"] = True
        write(tmp_path, tables)
        assert daemon.reload() == ["camera door: changed"]
        until(lambda: len(lines(tmp_path / "door.jsonl")) > 40)
        assert daemon.status()["cameras"]["door"]["opened"] > 2
    again = lines(tmp_path / "door.jsonl")[12:]
    assert in_order(again) and again[12]["frame"] == "frame-0"


def test_a_file_that_cannot_be_written_stops_no_camera(tmp_path, model_dir):
    tables = told(tmp_path, model_dir)
    (tmp_path / "door.jsonl").mkdir()
    with running(tmp_path, tables) as daemon:
        until(lambda: daemon.status()["cameras"]["door"]["frames"] > 3)
        (tmp_path / "door.jsonl").rmdir()
        until(lambda: lines(tmp_path / "door.jsonl"))


def test_a_feed_gives_the_frame_it_holds_to_the_next_model():
    gate, image = threading.Event(), np.zeros((2, 2, 3), np.uint8)

    def slow():
        for index in range(3):
            gate.wait()
            yield Frame(image, index, time.monotonic(), f"{index}")

    feed, retired = Feed(slow(), "test"), threading.Event()
    first = feed.until(retired.is_set)
    waiting = threading.Timer(0.3, retired.set)
    waiting.start()
    assert next(first, None) is None  # retired while it waited for the first
    gate.set()
    assert [frame.index for frame in feed.until(lambda: False)] == [0, 1, 2]
    assert feed.over


def test_a_feed_raises_what_its_source_raised():
    def broken():
        raise SplitrtError("no such camera")
        yield

    with pytest.raises(SplitrtError, match="no such camera"):
        list(Feed(broken(), "test").until(lambda: False))


def test_a_slow_listener_misses_frames_and_is_told_how_many():
    audience = Audience()
    with audience.listen("door") as listener:
        for index in range(WAITING + 5):
            audience.tell(seen(index))
        assert listener.waiting.qsize() == WAITING and listener.missed == 5
        assert audience.size == 1
    assert audience.size == 0


def test_a_line_is_json_whatever_the_numbers_are(model_dir):
    odd = np.array([np.nan, np.inf, -np.inf, 1 / 3], np.float32)
    large = np.zeros((3, 1000), np.float32)
    outputs = {"odd": odd, "large": large, "none": np.zeros((0, 6), np.float32)}
    found = json.loads(outlet.line(seen(1, outputs)), parse_constant=pytest.fail)
    assert found["outputs"]["odd"] == [None, None, None, 0.333333]
    assert found["outputs"]["large"] == {"shape": [3, 1000], "dtype": "float32"}
    assert found["outputs"]["none"] == [] and found["answer"] is None
    manifest = Manifest.load(model_dir).model_copy(update={"labels": ["cat", "dog"]})
    two = replace(seen(1, {"logits": np.array([0.1, 0.9], np.float32)}), manifest=manifest)
    assert json.loads(outlet.line(two))["answer"] == "dog"


def test_a_daemon_leaves_no_thread_and_no_descriptor(tmp_path, model_dir, server):
    def held() -> tuple[set[str], int]:
        return {one.name for one in threading.enumerate()}, len(os.listdir("/proc/self/fd"))

    tables = told(tmp_path, model_dir, server.address)
    with running(tmp_path, tables) as daemon:  # what the first one loads stays: gRPC's own threads
        until(lambda: daemon.status()["cameras"]["door"]["frames"] > 3)
    until(lambda: not [name for name in held()[0] if name.startswith("retire")])
    before = held()
    for _ in range(3):
        with running(tmp_path, tables) as daemon:
            until(lambda: daemon.status()["cameras"]["door"]["frames"] > 3)
    until(lambda: held()[0] <= before[0] and held()[1] <= before[1] + 2)
    assert not (tmp_path / "s").exists()
