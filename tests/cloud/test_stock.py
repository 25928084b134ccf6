"""Stock clients of the Open Inference Protocol: what they see, and that it is what devices get."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from PIL import Image

from splitrt.cloud import Guard, Quota, Server, oip, stock
from splitrt.core import packet
from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire
from splitrt.wire.tail_pb2_grpc import TailStub
from tests.cloud import guest
from tests.cloud.guest import arrays, asking, call, code, jpeg
from tests.conftest import pictures
from tests.edge.test_loopback import soon

TOKEN = "c0ffee" * 8
METHODS = [method.name for method in oip.methods() if not method.client_streaming]


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return [jpeg(image) for image in pictures(5, seed=3).images]


@pytest.fixture(scope="module")
def featured(model_dir, tmp_path_factory) -> Iterator[Server]:
    """Takes features, no pictures."""
    folder = guest.without_jpeg(model_dir, tmp_path_factory.mktemp("featured") / "small")
    with Server(folder, port=0, threads=1) as running:
        yield running


@pytest.fixture
def channel(server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def own(server: Server, payload: bytes, plan: str, **beside: object) -> list[bytes]:
    """What a device gets for that payload."""
    manifest = server.manifest
    place = [one.name for one in manifest.plans].index(plan)
    frame = wire.Frame(seq=1, plan=place, payload=payload, **beside)
    with grpc.insecure_channel(server.address) as opened:
        request = wire.Request(hello=packet.hello(manifest), frame=frame)
        answer = TailStub(opened).Infer(request, timeout=30)
    assert answer.status == wire.OK, answer.detail
    return [output.data for output in answer.outputs]


def features(server: Server, rows: int) -> np.ndarray:
    random = np.random.default_rng(rows)
    return random.standard_normal((rows, *server.manifest.cut.shape), np.float32)


def test_pictures_are_answered_as_a_devices_are(server, channel, files):
    for file in files:
        found = call(channel, "ModelInfer", asking("small", {"image": [file]}))
        assert list(found.raw_output_contents) == own(server, file, "jpeg")
    whole = arrays(call(channel, "ModelInfer", asking("small", {"image": files}, id="five")))
    alone = [arrays(call(channel, "ModelInfer", asking("small", {"image": [f]}))) for f in files]
    assert whole["logits"].shape == (5, 10)
    expected = np.concatenate([one["logits"] for one in alone])
    np.testing.assert_allclose(whole["logits"], expected, rtol=1e-4, atol=1e-5)


def test_features_are_answered_as_a_devices_are_raw_and_typed(featured):
    values = features(featured, 1)
    raw = asking("small", {"features": values}, id="seven")
    typed = asking("small", {"features": values}, id="seven")
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.fp32_contents.extend(values.flatten().tolist())
    with grpc.insecure_channel(featured.address) as channel:
        found = [call(channel, "ModelInfer", request) for request in (raw, typed)]
    assert found[0] == found[1] and found[0].id == "seven"
    assert list(found[0].raw_output_contents) == own(featured, values.tobytes(), "f32")


def test_the_rows_of_a_request_are_what_its_configuration_says(featured):
    named = oip.message("ModelConfigRequest")(name="small")
    with grpc.insecure_channel(featured.address) as channel:
        most = call(channel, "ModelConfig", named).config.max_batch_size
        values = features(featured, most)
        found = arrays(call(channel, "ModelInfer", asking("small", {"features": values})))
        assert most == 8 and len(found["logits"]) == most
        alone = [asking("small", {"features": one[None]}) for one in values]
        each = [arrays(call(channel, "ModelInfer", one))["logits"] for one in alone]
        np.testing.assert_allclose(found["logits"], np.concatenate(each), rtol=1e-4, atol=1e-5)
        again = asking("small", {"features": np.concatenate([values, values])})
        assert code(channel, "ModelInfer", again)[0] in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")


def test_one_bad_row_is_one_clear_error_for_all(featured):
    values = features(featured, 5)
    values[3, 0, 0, 0] = np.nan
    before = dict(featured.tally)
    with grpc.insecure_channel(featured.address) as channel:
        name, words = code(channel, "ModelInfer", asking("small", {"features": values}))
    assert name == "INVALID_ARGUMENT" and words == "payload holds NaN or infinity"
    assert featured.tally["OK"] == before.get("OK", 0) + 4
    assert featured.tally["INVALID"] == before.get("INVALID", 0) + 1


def test_pixels_may_come_in_a_files_place(server, channel, files):
    """The same pixels as a JPEG's decoder makes: the same answers, bit for bit."""
    images = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    for file, image in zip(files, images, strict=True):
        found = call(channel, "ModelInfer", asking("small", {"image": image[None]}))
        assert list(found.raw_output_contents) == own(server, file, "jpeg")
    typed = asking("small", {"image": images[:1]})
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.uint_contents.extend(images[0].flatten().tolist())
    found = call(channel, "ModelInfer", typed)
    assert list(found.raw_output_contents) == own(server, files[0], "jpeg")
    several = arrays(call(channel, "ModelInfer", asking("small", {"image": images})))
    by_file = arrays(call(channel, "ModelInfer", asking("small", {"image": files})))
    np.testing.assert_allclose(several["logits"], by_file["logits"], rtol=1e-4, atol=1e-5)


