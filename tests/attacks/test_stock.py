"""Requests of the Open Inference Protocol that lie about their tensors, or are none."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from splitrt.cloud import oip
from tests.attacks.conftest import WARM_UPS
from tests.attacks.test_envelope import varint
from tests.attacks.unharmed import TIMES, discreet, unharmed
from tests.attacks.victim import Victim
from tests.cloud.guest import asking, call, code, jpeg, without_jpeg
from tests.conftest import pictures

DICE = random.Random(11)
INFER = f"/{oip.SERVICE}/ModelInfer"
FEATURES = (4, 8, 8)
FILE = jpeg(pictures(1, seed=4).images[0])


@pytest.fixture(scope="module")
def featured(model_dir, tmp_path_factory) -> Iterator[Victim]:
    running = Victim(without_jpeg(model_dir, tmp_path_factory.mktemp("featured") / "small"))
    for _ in range(WARM_UPS):
        running.known_good()
    yield running
    running.close()


def refused(victim: Victim, request: Any, name: str, count: str | None = None) -> None:
    """Alone and 200 times: the same code, discreet words, one counter, the server as before."""
    call(victim.channel, "ServerLive")  # the messages' classes are there from now on
    for times in (1, TIMES):
        with unharmed(victim, {count or name: times}):
            for _ in range(times):
                found, words = code(victim.channel, "ModelInfer", request)
                assert found == name, words
                assert words and discreet(words), words


def features(rows: int = 1, **tensor: Any) -> Any:
    """A request of features; tensor: what its input says instead."""
    made = asking("small", {"features": np.zeros((rows, *FEATURES), np.float32)})
    if "shape" in tensor:
        del made.inputs[0].shape[:]
    made.inputs[0].MergeFrom(oip.message("ModelInferRequest").InferInputTensor(**tensor))
    return made


def typed(values: int, **tensor: Any) -> Any:
    """The same with so many typed numbers."""
    made = features(**tensor)
    del made.raw_input_contents[:]
    made.inputs[0].contents.fp32_contents.extend([0.0] * values)
    return made


def raw(length: int, **tensor: Any) -> Any:
    """The same with so many raw bytes."""
    made = features(**tensor)
    made.raw_input_contents[0] = bytes(length)
    return made


def picture(contents: bytes, rows: int = 1) -> Any:
    """A request of pictures whose raw contents are those."""
    made = asking("small", {"image": [FILE] * rows})
    made.raw_input_contents[0] = contents
    return made


def changed(made: Any, change: Callable[[Any], Any]) -> Any:
    change(made)
    return made


def many(made: Any) -> None:
    """Hundreds of empty inputs more."""
    for _ in range(400):
        made.inputs.add()


def with_parameter(name: str) -> Any:
    made = features()
    made.parameters[name].int64_param = -1
    return made


def with_memory() -> Any:
    made = features()
    made.inputs[0].parameters["shared_memory_region"].string_param = "secret"
    return made


WHOLE = 4 * 4 * 8 * 8
LIES: dict[str, Callable[[], Any]] = {
    "no bytes": lambda: raw(0),
    "one byte short": lambda: raw(WHOLE - 1),
    "one byte long": lambda: raw(WHOLE + 1),
    "half a row more": lambda: raw(WHOLE + WHOLE // 2),
    "one row for two": lambda: features(shape=[2, *FEATURES]),
    "huge": lambda: features(shape=[1, 2**33, 2**33, 1]),
    "a product of 2^64": lambda: features(shape=[1, 2**32, 2**32, 1]),
    "huge rows": lambda: features(shape=[2**62, *FEATURES]),
    "negative": lambda: features(shape=[-1, *FEATURES]),
    "two negatives": lambda: features(shape=[1, -4, -8, 8]),
    "zero": lambda: features(shape=[0, *FEATURES]),
    "no shape": lambda: changed(features(), lambda one: one.inputs[0].ClearField("shape")),
    "hundreds of dimensions": lambda: features(shape=[1] * 800),
    "without batch": lambda: features(shape=FEATURES),
    "another layout": lambda: features(shape=[1, 8, 8, 4]),
    "another type": lambda: features(datatype="FP16"),
    "twice as wide": lambda: features(datatype="FP64"),
    "bytes": lambda: features(datatype="BYTES"),
    "a type that is none": lambda: features(datatype="%s\0"),
    "another name": lambda: features(name="image"),
    "no input": lambda: changed(features(), lambda one: one.ClearField("inputs")),
    "an input twice": lambda: changed(features(), lambda one: one.inputs.append(one.inputs[0])),
    "an input too many": lambda: changed(features(), lambda one: one.inputs.add(name="more")),
    "hundreds of inputs": lambda: changed(features(), many),
    "raw contents twice": lambda: changed(
        features(), lambda one: one.raw_input_contents.append(b"")
    ),
    "no contents": lambda: typed(0),
    "a typed number short": lambda: typed(255),
    "a typed number long": lambda: typed(257),
    "both kinds of contents": lambda: changed(
        features(), lambda one: one.inputs[0].contents.fp32_contents.append(0.0)
    ),
    "contents of another type": lambda: changed(
        typed(256), lambda one: one.inputs[0].contents.int64_contents.append(1)
    ),
    "shared memory": with_memory,
    "a sequence": lambda: with_parameter("sequence_id"),
    "a time before now": lambda: with_parameter("timeout"),
}
PICTURES: dict[str, Callable[[], Any]] = {
    "nothing": lambda: picture(b""),
    "a length alone": lambda: picture(b"\1\0\0\0"),
    "half a length": lambda: picture(b"\1\0"),
    "a length of 4 GiB": lambda: picture(b"\xff\xff\xff\xff" + FILE),
    "one byte too many": lambda: picture(len(FILE).to_bytes(4, "little") + FILE + b"\0"),
    "a row too few": lambda: picture(len(FILE).to_bytes(4, "little") + FILE, rows=2),
    "a thousand empty rows": lambda: picture(bytes(4000)),
}


def pixels(**tensor: Any) -> Any:
    """A request of one picture's pixels; tensor: what its input says instead."""
    made = asking("small", {"image": np.zeros((1, 32, 32, 3), np.uint8)})
    if "shape" in tensor:
        del made.inputs[0].shape[:]
    made.inputs[0].MergeFrom(oip.message("ModelInferRequest").InferInputTensor(**tensor))
    return made


