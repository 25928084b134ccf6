"""The local API: gRPC over a unix socket, for programs of the same group."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import grpc
import numpy as np

from splitrt.core.manifest import Manifest
from splitrt.core.result import Result
from splitrt.daemon import arrays
from splitrt.daemon.audience import Audience
from splitrt.daemon.fault import words
from splitrt.daemon.feed import Feed
from splitrt.daemon.seen import API, Seen, cause
from splitrt.daemon.shelf import Lane, Resident, Shelf, answers
from splitrt.daemon.told import nearest
from splitrt.edge.capture import Frame
from splitrt.edge.inputs import parted
from splitrt.errors import LinkError, ModelMismatch, SplitrtError
from splitrt.wire import daemon_pb2 as wire
from splitrt.wire.daemon_pb2_grpc import DaemonServicer, add_DaemonServicer_to_server

logger = logging.getLogger(__name__)

MODE = 0o660
CALLS = 64  # at once; streams and watchers count as one each
PATH = 107  # bytes that a unix socket's path may have
INFLIGHT = 64  # of a stream
NAME = 200  # characters of a frame's name that are kept
LOOK = 0.5  # seconds between two looks at whether a watcher is still there
OPTIONS = [
    ("grpc.max_receive_message_length", arrays.LARGEST),
    ("grpc.max_send_message_length", arrays.LARGEST),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.so_reuseport", 0),
]


class House(Protocol):
    """What the door opens to."""

    shelf: Shelf
    audience: Audience

    def cameras(self) -> list[str]: ...
    def tell(self, seen: Seen) -> None: ...
    def reload(self) -> list[str]: ...
    def status_json(self) -> str: ...


class Door(DaemonServicer):
    """Listens at `path` until closed. LinkError if another daemon does, or nothing can."""

    def __init__(self, path: Path, house: House) -> None:
        arrays.roomy()
        self.path, self._house = path, house
        self._over = threading.Event()
        self._feeds: set[Feed] = set()
        self._lock = threading.Lock()
        self._asked = 0
        _free(path)
        pool = ThreadPoolExecutor(CALLS, thread_name_prefix="api")
        self._server = grpc.server(pool, options=OPTIONS, maximum_concurrent_rpcs=CALLS)
        add_DaemonServicer_to_server(self, self._server)
        before = os.umask(0o777 & ~MODE)
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise LinkError(f"no socket at {path}: {error}\nhelp: another path") from error
        finally:
            os.umask(before)
        os.chmod(path, MODE)
        self._server.start()

    def close(self, grace: float) -> None:
        """Take no new calls; what was asked is answered within so many seconds."""
        self._over.set()
        with self._lock:
            for feed in self._feeds:
                feed.close()
        self._server.stop(grace).wait()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    # the calls; gRPC calls them by these names

    def Describe(self, request: wire.Which, context: grpc.ServicerContext) -> wire.Model:
        with _named(context):
            return _model(self._house.shelf.find(request.name))

    def Pin(self, request: wire.Choice, context: grpc.ServicerContext) -> wire.Model:
        with _named(context), self._house.shelf.use(request.model) as resident:
            resident.edge.plan = request.plan
            logger.info("plan %s from now on", request.plan, extra={"model": resident.name})
            return _model(resident)

    def Ask(self, request: wire.Question, context: grpc.ServicerContext) -> wire.Reply:
        captured = time.monotonic() - request.age_us / 1e6
        with _named(context), self._house.shelf.use(request.model) as resident:
            manifest = resident.edge.manifest
            array, side = parted(manifest, _inputs(manifest, request))
            flight = Lane(resident).launch(array, captured, side)
            result, error = resident.edge.land(flight)
            fault = None if error is None else type(error).__name__
            self._told(request.name[:NAME], captured, (result, fault, resident))
            if error is not None and (result.where is None or isinstance(error, ModelMismatch)):
                raise error
            return arrays.reply(request.name[:NAME], 0, result)

    def Stream(
        self, request_iterator: Iterator[wire.Question], context: grpc.ServicerContext
    ) -> Iterator[wire.Reply]:
        with _named(context):
            first = next(request_iterator, None)
            if first is None:
                return
            inflight = min(max(1, first.inflight), INFLIGHT)
            with self._feed(first, request_iterator) as feed:
                for frame, result, fault, resident in answers(
                    self._house.shelf, first.model, feed, inflight
                ):
                    self._told(frame.name, frame.captured, (result, fault, resident))
                    yield arrays.reply(frame.name, frame.index, result)

    def Watch(self, request: wire.Which, context: grpc.ServicerContext) -> Iterator[wire.Reply]:
        with _named(context):
            camera = _camera(request.name, self._house.cameras())
            with self._house.audience.listen(camera) as listener:
                context.send_initial_metadata(())  # from here on nothing is missed unsaid
                while context.is_active() and not self._over.is_set():
                    with contextlib.suppress(queue.Empty):
                        seen = listener.waiting.get(timeout=LOOK)
                        missed, listener.missed = listener.missed, 0
                        yield arrays.reply(seen.frame, seen.index, seen.result, missed, seen.size)
                    if camera not in self._house.cameras():
                        return

    def Reload(self, request: wire.Nothing, context: grpc.ServicerContext) -> wire.Changes:
        with _named(context):
            return wire.Changes(lines=self._house.reload())

    def Status(self, request: wire.Nothing, context: grpc.ServicerContext) -> wire.State:
        with _named(context):
            return wire.State(json=self._house.status_json())

    @contextlib.contextmanager
    def _feed(self, first: wire.Question, others: Iterator[wire.Question]) -> Iterator[Feed]:
        """A caller's frames; they end when the daemon does."""
        feed = Feed(self._frames(first, others), API)
        with self._lock:
            self._feeds.add(feed)
            if self._over.is_set():
                feed.close()
        try:
            yield feed
        finally:
            feed.close()
            with self._lock:
                self._feeds.discard(feed)

    def _frames(self, first: wire.Question, others: Iterator[wire.Question]) -> Iterator[Frame]:
        index = 0
        question: wire.Question | None = first
        while question is not None:
            captured = time.monotonic() - question.age_us / 1e6
            manifest = self._house.shelf.find(first.model).edge.manifest
            array, side = parted(manifest, _inputs(manifest, question))
            yield Frame(array, index, captured, question.name[:NAME], side)
            try:
                question = next(others, None)
            except grpc.RpcError:  # the caller left
                return
            index += 1

    def _told(self, name: str, captured: float, ended: tuple[Result, str | None, Resident]) -> None:
        result, fault, resident = ended
        at = time.time() - (time.monotonic() - captured)
        with self._lock:
            index, self._asked = self._asked, self._asked + 1
        told = API, resident.name, name, index, at, result, cause(result, fault)
        self._house.tell(Seen(*told, resident.edge.manifest))