def test_the_index_names_the_models_that_are_ready(channel):
    (found,) = call(channel, "RepositoryIndex").models
    assert (found.name, found.version, found.state) == ("small", "1", "READY")


def test_pictures_of_several_sizes_bring_their_size_and_side_data(detector_dir, tmp_path):
    image = pictures(1, size=96, seed=5).images.repeat(2, axis=2)[0, :, :160]
    size, side = np.array([[96, 160]]), np.array([[480, 640]])
    fields = {"size": (96, 160), "side": [side.tobytes()]}
    both = {"picture.size": size, "size": side}
    name = Manifest.load(detector_dir).name
    with Server(detector_dir, port=0, threads=1) as server:
        with grpc.insecure_channel(server.address) as channel:
            file = jpeg(image)
            found = call(channel, "ModelInfer", asking(name, {"image": [file], **both}))
            assert list(found.raw_output_contents) == own(server, file, "jpeg", **fields)
            pixels = np.asarray(Image.open(io.BytesIO(file)))[None]
            raw = call(channel, "ModelInfer", asking(name, {"image": pixels, **both}))
            assert raw.raw_output_contents == found.raw_output_contents
            turned = asking(name, {"image": pixels.transpose(0, 2, 1, 3).copy(), **both})
            assert code(channel, "ModelInfer", turned)[0] == "INVALID_ARGUMENT"
            mixed = {"picture.size": np.array([[96, 160], [64, 64]]), "size": side.repeat(2, 0)}
            request = asking(name, {"image": [file, file], **mixed})
            assert "several sizes" in code(channel, "ModelInfer", request)[1]
            named = oip.message("ModelMetadataRequest")(name=name)
            shown = call(channel, "ModelMetadata", named)
    assert [list(one.shape) for one in shown.inputs] == [[-1, 1], [-1, 2], [-1, 2]]
    assert [list(one.shape) for one in shown.outputs] == [[-1, -1, 4], [-1, -1, 5]]
    with Server(guest.without_jpeg(detector_dir, tmp_path / "plain"), port=0, threads=1) as server:
        values = np.random.default_rng(0).standard_normal((1, 16, 12, 20), np.float32)
        with grpc.insecure_channel(server.address) as channel:
            request = asking(name, {"features": values, **both})
            found = call(channel, "ModelInfer", request)
            turned = values.reshape(1, 16, 20, 12)  # as many numbers, in the wrong layout
            request = asking(name, {"features": turned, **both})
            assert code(channel, "ModelInfer", request)[0] == "INVALID_ARGUMENT"
        expected = own(server, values.tobytes(), "f32", **fields)
    assert list(found.raw_output_contents) == expected


