"""The model directory: the ONNX head is the torch head, the files are what devices can load."""

from __future__ import annotations

import sys
import zipfile

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from splitrt.cloud.tail import Tail
from splitrt.core.manifest import Manifest, prove
from splitrt.edge.head import Head, LocalTail
from splitrt.errors import ModelError
from splitrt.train import Frames, cut, export
from splitrt.train.export import Device
from splitrt.train.rungs import levels
from splitrt.train.scales import spanned
from tests.conftest import ROOT, SHARED, pictures


def test_codes_of_the_onnx_head_are_torchs(split, model_dir):
    images = pictures(200, seed=4).images
    manifest = Manifest.load(model_dir)
    head = Head(model_dir, manifest, manifest.widths[-1], threads=1)
    with torch.no_grad():
        z = split.project(split.trunk(split.pixels(torch.from_numpy(images))))
    for name, bits in (("q4", 4), ("q8", 8)):
        here = np.stack([head(image, [name])[name] for image in images]).astype(int)
        scales = Tail(model_dir, manifest).scales[name]
        values = ((z - scales.low) / scales.step).round().clamp(0, 2**bits - 1).numpy()
        gap = np.abs(here - values)
        assert gap.max() <= 1
        assert (gap == 0).mean() >= 0.9999


def test_the_head_loads_on_old_runtimes(model_dir):
    model = onnx.load(model_dir / "head.onnx")
    assert model.ir_version <= 8
    assert model.opset_import[0].version <= 17
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_reductions_go_back_only_if_the_whole_graph_does():
    from splitrt.train.onnx import lower_opset

    def graph(*nodes):
        axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
        value = onnx.helper.make_tensor_value_info("x", 1, [2, 3])
        out = onnx.helper.make_tensor_value_info("y", 1, [2])
        made = onnx.helper.make_graph(list(nodes), "g", [value], [out], [axes])
        return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)])

    mean = onnx.helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    old = graph(mean)
    assert lower_opset(old) == 13
    onnx.checker.check_model(old)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    old.ir_version = 8
    seen = ort.InferenceSession(old.SerializeToString()).run(None, {"x": x})[0]
    assert seen.tolist() == [1.0, 4.0]
    mish = onnx.helper.make_node("Mish", ["x"], ["m"])  # came with opset 18
    mean = onnx.helper.make_node("ReduceMean", ["m", "axes"], ["y"], keepdims=0)
    new = graph(mish, mean)
    assert lower_opset(new) == 18
    onnx.checker.check_model(new)


def test_no_file_names_the_machine_that_made_it(model_dir):
    for file in model_dir.iterdir():
        raw = file.read_bytes()
        if file.suffix == ".pt2":
            with zipfile.ZipFile(file) as archive:
                raw = b"".join(archive.read(name) for name in archive.namelist())
        for word in (str(ROOT).encode(), b"site-packages", b".py"):
            assert word not in raw, (file.name, word)


def test_the_head_takes_any_batch(model_dir):
    session = ort.InferenceSession(str(model_dir / "head.onnx"))
    for batch in (1, 3, 7):
        images = pictures(batch).images
        codes, logits = session.run(["q4", "exit"], {"image": images})
        assert codes.shape == (batch, 4, 8, 8) and codes.dtype == np.uint8
        assert logits.shape == (batch, 10)


def test_both_tails_answer_the_same(model_dir):
    manifest = Manifest.load(model_dir)
    features = np.random.default_rng(0).normal(size=manifest.cut.shape).astype(np.float32)
    here = LocalTail(model_dir, manifest)(features)["logits"]
    there = Tail(model_dir, manifest).run(torch.from_numpy(features[None]))[0][0]
    np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5)


def test_scales_of_an_untrained_cut_span_their_channel():
    z = torch.rand(50, 8, 16, 16) * torch.arange(1, 9).view(1, 8, 1, 1)
    scale = spanned(z, 8)
    assert (
        (scale.values(scale.codes(z)) - z)
        .abs()
        .max(0)
        .values.amax((1, 2))
        .le(torch.arange(1, 9) * 0.01)
        .all()
    )


