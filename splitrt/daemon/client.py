"""A program's way to the daemon on its machine: the calls of an Edge, and what cameras see."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy as np

from splitrt.core.manifest import NAME, Manifest, parsed
from splitrt.core.result import Result
from splitrt.daemon import arrays
from splitrt.daemon.fault import named
from splitrt.edge.capture import Frame
from splitrt.edge.source import Source
from splitrt.errors import LinkDown, PacketError, SplitrtError
from splitrt.wire import daemon_pb2 as wire
from splitrt.wire.daemon_pb2_grpc import DaemonStub

SOCKET = "/run/splitrt/daemon.sock"
W = TypeVar("W", bound="Way")

WAIT = 5.0  # seconds for what the daemon can say at once
PATIENCE = 90.0  # seconds for an answer; the model's deadline is shorter
RELOAD = 600.0  # seconds: models are loaded meanwhile
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", arrays.LARGEST),
    ("grpc.max_send_message_length", arrays.LARGEST),
]


class Way:
    """A connection to a daemon, whatever models it has."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        arrays.roomy()
        self.path = Path(path).absolute()
        self._channel = grpc.insecure_channel(f"unix:{self.path}", OPTIONS)
        self._stub = DaemonStub(self._channel)

    def __enter__(self: W) -> W:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the daemon; it stays."""
        self._channel.close()

    def watch(self, camera: str = "") -> Iterator[tuple[str, Result, tuple[int, int]]]:
        """(frame's name, result, the picture's (height, width)) of a camera from now on.

        Without a name of the only camera. A detector's boxes are found(manifest, result, size).
        Who is slower than the camera misses some; it ends when the daemon or the camera does.
        """
        call = self._stub.Watch(wire.Which(name=camera))
        return _watched(call, self.path)

    def reload(self) -> list[str]:
        """Take up daemon.toml and the models as they are now; what changed, in words."""
        return list(self._call(self._stub.Reload, wire.Nothing(), RELOAD).lines)

    def status(self) -> dict[str, Any]:
        """Models and cameras, as /healthz says."""
        return dict(json.loads(self._call(self._stub.Status, wire.Nothing(), WAIT).json))

    def _call(self, method: Any, message: Any, seconds: float) -> Any:
        try:
            return method(message, timeout=seconds)
        except grpc.RpcError as error:
            raise named(error, self.path) from error


class Remote(Way):
    """A model in a daemon, called as an Edge is. `connect` makes one.

    with splitrt.connect("/run/splitrt/daemon.sock", model="birds") as remote:
        result = remote({"image": image})
        for frame, result in remote.stream(Pictures("photos")): ...
        for name, result, size in remote.watch("door"): ...
    """

    def __init__(self, path: str | os.PathLike[str], model: str = "") -> None:
        super().__init__(path)
        self._manifest: Manifest | None = None
        self._text = b""
        try:
            self.model = self._describe(model).name  # chosen once, whatever is added later
        except BaseException:
            self.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """Of the model as the daemon has it now."""
        text = self._describe(self.model).manifest
        if self._manifest is None or text != self._text:
            path = self.path / self.model / NAME
            self._manifest, self._text = Manifest.signed(path, text, parsed(text, path)), text
        return self._manifest

    @property
    def plan(self) -> str:
        """The plan of the next frame, by name. Setting one pins it, for cameras too."""
        return str(self._describe(self.model).plan)

    @plan.setter
    def plan(self, name: str) -> None:
        self._call(self._stub.Pin, wire.Choice(model=self.model, plan=name), WAIT)

    @property
    def deadline(self) -> float | None:
        """Seconds that a frame may take; None: no deadline."""
        return self._describe(self.model).deadline or None

    def __call__(self, inputs: Mapping[str, np.ndarray] | np.ndarray) -> Result:
        """Answer one input; the deadline starts now. Raises what an Edge would."""
        if isinstance(inputs, np.ndarray):
            inputs = {"": inputs}  # the model's own input
        question = wire.Question(model=self.model, inputs=arrays.packed(inputs))
        return arrays.result(self._call(self._stub.Ask, question, PATIENCE))

    def stream(
        self, source: Source | Iterable[Frame], *, inflight: int = 4
    ) -> Iterator[tuple[Frame, Result]]:
        """Every frame of the source with its result, in order of capture."""
        if inflight < 1:
            raise SplitrtError(f"inflight = {inflight}\nhelp: at least 1")
        asking = _Asking(self, iter(source), inflight)
        call = self._stub.Stream(asking.questions())
        try:
            for reply in _heard(call, self.path):
                yield asking.answered(reply), arrays.result(reply)
            asking.end()
        finally:
            asking.stop()
            call.cancel()

    def _describe(self, model: str) -> wire.Model:
        return self._call(self._stub.Describe, wire.Which(name=model), WAIT)


class _Asking:
    """The questions of one stream, and which of their frames wait for an answer."""

    def __init__(self, remote: Remote, frames: Iterator[Frame], inflight: int) -> None:
        self._frames, self._inflight = frames, inflight
        self._model, self._path = remote.model, remote.path
        self._places, self._over = threading.Semaphore(inflight), threading.Event()
        self._waiting: dict[int, Frame] = {}
        self._error: BaseException | None = None
        self._done = False

    def questions(self) -> Iterator[wire.Question]:
        """gRPC draws them in a thread of its own; what the source raises is kept for `end`."""
        try:
            for index, frame in enumerate(self._frames):
                self._places.acquire()
                if self._over.is_set():
                    return
                self._waiting[index] = frame
                yield self._question(frame)
            self._done = True
        except GeneratorExit:  # the call has ended
            raise
        except BaseException as error:  # whatever it is, it is the consumer's
            self._error = error

    def answered(self, reply: wire.Reply) -> Frame:
        """The frame of a reply; PacketError if none waits for it."""
        frame = self._waiting.pop(reply.index, None)
        if frame is None:
            raise PacketError(f"{self._path} answered frame {reply.index}, which was not asked")
        self._places.release()
        return frame

    def end(self) -> None:
        """The replies have ended: were they all? Raises what the source did; else LinkDown."""
        if self._error is not None:
            raise self._error
        if self._waiting or not self._done:
            raise LinkDown(f"the daemon at {self._path} ended\nhelp: connect again")

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()
        self._places.release()

    def _question(self, frame: Frame) -> wire.Question:
        inputs = arrays.packed({"": frame.image, **frame.side})
        age = int(1e6 * max(0.0, time.monotonic() - frame.captured))
        return wire.Question(
            model=self._model,
            inputs=inputs,
            age_us=min(age, 2**32 - 1),
            name=frame.name,
            inflight=self._inflight,
        )


def connect(path: str | os.PathLike[str] = SOCKET, *, model: str = "") -> Remote:
    """A model of the daemon that listens at that socket; without a name the only one.

    LinkDown if there is no daemon, SplitrtError if it has no such model.
    """
    return Remote(path, model)


def _watched(call: Any, path: Path) -> Iterator[tuple[str, Result, tuple[int, int]]]:
    try:
        for reply in _heard(call, path):
            yield reply.frame, arrays.result(reply), arrays.size(reply)
    finally:
        call.cancel()


def _heard(call: Any, path: Path) -> Iterator[wire.Reply]:
    try:
        yield from call
    except grpc.RpcError as error:
        raise named(error, path) from error