def test_every_tail_is_a_model_of_its_own_name(model_dir, tmp_path, files):
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    text = (other / "model.toml").read_text()
    (other / "model.toml").write_text(text.replace('name = "small"', 'name = "other"', 1))
    with Server(model_dir, tails=[other], port=0, threads=1) as server:
        with grpc.insecure_channel(server.address) as channel:
            for name in ("small", "other"):
                found = call(channel, "ModelInfer", asking(name, {"image": files[:1]}))
                assert found.model_name == name and len(found.outputs) == 1
            stats = call(channel, "ModelStatistics").model_stats
    assert {one.name: one.inference_count for one in stats} == {"small": 1, "other": 1}


def test_only_the_outputs_that_are_asked_for_come(server, channel, files):
    request = asking("small", {"image": files[:1]}, outputs=[{"name": "logits"}])
    assert list(arrays(call(channel, "ModelInfer", request))) == ["logits"]
    for wrong in ([{"name": "nothing"}], [{"name": "logits"}] * 2):
        request = asking("small", {"image": files[:1]}, outputs=wrong)
        assert code(channel, "ModelInfer", request)[0] == "INVALID_ARGUMENT"


def test_a_timeout_is_a_deadline(server, channel, files):
    before = server.tally.get("EXPIRED", 0)
    request = asking("small", {"image": files[:1]})
    request.parameters["timeout"].int64_param = 1  # microsecond
    assert code(channel, "ModelInfer", request)[0] == "DEADLINE_EXCEEDED"
    assert server.tally["EXPIRED"] == before + 1
    request.parameters["timeout"].int64_param = 30_000_000
    assert code(channel, "ModelInfer", request) == ("OK", "")


def test_rows_count_towards_the_quota(model_dir, files):
    with Server(model_dir, port=0, threads=1, quota=Quota(frames_per_second=0.01)) as server:
        with grpc.insecure_channel(server.address) as channel:
            assert code(channel, "ModelInfer", asking("small", {"image": files}))[0] == "OK"
            name, words = code(channel, "ModelInfer", asking("small", {"image": files[:1]}))
        assert name == "RESOURCE_EXHAUSTED" and "quota" in words
        # Five rows at 0.01 a second leave a debt that one row would not.
        assert int(words.split()[-2]) > 300_000
        assert dict(server.tally) == {"OK": 5, "RESOURCE_EXHAUSTED": 1}


def test_who_brings_no_token_learns_nothing(model_dir, tmp_path, files):
    (tmp_path / "tokens").write_text(f"client:{TOKEN}\n")
    guard = Guard(tokens=tmp_path / "tokens", insecure_tokens=True)
    infer = asking("small", {"image": files[:1]})
    with Server(model_dir, port=0, threads=1, guard=guard) as server:
        with grpc.insecure_channel(server.address) as channel:
            for method in METHODS:
                assert code(channel, method)[0] == "UNAUTHENTICATED"
            assert code(channel, "ModelInfer", infer)[0] == "UNAUTHENTICATED"
            call(channel, "ModelInfer", infer, metadata=[("authorization", f"Bearer {TOKEN}")])


def test_a_server_that_closes_is_live_but_not_ready(model_dir, files):
    with Server(model_dir, port=0, threads=1, grace=20.0) as server:
        go, branch = threading.Event(), next(iter(server.tail.branches.values()))
        branch.run = lambda *inputs: go.wait(20) and type(branch).run(branch, *inputs)
        infer = asking("small", {"image": files[:1]})
        named = oip.message("ModelReadyRequest")(name="small")
        with grpc.insecure_channel(server.address) as channel:
            assert call(channel, "ServerReady").ready
            assert call(channel, "ModelReady", named).ready
            pending = channel.unary_unary(f"/{oip.SERVICE}/ModelInfer").future(
                infer.SerializeToString(), timeout=30
            )
            assert soon(lambda: server.inflight == 1)
            closing = threading.Thread(target=server.close)
            closing.start()
            assert soon(lambda: not call(channel, "ServerReady").ready)
            assert call(channel, "ServerLive").live
            assert not call(channel, "ModelReady", named).ready
            assert code(channel, "ModelInfer", infer)[0] == "UNAVAILABLE"
            go.set()
            assert pending.result()  # what was in flight is answered
            closing.join()