def typed_pixels(value: int, count: int = 32 * 32 * 3) -> Any:
    made = pixels()
    del made.raw_input_contents[:]
    made.inputs[0].contents.uint_contents.extend([value] * count)
    return made


PIXELS: dict[str, Callable[[], Any]] = {
    "turned": lambda: pixels(shape=[1, 3, 32, 32]),
    "larger": lambda: pixels(shape=[1, 64, 64, 3]),
    "negative": lambda: pixels(shape=[1, -32, -32, 3]),
    "without batch": lambda: pixels(shape=[32, 32, 3]),
    "huge rows": lambda: pixels(shape=[2**62, 32, 32, 3]),
    "a row too few": lambda: pixels(shape=[2, 32, 32, 3]),
    "a byte short": lambda: changed(
        pixels(), lambda one: one.raw_input_contents.__setitem__(0, bytes(32 * 32 * 3 - 1))
    ),
    "a number of two bytes": lambda: typed_pixels(256),
    "a number of four bytes": lambda: typed_pixels(2**32 - 1),
    "a typed number short": lambda: typed_pixels(0, 32 * 32 * 3 - 1),
    "a JPEG file": lambda: changed(
        pixels(), lambda one: one.raw_input_contents.__setitem__(0, FILE)
    ),
    "of another type": lambda: pixels(datatype="INT8"),
}
NO_FILES = {
    "an empty file": b"",
    "noise": DICE.randbytes(500),
    "half a file": FILE[: len(FILE) // 2],
    "a larger picture": jpeg(np.zeros((64, 64, 3), np.uint8)),
    "grey": jpeg(np.zeros((32, 32), np.uint8)),
}


@pytest.mark.parametrize("kind", LIES)
def test_a_tensor_that_is_not_what_it_says_is_refused(featured, kind):
    refused(featured, LIES[kind](), "INVALID_ARGUMENT")


@pytest.mark.parametrize("kind", PICTURES)
def test_strings_that_do_not_fit_their_tensor_are_refused(victim, kind):
    refused(victim, PICTURES[kind](), "INVALID_ARGUMENT")


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels_that_are_no_picture_of_the_models_are_refused(victim, kind):
    refused(victim, PIXELS[kind](), "INVALID_ARGUMENT")


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_file_that_is_no_picture_of_the_models_is_refused_by_the_batcher(victim, kind):
    request = asking("small", {"image": [NO_FILES[kind]]})
    refused(victim, request, "INVALID_ARGUMENT", count="INVALID")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_are_refused(featured, value):
    request = asking("small", {"features": np.full((1, *FEATURES), value, np.float32)})
    refused(featured, request, "INVALID_ARGUMENT", count="INVALID")


@pytest.mark.parametrize(
    ("model", "version"),
    [("", ""), ("other", ""), ("../etc", ""), ("small", "2"), ("x" * 900, "1")],
)
def test_a_model_that_is_not_here_is_not_found(featured, model, version):
    request = asking(model, {"features": np.zeros((1, *FEATURES), np.float32)})
    request.model_version = version
    refused(featured, request, "NOT_FOUND")


NOISE = {
    "noise": b"\xff\xff",
    "an input that never ends": b"\x2a" + varint(2**40),
    "bad UTF-8": b"\x0a\x02\xff\xfe",
}


@pytest.mark.parametrize("kind", NOISE)
def test_what_is_no_request_is_said_to_be_none(featured, kind):
    refused(featured, NOISE[kind], "INVALID_ARGUMENT")


def test_a_bad_row_among_good_ones_refuses_the_request_and_no_other(victim):
    good = asking("small", {"image": [FILE]})
    mixed = asking("small", {"image": [FILE, b"no picture", FILE]})
    before = call(victim.channel, "ModelInfer", good)
    with unharmed(victim, {"OK": 2 * TIMES + 1, "INVALID": TIMES}):
        for _ in range(TIMES):
            assert code(victim.channel, "ModelInfer", mixed)[0] == "INVALID_ARGUMENT"
        assert call(victim.channel, "ModelInfer", good) == before


def test_who_goes_away_while_asking_leaves_nothing(featured):
    request = features().SerializeToString()
    with unharmed(featured):
        with grpc.insecure_channel(featured.address) as channel:
            for _ in range(TIMES):
                channel.unary_unary(INFER).future(request, timeout=30).cancel()
            for _ in range(20):
                answers = channel.stream_stream(f"/{oip.SERVICE}/ModelStreamInfer")(
                    iter([request] * 10), timeout=30
                )
                answers.cancel()


def test_a_stream_of_noise_ends_and_says_so(featured):
    with unharmed(featured, {"INVALID_ARGUMENT": TIMES}):
        for _ in range(TIMES):
            stream = featured.channel.stream_stream(f"/{oip.SERVICE}/ModelStreamInfer")
            with pytest.raises(grpc.RpcError) as raised:
                list(stream(iter([b"\xff\xff"]), timeout=30))
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert discreet(raised.value.details())
