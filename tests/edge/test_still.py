"""A picture like the last answered one gets its answer again; never for long, never a failure's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from splitrt import Edge, Frame, Result, Similar, SplitrtError
from splitrt.core.manifest import Manifest
from splitrt.edge.still import Still
from splitrt.errors import ModelError
from splitrt.relay import Relay
from tests.conftest import pictures

STILL, OTHER = pictures(2, seed=6).images
ANSWER = Result({"logits": np.arange(3.0)}, "cloud", "q4")


def frames(images: list[np.ndarray], pause: float = 0.0) -> Iterator[Frame]:
    for index, image in enumerate(images):
        yield Frame(image, index, time.monotonic(), f"frame-{index}")
        time.sleep(pause)


def run(still: Still, images: list[np.ndarray], answers: list[Result] | None = None) -> str:
    """a: asked, s: like the last."""
    went = ""
    for frame in frames(images):
        like = still.like(frame)
        went += "a" if like is None else "s"
        if like is None:
            still.landed(frame, answers[frame.index] if answers else ANSWER)
    return went


def noisy(image: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, image.shape)
    return (image + noise).clip(0, 255).round().astype(np.uint8)


def test_a_still_picture_is_asked_once_in_an_interval():
    still = Still(Similar(threshold=3, interval=5))
    assert run(still, [STILL] * 12) == "assssassssas"
    assert run(Still(Similar(threshold=3, interval=1)), [STILL] * 3) == "aaa"


def test_what_changes_is_asked_and_noise_is_not():
    still = Still(Similar(threshold=12))
    images = [noisy(STILL, seed) for seed in range(5)]
    assert run(still, [*images, OTHER, OTHER, STILL, STILL]) == "assssasas"


def test_a_slow_drift_is_seen_for_it_is_compared_with_the_answered_picture():
    drift = [(np.full((64, 64, 3), 100 + step, np.uint8)) for step in range(12)]
    assert run(Still(Similar(threshold=6)), drift) == "asssasssasss"


def test_a_frame_without_an_answer_is_never_used_again():
    late = Result({"logits": np.zeros(3)}, "edge", "exit", reason="no answer within 100 ms")
    lost = Result({}, None, "q4", reason="no connection")
    for failed in (late, lost):
        answers = [failed, failed, ANSWER, ANSWER]
        assert run(Still(Similar(threshold=3)), [STILL] * 4, answers) == "aaas"
    answers = [ANSWER, ANSWER, lost, ANSWER, ANSWER]
    went = run(Still(Similar(threshold=3)), [STILL, STILL, OTHER, STILL, STILL], answers)
    assert went == "asaas"


def test_frames_on_their_way_do_not_count_as_answered():
    still = Still(Similar(threshold=3))
    first, second, third = frames([STILL, STILL, STILL])
    assert still.like(first) is None and still.like(second) is None
    still.landed(first, ANSWER)
    assert still.like(third) is not None


def test_the_result_says_what_it_is_like_and_belongs_to_whoever_got_it():
    still = Still(Similar(threshold=3))
    first, second, third = frames([STILL] * 3)
    still.like(first)
    still.landed(first, ANSWER)
    result = still.like(second)
    assert (result.where, result.plan, result.sent_bytes) == ("edge", "similar", 0)
    assert "frame-0" in result.reason and "s before: 0.00 <= 3.00" in result.reason
    result.outputs["logits"][:] = -1
    assert still.like(third).outputs["logits"].tolist() == [0, 1, 2]
    assert ANSWER.outputs["logits"].tolist() == [0, 1, 2]


def test_a_picture_that_is_none_is_asked():
    still = Still(Similar(threshold=1e6))
    assert run(still, [STILL, STILL, np.zeros((4, 4), np.uint8), STILL, STILL]) == "asaas"


@pytest.mark.parametrize("inflight", [1, 4])
def test_a_stream_gives_every_frame_in_order_and_sends_only_what_changed(
    model_dir, server, inflight
):
    images = [STILL] * 40 + [OTHER] * 40
    rule = Similar(threshold=2, interval=20)
    with Edge(model_dir, cloud=server.address, plan="q4", similar=rule) as edge:
        found = list(edge.stream(frames(images, pause=0.01), inflight=inflight))
        wanted = [edge(image).outputs["logits"] for image in (STILL, OTHER)]  # calls are asked
    assert [frame.index for frame, _ in found] == list(range(80))
    went = "".join("s" if result.plan == "similar" else "a" for _, result in found)
    assert went[0] == "a" and went[40] == "a"
    assert 4 <= went.count("a") <= 4 * inflight + 4
    assert "s" * 20 not in went
    for frame, result in found:
        other = wanted[frame.index >= 40]
        np.testing.assert_allclose(result.outputs["logits"], other, atol=1e-4)
        assert (result.sent_bytes == 0) == (result.plan == "similar")
        timings = result.timings
        assert 0 < timings.capture + timings.gate <= timings.total


def test_an_outage_is_not_covered_up(model_dir, server):
    with Relay(server.address) as relay:
        rule = Similar(threshold=2, interval=5)
        with Edge(model_dir, cloud=relay.address, plan="q4", deadline=0.3, similar=rule) as edge:
            found = []
            for frame, result in edge.stream(frames([STILL] * 30, 0.02), inflight=1):
                found.append(result)
                if frame.index == 10:
                    relay.hole = True
    plans = [result.plan for result in found]
    assert plans[:7] == ["q4", *["similar"] * 4, "q4", "similar"]
    assert set(plans[16:]) == {"exit"}
    assert all(result.where == "edge" and result.reason for result in found[16:])


def test_the_manifest_may_hold_the_threshold(model_dir, tmp_path):
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    with pytest.raises(SplitrtError, match="no threshold of its own"):
        Edge(copy, similar=True)
    text = (copy / "model.toml").read_text()
    table = "\n[similar]\nthreshold = 2.5\ninterval = 10\nagreement = 0.99\n"
    (copy / "model.toml").write_text(text + table)
    with Edge(copy, similar=True) as edge:
        assert edge.similar == Similar(threshold=2.5, interval=10, agreement=0.99)
    with Edge(copy) as edge:
        assert edge.similar is None
    (copy / "model.toml").write_text(text + table.replace("2.5", "nan"))
    with pytest.raises(ModelError, match=r"similar\.threshold"):
        Manifest.load(copy)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_a_threshold_that_is_none_is_said(model_dir, wrong):
    with pytest.raises(SplitrtError, match="grey levels"):
        Edge(model_dir, similar=wrong)


def test_the_command_line_re_uses_answers(model_dir, tmp_path):
    for number in range(6):
        Image.fromarray(STILL).save(tmp_path / f"{number}.png")
    command = [sys.executable, "-m", "splitrt.cli", "edge", str(model_dir), "--json"]
    command += ["--source", str(tmp_path), "--inflight", "1", "--similar"]
    done = subprocess.run([*command, "2"], capture_output=True, text=True, check=True)
    went = [json.loads(line)["went"] for line in done.stdout.splitlines()]
    assert went == ["exit", *["similar"] * 5]
    for wrong in ("much", "-1", "model"):
        done = subprocess.run([*command, wrong], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "help:" in done.stderr
        assert "Traceback" not in done.stderr
