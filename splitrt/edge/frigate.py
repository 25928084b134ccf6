"""A detector for Frigate, by the protocol of its `zmq` plugin: a picture in, twenty boxes out.

The protocol knows no identity and no encryption: whoever reaches the endpoint may ask.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import zmq

from splitrt.core.boxes import Boxes
from splitrt.core.manifest import Manifest
from splitrt.errors import PacketError, SplitrtError

logger = logging.getLogger(__name__)

ROWS = 20  # of an answer: class, score, top, left, bottom, right in shares of the picture
EMPTY = bytes(ROWS * 6 * 4)
TYPES = {"uint8": 1, "float32": 4}  # bytes of a number
LARGEST_SIDE = 4096  # pixels
LARGEST = 64 << 20  # bytes of a part of a message; more, and zmq hangs up
LARGEST_HEADER = 1 << 16
TICK = 200  # milliseconds between two looks at whether to end


class Booth:
    """Answers Frigate's messages, one after another, whatever they are.

    find: boxes of a picture.  counts: messages by kind: pictures, models, refused, failed.

        with Finder("models/person", "gpu-box:50700") as finder, Booth(finder) as booth:
            booth.open("tcp://127.0.0.1:5555")
            booth.run(threading.Event())
    """

    def __init__(self, find: Callable[[np.ndarray], Boxes], name: str = "") -> None:
        self._find, self._name = find, name
        self.counts: Counter[str] = Counter()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LARGEST)
        self._socket.setsockopt(zmq.RCVHWM, 2)  # of each client: it waits for its answer anyway
        self._socket.setsockopt(zmq.LINGER, 0)

    def __enter__(self) -> Booth:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.destroy(linger=0)

    def open(self, endpoint: str) -> str:
        """Listen, at tcp://host:port or ipc://path; where, if the port was left open."""
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise SplitrtError(
                f"no endpoint {endpoint!r}: {error.strerror}\n"
                "help: tcp://127.0.0.1:5555, or ipc:///tmp/detector"
            ) from error
        return str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def run(self, over: threading.Event) -> None:
        """Answer until it is over."""
        while not over.is_set():
            if self._socket.poll(TICK):
                self._socket.send(self.answer(self._socket.recv_multipart()))

    def answer(self, parts: Sequence[bytes]) -> bytes:
        """The answer to a message; for one that cannot be understood, no boxes."""
        try:
            header = _header(parts)
            if header.get("model_request") or header.get("model_data"):
                self.counts["models"] += 1
                return self._model(header)
            image = picture(header, parts[1:])
            self.counts["pictures"] += 1
            return rows(self._find(image), image.shape[:2]).tobytes()
        except PacketError as error:
            self.counts["refused"] += 1
            logger.warning("refused: %s", str(error).splitlines()[0])
        except Exception:  # no answer at all would leave the socket of all clients stuck
            self.counts["failed"] += 1
            logger.exception("a picture failed")
        return EMPTY

    def _model(self, header: Mapping[str, Any]) -> bytes:
        """Frigate asks for the model that its configuration names, or sends it: ours is here."""
        logger.info("asked for model %.80r: it is %s here", header.get("model_name"), self._name)
        first = "model_available" if header.get("model_request") else "model_saved"
        told = {first: True, "model_loaded": True, "message": f"this is {self._name}"}
        return json.dumps(told).encode()


def picture(header: Mapping[str, Any], parts: Sequence[bytes]) -> np.ndarray:
    """A message's picture, uint8 [height, width, 3]; PacketError if it is none.

    float32 pictures go from 0 to 1, or from 0 to 255.
    """
    shape, kind = header.get("shape"), header.get("dtype")
    if not isinstance(kind, str) or kind not in TYPES:
        raise PacketError(f"dtype {kind!r:.80}\nhelp: {' or '.join(TYPES)}")
    sides = _sides(shape)
    wanted = math.prod(sides) * TYPES[kind]
    if len(parts) != 1 or len(parts[0]) != wanted:
        sizes = [len(part) for part in parts[:8]]
        raise PacketError(f"a picture of {sides} {kind} in {sizes} bytes\nhelp: one of {wanted}")
    array = np.frombuffer(parts[0], kind).reshape(sides)
    if sides[2] != 3:
        array = array.transpose(1, 2, 0)
    return np.ascontiguousarray(array if kind == "uint8" else _grey(array))


def rows(boxes: Boxes, size: tuple[int, ...]) -> np.ndarray:
    """float32 [20, 6]: the best boxes of a picture of (height, width), then zeros."""
    table = np.zeros((ROWS, 6), "<f4")
    best = boxes[:ROWS].normalised((size[0], size[1]))
    left, top, right, bottom = best.xyxy.T
    table[: len(best)] = np.stack([best.label, best.score, top, left, bottom, right], 1)
    return table


def settings(manifest: Manifest, endpoint: str) -> str:
    """What Frigate's configuration has to say, as YAML."""
    height, width = manifest.input.shape[:2]  # the largest, if there are several
    labels = "".join(f"    {n}: {json.dumps(x)}\n" for n, x in enumerate(manifest.labels or []))
    return (
        "detectors:\n  splitrt:\n    type: zmq\n"
        f"    endpoint: {json.dumps(endpoint)}\n"
        "model:\n"
        f"  path: {json.dumps(f'/config/model_cache/{manifest.name}')}  # any name: it stays here\n"
        f"  width: {width}\n  height: {height}\n"
        "  input_tensor: nhwc\n  input_pixel_format: rgb\n  input_dtype: int\n"
        + (f"  labelmap:\n{labels}" if labels else "")
    )


def _header(parts: Sequence[bytes]) -> dict[str, Any]:
    if not parts or len(parts[0]) > LARGEST_HEADER:
        raise PacketError(
            f"a message of {len(parts)} parts\nhelp: a header in JSON, then a picture"
        )
    try:
        found = json.loads(parts[0])
    except (ValueError, RecursionError) as error:
        raise PacketError("the header is no JSON\nhelp: shape and dtype of a picture") from error
    if not isinstance(found, dict):
        raise PacketError("the header is no JSON object\nhelp: shape and dtype of a picture")
    return found


def _sides(shape: Any) -> list[int]:
    """[height, width, 3] or [3, height, width] of a shape, which may have a batch of one."""
    help = "help: [1, height, width, 3] or [1, 3, height, width]"
    sides = shape[1:] if isinstance(shape, list) and len(shape) == 4 and shape[0] == 1 else shape
    if not isinstance(sides, list) or len(sides) != 3:
        raise PacketError(f"shape {shape!r:.80}\n{help}")
    if not all(type(n) is int and 0 < n <= LARGEST_SIDE for n in sides):
        raise PacketError(f"shape {sides!r:.80}: sides from 1 to {LARGEST_SIDE}\n{help}")
    if 3 not in (sides[0], sides[2]):
        raise PacketError(f"shape {sides}: no three colours\n{help}")
    return sides


def _grey(array: np.ndarray) -> np.ndarray:
    """float32 to uint8."""
    if not np.isfinite(array).all():
        raise PacketError("a picture with numbers that are none\nhelp: 0 to 1, or 0 to 255")
    scale = 255 if array.max() <= 1 else 1
    return np.rint(array.clip(0, 255 / scale) * scale).astype(np.uint8)