def _model(resident: Resident) -> wire.Model:
    edge = resident.edge
    return wire.Model(
        name=resident.name,
        manifest=resident.text,
        plan=edge.plan,
        deadline=edge.deadline or 0.0,
    )


def _inputs(manifest: Manifest, question: wire.Question) -> dict[str, np.ndarray]:
    """The arrays of a question; one without a name is the head's."""
    found = arrays.opened(question.inputs)
    return {name or manifest.input.name: array for name, array in found.items()}


def _camera(name: str, names: list[str]) -> str:
    if not name and len(names) == 1:
        return names[0]
    if name not in names:
        raise SplitrtError(
            f"no camera {name[:80]!r} in this daemon\nhelp: {nearest(name[:80], names)}"
        )
    return name


@contextlib.contextmanager
def _named(context: grpc.ServicerContext) -> Iterator[None]:
    """An error of splitrt's tree goes to the caller by its name; of others, only that there is one.

    gRPC would send an uncaught exception's text.
    """
    try:
        yield
    except SplitrtError as error:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, words(error))
    except grpc.RpcError:  # the caller left
        return
    except Exception:
        logger.exception("a call failed")
        context.abort(grpc.StatusCode.INTERNAL, "the daemon failed; its log says how")


def _free(path: Path) -> None:
    """Make room: remove the socket of a daemon that is gone. LinkError if there can be none."""
    if len(os.fsencode(path)) > PATH:
        raise LinkError(f"{path} is too long for a socket\nhelp: {PATH} bytes at most")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LinkError(
            f"{path.parent}: {error.strerror}\nhelp: make it, or another path"
        ) from error
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise LinkError(f"{path} is there and no socket\nhelp: another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as plug:
        try:
            plug.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError as error:
            raise LinkError(f"{path}: {error.strerror}\nhelp: another path, or rights") from error
        else:
            raise LinkError(f"a daemon listens at {path} already\nhelp: stop it, or another path")