def test_without_frames_floats_and_whole_pictures_are_sent(whole, tmp_path):
    manifest = export(cut(whole, after="stem", shape=(1, 3, 32, 32)), tmp_path / "m")
    assert set(manifest.codecs) == {"f32", "f16", "jpeg"}
    assert manifest.default_plan == "f16"
    prove(tmp_path / "m")


def test_a_model_of_tensors_takes_them_as_they_are(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    manifest = export(cut(model.eval(), after="1", shape=(1, 6)), tmp_path / "m")
    assert (manifest.input.kind, manifest.input.shape) == ("tensor", [6])
    x = np.ones(6, np.float32)
    seen = Head(tmp_path / "m", manifest, manifest.widths[0])(x, ["features"])["features"]
    logits = LocalTail(tmp_path / "m", manifest)(seen)["logits"]
    np.testing.assert_allclose(logits, model(torch.ones(1, 6))[0].detach(), rtol=1e-5)


def test_the_record_is_of_held_out_frames(model_dir):
    manifest = Manifest.load(model_dir)
    plans = {plan.name: plan for plan in manifest.plans}
    assert plans["f32"].bytes_mean == 4 * manifest.widths[-1].elements
    assert plans["q4"].bytes_mean <= manifest.widths[-1].elements / 2 + 1
    assert plans["q4"].accuracy is not None
    exit = manifest.exit
    assert exit.ece is not None
    assert [step.share for step in exit.steps] == sorted(step.share for step in exit.steps)
    assert exit.threshold in [None, *(step.threshold for step in exit.steps)]


def test_without_labels_the_record_is_agreement_with_the_whole_model(whole, tmp_path):
    split = cut(whole, after="stem", shape=(1, 3, 32, 32))
    bare = Frames(pictures(30).images)
    manifest = export(split, tmp_path / "m", frames=pictures(60), held_out=bare, pareto=False)
    assert manifest.plan("f32").accuracy == 1.0 == manifest.plan("local").accuracy
    assert manifest.plan("q8").accuracy >= manifest.plan("jpeg").accuracy


def test_an_existing_folder_of_something_else_is_not_touched(split, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ModelError, match="no model directory"):
        export(split, tmp_path)
    assert (tmp_path / "mine.txt").exists()


def test_a_failing_export_leaves_the_old_directory(split, tmp_path, monkeypatch):
    export(split, tmp_path / "m")
    before = Manifest.load(tmp_path / "m").digest
    module = sys.modules["splitrt.train.export"]  # the package has a function of that name
    monkeypatch.setattr(module, "_manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(split, tmp_path / "m")
    assert prove(tmp_path / "m").digest == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_shipped_models_codes_on_real_pictures():
    """Codes within one step on ≥ 99.99 % against torch's own run of the exported head."""
    if not SHARED.exists():
        pytest.skip("../shared/data is absent")
    from splitrt.demo import shipped
    from splitrt.train import read

    folder = shipped()
    frames = read(SHARED / "cifar10" / "clean_test_1017.npz", height=32, width=32, limit=300)
    manifest = Manifest.load(folder)
    tail = Tail(folder, manifest)
    for plan in manifest.plans:
        if plan.name not in tail.scales:
            continue
        head = Head(folder, manifest, manifest.width(plan), threads=1)
        seen = [head(image, ["features", plan.codec]) for image in frames.images]
        scale = tail.scales[plan.name]
        z = torch.from_numpy(np.stack([one["features"] for one in seen]))
        highest = levels(plan.codec) - 1
        values = ((z - scale.low) / scale.step).round().clamp(0, highest).numpy()
        gap = np.abs(np.stack([one[plan.codec] for one in seen]).astype(int) - values)
        assert gap.max() <= 1
        assert (gap <= 0).mean() >= 0.9999


def test_device_names_its_outputs(split):
    assert Device(split, {}, 0).names == ("features", "exit")
