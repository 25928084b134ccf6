"""An unmodified tritonclient asks the server; where it is not installed, this is not tried."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cloud.guest import jpeg
from tests.cloud.test_stock import own
from tests.conftest import ROOT, pictures

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tritonclient") is None, reason="tritonclient[grpc] is not installed"
)

CLIENT = """
import json, queue, sys
import numpy as np
from PIL import Image
import tritonclient.grpc as triton

address, model, files = sys.argv[1], sys.argv[2], sys.argv[3:]
client = triton.InferenceServerClient(address)

def asking(contents):
    image = triton.InferInput("image", [len(contents), 1], "BYTES")
    image.set_data_from_numpy(np.array(contents, dtype=np.object_).reshape(-1, 1))
    return [image]

def pixels(images):
    image = triton.InferInput("image", list(images.shape), "UINT8")
    image.set_data_from_numpy(images)
    return [image]

contents = [open(name, "rb").read() for name in files]
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
outputs = [triton.InferRequestedOutput("logits")]
options = dict(outputs=outputs, timeout=30_000_000)
seen = np.stack([np.asarray(Image.open(name)) for name in files])
shot = client.infer(model, pixels(seen), **options)
single = [client.infer(model, asking([one]), **options) for one in contents]
several = client.infer(model, asking(contents), request_id="all", compression_algorithm="gzip")
answers = queue.Queue()
client.async_infer(model, asking(contents[:1]), lambda result, error: answers.put((result, error)))
later, error = answers.get(timeout=30)
assert error is None, error
client.start_stream(lambda result, error: answers.put((result, error)))
client.async_stream_infer(model, asking(contents[:1]), request_id="streamed")
streamed, error = answers.get(timeout=30)
assert error is None, error
client.stop_stream()
try:
    client.infer(model, asking([b"no picture"]))
except triton.InferenceServerException as refused:
    status, words = str(refused.status()), refused.message()
shown = dict(as_json=True)
print(json.dumps({
    "single": [one.as_numpy("logits").tobytes().hex() for one in single],
    "shot": shot.as_numpy("logits").tolist(),
    "index": client.get_model_repository_index(**shown),
    "several": several.as_numpy("logits").tolist(),
    "ids": [several.get_response().id, streamed.get_response().id],
    "again": [one.as_numpy("logits").tobytes().hex() for one in (later, streamed)],
    "status": status,
    "words": words,
    "server": client.get_server_metadata(**shown),
    "model": client.get_model_metadata(model, **shown),
    "config": client.get_model_config(model, **shown),
    "statistics": client.get_inference_statistics(model, **shown),
}))
"""

NUMBERS = """
import json
from tritonclient.grpc import model_config_pb2, service_pb2

def told(message):
    found = {field.name: [field.number, field.type] for field in message.fields}
    return {message.full_name: found}

def within(messages):
    for message in messages:
        yield message
        yield from within(message.nested_types)

found = {}
for file in (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR):
    for message in within(file.message_types_by_name.values()):
        found.update(told(message))
found["types"] = dict(model_config_pb2.DataType.items())
print(json.dumps(found))
"""


def run(code: str, *arguments: str) -> str:
    """What a Python process of its own prints: client and tests would share names otherwise."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path, image in zip(paths, pictures(count, seed=3).images, strict=True):
        path.write_bytes(jpeg(image))
    return paths


def test_a_stock_client_gets_what_a_device_gets(server, tmp_path):
    files = written(tmp_path, 4)
    found = json.loads(run(CLIENT, server.address, "small", *map(str, files)))
    expected = [own(server, path.read_bytes(), "jpeg")[0] for path in files]
    assert found["single"] == [raw.hex() for raw in expected]
    assert found["again"] == [expected[0].hex()] * 2
    rows = np.stack([np.frombuffer(raw, "<f4") for raw in expected])
    np.testing.assert_allclose(found["several"], rows, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["shot"], rows, rtol=1e-4, atol=1e-5)
    ready = {"name": "small", "version": "1", "state": "READY"}
    assert found["index"] == {"models": [ready]}
    assert found["ids"] == ["all", "streamed"]
    assert found["status"] == "StatusCode.INVALID_ARGUMENT" and found["words"]


def test_a_stock_client_reads_what_the_model_is(server, tmp_path):
    files = written(tmp_path, 1)
    found = json.loads(run(CLIENT, server.address, "small", *map(str, files)))
    assert found["server"]["name"] == "splitrt"
    (image,), (logits,) = found["model"]["inputs"], found["model"]["outputs"]
    assert (image["name"], image["datatype"], image["shape"]) == ("image", "BYTES", ["-1", "1"])
    assert (logits["datatype"], logits["shape"]) == ("FP32", ["-1", "10"])
    config = found["config"]["config"]
    assert config["max_batch_size"] == 8 and config["output"][0]["dims"] == ["10"]
    (stats,) = found["statistics"]["model_stats"]
    assert int(stats["inference_count"]) >= 4


def test_the_names_and_numbers_are_those_that_are_published():
    from splitrt.cloud import oip

    published = json.loads(run(NUMBERS))
    types = oip.pool().FindEnumTypeByName("inference.DataType").values
    assert {one.name: one.number for one in types} == published["types"]
    todo = [
        message
        for file in oip.files()
        for message in oip.pool().FindFileByName(file.name).message_types_by_name.values()
    ]
    while todo:
        message = todo.pop()
        todo += message.nested_types
        for field in message.fields:
            theirs = published[message.full_name][field.name]
            assert theirs == [field.number, field.type], field.full_name


@pytest.mark.parametrize(
    "order", ["splitrt.cloud.oip tritonclient.grpc", "tritonclient.grpc splitrt"]
)
def test_both_go_into_one_process(order):
    first, second = order.split()
    code = (
        f"import importlib\nfor name in ({first!r}, {second!r}, 'splitrt.cloud'):\n"
        "    importlib.import_module(name)\n"
        "from splitrt.cloud import oip\n"
        "from tritonclient.grpc import service_pb2\n"
        "ours = oip.message('ModelInferRequest')(model_name='small', id='7')\n"
        "print(service_pb2.ModelInferRequest.FromString(ours.SerializeToString()).model_name)"
    )
    assert run(code).strip() == "small"
