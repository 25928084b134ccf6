"""The models that stay loaded, shared by cameras and callers; one can be exchanged in use."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import cast

import numpy as np

from splitrt.core.manifest import Manifest, raw
from splitrt.core.result import Result
from splitrt.daemon.config import ModelPart
from splitrt.daemon.feed import Feed
from splitrt.daemon.told import nearest
from splitrt.edge.capture import Frame
from splitrt.edge.edge import NOTHING, Edge
from splitrt.edge.flight import Flight
from splitrt.edge.stream import stream
from splitrt.edge.trace import traced
from splitrt.errors import ModelError, ModelMismatch, SplitrtError

logger = logging.getLogger(__name__)

REACH = 2.0  # seconds that new models have to reach their servers before they take over
STUCK = 30.0  # seconds in one head after which nothing good is expected
POLL = 0.02  # seconds


class Resident:
    """One model, loaded. Its heads run for one frame at a time, whoever sent it."""

    def __init__(self, name: str, told: ModelPart, environ: Mapping[str, str]) -> None:
        self.name, self.told = name, told
        self.edge = Edge(told.path, **told.options(environ))
        self.text = raw(told.path)  # of model.toml
        if sha256(self.text).digest() != self.edge.manifest.digest:
            self.edge.close()
            raise ModelError(f"{told.path} changed while it was loaded\nhelp: reload when it rests")
        self.turn = threading.Lock()
        self.retired = threading.Event()
        self.since: float | None = None  # time.monotonic() when the frame in its head began
        self._users, self._lock = 0, threading.Lock()

    @property
    def stuck(self) -> bool:
        """Whether a head has been running for far too long."""
        since = self.since
        return since is not None and time.monotonic() - since > STUCK

    @contextlib.contextmanager
    def use(self) -> Iterator[Resident]:
        """Not closed meanwhile; the shelf hands it out so."""
        with self._lock:
            self._users += 1
        try:
            yield self
        finally:
            with self._lock:
                self._users -= 1
            self._close_if_over()

    def retire(self) -> None:
        """Take no new frames; it leaves the server when the last of its frames has ended."""
        self.retired.set()
        self._close_if_over()

    def _close_if_over(self) -> None:
        with self._lock:
            if self._users or not self.retired.is_set():
                return
            self._users = -1  # closed once
        threading.Thread(target=self.edge.close, name=f"retire-{self.name}", daemon=True).start()


class Lane:
    """One stream's way through a model, for `stream`: an Edge that takes turns with others.

    fault: the name of the error behind the frame that landed last.
    """

    def __init__(self, resident: Resident) -> None:
        self.resident, self.similar = resident, resident.edge.similar
        self._fault: str | None = None
        self._told = False

    def launch(
        self, array: np.ndarray, captured: float, side: Mapping[str, np.ndarray] = NOTHING
    ) -> Flight:
        """As Edge's; waits for its turn."""
        with self.resident.turn:
            self.resident.since = time.monotonic()
            try:
                return self.resident.edge.launch(array, captured, side)
            finally:
                self.resident.since = None

    def land(self, flight: Flight) -> tuple[Result, SplitrtError | None]:
        """As Edge's, but a server that holds another model ends no stream: it may change again."""
        result, error = self.resident.edge.land(flight)
        self._fault = None if error is None else type(error).__name__
        if not isinstance(error, ModelMismatch):
            return result, error
        if not self._told:
            logger.error("%s", error, extra={"model": self.resident.name})
            self._told = True
        return result, None

    def failed(self, captured: float, error: SplitrtError) -> Result:
        """As Edge's."""
        self._fault = type(error).__name__
        return self.resident.edge.failed(captured, error)

    def repeated(self, captured: float, result: Result) -> Result:
        """As Edge's."""
        return self.resident.edge.repeated(captured, result)

    def fault(self) -> str | None:
        """Why the last frame had to be answered otherwise, once."""
        fault, self._fault = self._fault, None
        return fault


class Shelf:
    """The models by name. Those of `told` are loaded, or SplitrtError says which cannot be.

    traces: each frame's, see `traced`.
    """

    def __init__(
        self, told: Mapping[str, ModelPart], environ: Mapping[str, str], *, traces: bool = False
    ) -> None:
        self._environ, self._traces = environ, traces
        self._lock = threading.Lock()
        self._residents: dict[str, Resident] = {}
        self._residents = self.loaded(told)

    @property
    def residents(self) -> Mapping[str, Resident]:
        """Those that take new frames."""
        return self._residents

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Resident]:
        """A model, not closed meanwhile; without a name the only one."""
        with contextlib.ExitStack() as stack:
            with self._lock:
                resident = stack.enter_context(self.find(name).use())
            yield resident

    def find(self, name: str) -> Resident:
        """The model of that name; SplitrtError if there is none."""
        residents = self._residents
        if not name and len(residents) == 1:
            return next(iter(residents.values()))
        if name not in residents:
            help = nearest(name[:80], residents)
            raise SplitrtError(f"no model {name[:80]!r} in this daemon\nhelp: {help}")
        return residents[name]

    def loaded(self, told: Mapping[str, ModelPart]) -> dict[str, Resident]:
        """Residents for all that is told; those that would be the same are the old ones.

        SplitrtError if one cannot be loaded; then none was.
        """
        found: dict[str, Resident] = {}
        fresh: list[Resident] = []
        try:
            for name, part in told.items():
                old = self._residents.get(name)
                if old is not None and _same(old, part):
                    found[name] = old
                    continue
                try:
                    found[name] = Resident(name, part, self._environ)
                except SplitrtError as error:
                    raise type(error)(f"models.{name}: {error}") from error
                fresh.append(found[name])
                if self._traces:
                    traced(found[name].edge)
        except BaseException:
            for resident in fresh:
                resident.retire()
            raise
        _reached(fresh)
        return found

    def swap(self, residents: dict[str, Resident]) -> None:
        """Those take the next frames; others finish what they have."""
        with self._lock:
            old, self._residents = self._residents, residents
        for name, resident in old.items():
            if residents.get(name) is not resident:
                resident.retire()

    def close(self) -> None:
        """Leave the servers."""
        self.swap({})


def answers(
    shelf: Shelf, model: str, feed: Feed, inflight: int
) -> Iterator[tuple[Frame, Result, str | None, Resident]]:
    """Every frame of the feed with its result and its fault, in order, by the model of that name.

    When the model is exchanged, the old one answers the frames that it has, the new one the next.
    """
    while not feed.over:
        with shelf.use(model) as resident:
            lane = Lane(resident)
            frames = feed.until(resident.retired.is_set)
            edge = cast(Edge, lane)  # all of an Edge that `stream` uses
            for frame, result in stream(edge, frames, inflight):
                yield frame, result, lane.fault(), resident


def _same(old: Resident, part: ModelPart) -> bool:
    """Whether loading it anew would change nothing."""
    return old.told == part and Manifest.load(part.path).digest == old.edge.manifest.digest


def _reached(residents: list[Resident]) -> None:
    """Give their servers a moment, so that the first frames find a connection."""
    until = time.monotonic() + REACH
    for resident in residents:
        while resident.edge.up is False and time.monotonic() < until:
            time.sleep(POLL)