def test_statistics_count_devices_and_stock_clients_together(model_dir, files):
    with Server(model_dir, port=0, threads=1) as server:
        own(server, files[0], "jpeg")
        with grpc.insecure_channel(server.address) as channel:
            call(channel, "ModelInfer", asking("small", {"image": files}))
            code(channel, "ModelInfer", asking("small", {"image": [b"no picture"]}))
            named = oip.message("ModelStatisticsRequest")(name="small", version="1")
            (stats,) = call(channel, "ModelStatistics", named).model_stats
    times = stats.inference_stats
    assert (stats.inference_count, times.success.count, times.fail.count) == (6, 6, 1)
    assert sum(one.compute_infer.count for one in stats.batch_stats) == stats.execution_count
    assert sum(one.batch_size * one.compute_infer.count for one in stats.batch_stats) == 6
    parts = (times.queue, times.compute_input, times.compute_infer, times.compute_output)
    assert sum(part.ns for part in parts) == pytest.approx(times.success.ns, rel=0.01)


def test_a_stream_answers_in_order_and_goes_on_after_a_bad_request(server, channel, files):
    requests = [asking("small", {"image": [f]}, id=str(n)) for n, f in enumerate(files)]
    requests[2] = asking("small", {"image": [b"no picture"]}, id="2")
    requests[3] = asking("other", {"image": files[:1]}, id="3")
    streamed = channel.stream_stream(f"/{oip.SERVICE}/ModelStreamInfer")
    kind = oip.message("ModelStreamInferResponse")
    raws = iter([request.SerializeToString() for request in requests])
    found = [kind.FromString(raw) for raw in streamed(raws, timeout=30)]
    assert [one.infer_response.id for one in found] == ["0", "1", "2", "3", "4"]
    assert [bool(one.error_message) for one in found] == [False, False, True, True, False]
    for place in (0, 1, 4):
        answer = list(found[place].infer_response.raw_output_contents)
        assert answer == own(server, files[place], "jpeg")


def test_a_stream_that_says_nothing_is_ended(server, channel, files, monkeypatch):
    monkeypatch.setattr(stock, "IDLE", 0.5)
    over = threading.Event()

    def said() -> Iterator[bytes]:
        yield asking("small", {"image": files[:1]}).SerializeToString()
        over.wait(30)

    streamed = channel.stream_stream(f"/{oip.SERVICE}/ModelStreamInfer")(said(), timeout=30)
    assert next(streamed)
    with pytest.raises(grpc.RpcError) as raised:
        next(streamed)
    over.set()
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "nothing came" in raised.value.details()  # the server's end of it, not the client's


def test_a_model_that_changed_is_shown_as_it_is_now(model_dir, tmp_path, files):
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    with Server(folder, port=0, threads=1) as server:
        text = (folder / "model.toml").read_text()
        (folder / "model.toml").write_text(text.replace('name = "small"', 'name = "newer"', 1))
        assert isinstance(server.reload(), Manifest)
        with grpc.insecure_channel(server.address) as channel:
            assert code(channel, "ModelInfer", asking("newer", {"image": files[:1]}))[0] == "OK"
            assert code(channel, "ModelInfer", asking("small", {"image": files[:1]}))[0] == (
                "NOT_FOUND"
            )


def test_a_language_model_does_not_speak_it(speaking):
    with grpc.insecure_channel(speaking.address) as channel:
        assert code(channel, "ServerLive")[0] == "UNIMPLEMENTED"
