"""The end-to-end replay: latencies that can be worked out by hand, and real answers counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.endtoend.policies import Pinned, Policy, Steered
from benchmarks.endtoend.record import WHOLE, Records
from benchmarks.endtoend.replay import PATIENCE, WIRE, replay
from benchmarks.endtoend.rows import alone, lines, played
from benchmarks.endtoend.table import Table, camera
from benchmarks.link.scene import Scene, scene
from splitrt.core.links import Trace

RTT, SERVER = 0.05, 0.01


def constant(table: Table, mbps: float) -> Scene:
    """A link that never varies, for 60 s."""
    one = scene(Trace("constant", np.full(240, mbps), RTT), table, deadline=0.25)
    return replace(one, rtts=np.full(one.frames, RTT), servers=np.full(one.frames, SERVER))


@pytest.fixture
def table() -> Table:
    return camera("pi-4")


def test_a_split_takes_head_and_bytes_and_round_trip_and_server(table):
    one = constant(table, 5.0)
    found = replay(one, table, Pinned(table, table.default, hedged=True))
    by_hand = table.default.head + 8 * (table.default.bytes + WIRE) / 5e6 + RTT + SERVER
    assert found.p50_ms == pytest.approx(1000 * by_hand, rel=1e-6)
    assert found.p95_ms == pytest.approx(found.p50_ms, rel=1e-6) and found.cloud == 1.0
    assert found.bytes == pytest.approx(table.default.bytes + WIRE)


def test_a_picture_that_goes_as_it_is_costs_the_device_no_head(table):
    one, jpeg = constant(table, 100.0), table.jpegs[0]
    bare = replay(one, table, Pinned(table, jpeg, hedged=False))
    hedged = replay(one, table, Pinned(table, jpeg, hedged=True))
    head = table.exits["exit"][0]
    assert hedged.p50_ms - bare.p50_ms == pytest.approx(1000 * head, rel=1e-6)
    assert hedged.mj - bare.mj == pytest.approx(1000 * table.watts * head, rel=1e-6)


def test_without_a_link_only_the_stand_in_answers_and_by_the_deadline(table):
    one = constant(table, 0.0)
    bare = replay(one, table, Pinned(table, table.default, hedged=False))
    hedged = replay(one, table, Pinned(table, table.default, hedged=True))
    assert bare.hit == 0.0 and bare.p50_ms == 1000 * PATIENCE
    assert hedged.hit == 1.0 and hedged.cloud == 0.0 and hedged.p95_ms <= 250.0


def test_a_model_that_is_slower_than_the_camera_skips_frames(table):
    slow = replace(table, whole=0.19)
    found = replay(constant(slow, 1.0), slow, Policy(slow, plan=WHOLE))
    assert found.hit == pytest.approx(0.5, abs=0.01) and found.cloud == 0.0


def test_a_device_that_is_too_slow_for_the_deadline_hits_none(table):
    slow = replace(table, whole=0.3)
    found = replay(constant(slow, 1.0), slow, Policy(slow, plan=WHOLE))
    assert found.hit == 0.0 and found.mj > 0


@pytest.mark.parametrize("mbps", [0.0, 0.3, 5.0, 100.0])
def test_the_controller_always_has_an_answer_by_the_deadline(table, mbps):
    assert replay(constant(table, mbps), table, Steered(table)).hit == 1.0


def test_the_controller_sends_where_the_link_carries_it(table):
    assert replay(constant(table, 20.0), table, Steered(table)).cloud > 0.9


def recorded(table: Table, one: Scene) -> Table:
    """With answers: the server is always right, the exit never; of the first half it is sure."""
    plans, frames = [option.name for option in (*table.options, *table.jpegs)], one.frames
    answers = {**{name: np.ones(frames) for name in plans}, "exit": np.zeros(frames)}
    sizes = {option.name: np.full(frames, option.bytes) for option in table.options}
    sure = np.arange(frames) < frames // 2
    made = Records(
        np.ones(frames), answers, sizes, {"exit": np.where(sure, 0.9, 0.3)}, {"exit": sure}
    )
    return replace(table, records=made)


def test_accuracy_is_of_the_recorded_answers(table):
    one = constant(table, 20.0)
    known = recorded(table, one)
    assert replay(one, known, Policy(known, plan="exit")).accuracy == 0.0
    assert replay(one, known, Pinned(known, known.default, hedged=False)).accuracy == 1.0


def test_a_sure_exit_keeps_the_controller_from_sending(table):
    one = constant(table, 20.0)
    known = recorded(table, one)
    found = replay(one, known, Steered(known))
    assert found.cloud == pytest.approx(0.5, abs=0.05)
    assert found.accuracy == pytest.approx(found.cloud)


def test_records_survive_their_file(table, tmp_path):
    made = recorded(table, constant(table, 1.0)).records
    made.save(tmp_path / "records.npz")
    found = Records.load(tmp_path / "records.npz")
    assert (found.answers["exit"] == made.answers["exit"]).all()
    assert (found.sure["exit"] == made.sure["exit"]).all() and found.right("exit") == 0.0


def test_every_policy_has_a_row_and_a_line(table):
    rows = played(table, "pi-4", "5mbps", seconds=20, seed=1)
    named = {row.policy for row in rows}
    assert named == {"exit", "whole", "split", "split + exit", "jpeg", "jpeg + exit", "splitrt"}
    assert len(list(lines(rows))) == 1 + len(rows)


def test_frames_that_go_alone_take_no_longer_than_those_that_queue(table):
    single = alone(table, "1mbps", seconds=30, seed=1)
    rows = played(table, "pi-4", "1mbps", seconds=30, seed=1)
    split = next(row for row in rows if row.policy == "split")
    assert single["split"] <= split.outcome.p50_ms + 5
