"""A real detector with its real weights: cut, and run at sizes that it was not trained at."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.detection import make
from benchmarks.detection.fastestdet import FastestDet
from splitrt import Edge, Manifest
from splitrt.cloud import Server
from splitrt.train import read
from tests.conftest import ROOT, SHARED

WEIGHTS = SHARED / "detectors" / "FastestDet.safetensors"
SIZES = [(352, 352), (224, 320), (160, 352)]


@pytest.fixture(scope="module")
def whole() -> FastestDet:
    if not WEIGHTS.exists():
        pytest.skip("../shared/data is absent")
    model = FastestDet()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def test_the_module_is_the_published_network(whole):
    session = ort.InferenceSession(str(WEIGHTS.with_suffix(".onnx")))
    x = torch.rand(1, 3, 352, 352)
    (wanted,) = session.run(None, {"input.1": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(whole(x).numpy(), wanted, atol=1e-4)


def test_it_is_cut_and_answers_as_the_whole_at_every_size(fastest_dir):
    manifest, whole = Manifest.load(fastest_dir), make.whole(SHARED)
    frames = read(ROOT / "splitrt" / "pictures", height=352, width=352)
    assert manifest.sizes.crossing == [48, "4h", "4w"]
    assert manifest.sizes.outputs == [[85, "2h", "2w"]]
    worst = {"f32": 1e-4, "q8": 0.05}
    with Server(fastest_dir, port=0, threads=1) as server:
        for plan, far in worst.items():
            with Edge(fastest_dir, cloud=server.address, plan=plan, threads=1) as edge:
                for (height, width), image in zip(SIZES, frames.images, strict=False):
                    image = np.array(Image.fromarray(image).resize((width, height)))
                    with torch.no_grad():
                        wanted = whole(make.UNIT(torch.from_numpy(image)[None]))[0].numpy()
                    found = edge(image).outputs["output"]
                    assert np.linalg.norm(found - wanted) <= far * np.linalg.norm(wanted)
