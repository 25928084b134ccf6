"""A stock client of the Open Inference Protocol on bare gRPC: whole messages, right or wrong."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tomli_w
from PIL import Image

from splitrt.cloud import oip

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

JPEG = {"jpeg", "whole.pt2"}


def call(channel: grpc.Channel, name: str, request: Any = None, **settings: Any) -> Any:
    """What the server answers to a call by its name; request: a message, its bytes or nothing."""
    method = next(one for one in oip.methods() if one.name == name)
    raw = request if isinstance(request, bytes) else (request or oip.of(method.input_type)())
    raw = raw if isinstance(raw, bytes) else raw.SerializeToString()
    settings = {"timeout": 30, **settings}
    answer = channel.unary_unary(f"/{oip.SERVICE}/{name}")(raw, **settings)
    return oip.of(method.output_type).FromString(answer)


def code(channel: grpc.Channel, name: str, request: Any = None, **settings: Any) -> tuple[str, str]:
    """(gRPC code, the words) of a call."""
    try:
        call(channel, name, request, **settings)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def asking(model: str, inputs: dict[str, Any], **fields: Any) -> Any:
    """A ModelInferRequest with raw contents: arrays by name; lists of bytes are rows of BYTES."""
    made = oip.message("ModelInferRequest")(model_name=model, **fields)
    for name, value in inputs.items():
        if isinstance(value, list):
            made.inputs.add(name=name, datatype="BYTES", shape=[len(value), 1])
            parts = [len(one).to_bytes(4, "little") + one for one in value]
            made.raw_input_contents.append(b"".join(parts))
        else:
            datatype = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}[value.dtype.name]
            made.inputs.add(name=name, datatype=datatype, shape=value.shape)
            made.raw_input_contents.append(value.astype(value.dtype.newbyteorder("<")).tobytes())
    return made


def arrays(response: Any) -> dict[str, np.ndarray]:
    """The outputs of a response."""
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {one.name: np.frombuffer(raw, "<f4").reshape(list(one.shape)) for one, raw in pairs}


def jpeg(picture: np.ndarray) -> bytes:
    """A picture as a file."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=90)
    return out.getvalue()


def without_jpeg(folder: Path, to: Path) -> Path:
    """The same model, which takes no pictures: stock clients send it features."""
    shutil.copytree(folder, to)
    (to / "whole.pt2").unlink()
    told = tomllib.loads((to / "model.toml").read_text())
    told["plans"] = [plan for plan in told["plans"] if plan["name"] not in JPEG]
    for table in (told["codecs"], told["files"]):
        for name in JPEG & table.keys():
            del table[name]
    (to / "model.toml").write_text(tomli_w.dumps(told))
    return to
