"""The daemon's life: models and cameras start, run, are exchanged on reload, and end."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from splitrt.daemon.audience import Audience
from splitrt.daemon.config import CameraPart, Config
from splitrt.daemon.door import Door
from splitrt.daemon.outlet import Outlet, line
from splitrt.daemon.page import Page
from splitrt.daemon.seen import Seen
from splitrt.daemon.shelf import Shelf
from splitrt.daemon.told import read
from splitrt.daemon.watch import Watch
from splitrt.errors import SplitrtError

logger = logging.getLogger(__name__)

FIXED = ("socket", "metrics_port", "log", "trace")  # keys that need a new start


class Daemon:
    """Runs what a daemon.toml says until closed.

        with Daemon("daemon.toml") as daemon:
            daemon.reload()

    page: where /metrics and /healthz are, if they are asked for.
    """

    def __init__(self, path: str | Path, environ: Mapping[str, str] = os.environ) -> None:
        self.path, self._environ = Path(path), dict(environ)
        self.config = read(self.path, self._environ)
        self.audience = Audience()
        self._reloading, self._began = threading.Lock(), time.monotonic()
        self._watches: dict[str, Watch] = {}
        self._outlets: dict[str, Outlet] = {}
        self._reloads = {"done": 0, "refused": 0}
        self._saw: Callable[[Seen], None] | None = None
        self._closing = False
        self.page: Page | None = None
        self.shelf = Shelf(self.config.models, self._environ, traces=self.config.trace)
        self._door: Door | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def reload(self) -> list[str]:
        """Take up daemon.toml, the models and the outputs' files as they are now; what changed.

        SplitrtError if they are wrong; then all goes on as it was. No frame is lost: a model
        that is exchanged answers the frames it has, and the new one the next.
        """
        with self._reloading:
            if self._closing:
                raise SplitrtError("the daemon is ending\nhelp: start it again")
            try:
                config = read(self.path, self._environ)
                self._may_follow(config)
                residents = self.shelf.loaded(config.models)
            except SplitrtError:
                self._reloads["refused"] += 1
                raise
            said = [
                *_differences("model", self.shelf.residents, residents),
                *_differences("camera", self.config.cameras, config.cameras),
            ]
            leaving = self._leaving(config.cameras)
            self.shelf.swap(residents)
            self.config = config
            for name, camera in config.cameras.items():
                if name in leaving or name not in self._watches:
                    self._watch(name, camera)
            for outlet in tuple(self._outlets.values()):
                outlet.close()  # the next line opens a file that was moved away
            self._reloads["done"] += 1
            return said or ["nothing changed"]

    def cameras(self) -> list[str]:
        """Their names."""
        return list(self.config.cameras)

    def tell(self, seen: Seen) -> None:
        """A frame has ended: to the camera's output, to who listens, to the counters."""
        outlet = self._outlets.get(seen.camera)
        if outlet is not None:
            outlet.write(line(seen))
        self.audience.tell(seen)
        if self._saw is not None:
            self._saw(seen)

    @property
    def well(self) -> bool:
        """Whether all its threads run; a lost camera or link is no fault of the daemon's."""
        stuck = any(resident.stuck for resident in self.shelf.residents.values())
        return not stuck and all(watch.alive for watch in tuple(self._watches.values()))

    def status(self) -> dict[str, Any]:
        """For people and for /healthz."""
        watches, residents = dict(self._watches), dict(self.shelf.residents)
        lost = any(watch.state == "lost" for watch in watches.values())
        down = any(resident.edge.up is False for resident in residents.values())
        models = {
            name: {
                "manifest": resident.edge.manifest.digest[:6].hex(),
                "plan": resident.edge.plan,
                "link": {None: "none", True: "up", False: "down"}[resident.edge.up],
            }
            for name, resident in residents.items()
        }
        return {
            "status": "failing" if not self.well else "degraded" if lost or down else "ok",
            "seconds": round(time.monotonic() - self._began, 1),
            "models": models,
            "cameras": {name: watch.status() for name, watch in watches.items()},
            "reloads": dict(self._reloads),
        }

    def status_json(self) -> str:
        """The same as text."""
        return json.dumps(self.status())

    def close(self) -> None:
        """Answer what is in flight, then end; takes `grace` seconds at most, and a little."""
        with self._reloading:
            if self._closing:
                return
            self._closing = True
            until = time.monotonic() + self.config.grace
            for watch in self._watches.values():
                watch.stop()
            if self._door is not None:
                self._door.close(self.config.grace)
            for name, watch in self._watches.items():
                if not watch.join(max(0.1, until - time.monotonic())):
                    logger.error("frames did not end in time", extra={"camera": name})
            if self.page is not None:
                self.page.close()
            self.shelf.close()
            for outlet in self._outlets.values():
                outlet.close()

    def _open(self) -> None:
        if self.config.metrics_port is not None:
            from splitrt.daemon.meters import Meters

            meters = Meters(lambda: self.shelf.residents, lambda: dict(self._watches), self._counts)
            self._saw = meters.saw
            self.page = Page(self.config.metrics_port, meters.text, self._health)
        self._door = Door(self.config.socket, self)
        for name, camera in self.config.cameras.items():
            self._watch(name, camera)

    def _watch(self, name: str, camera: CameraPart) -> None:
        if camera.output is not None:
            self._outlets[name] = Outlet(camera.output)
        self._watches[name] = Watch(name, camera, self.shelf, self.tell)

    def _leaving(self, cameras: Mapping[str, CameraPart]) -> set[str]:
        """Stop the cameras that are not to go on as they are, and wait for their frames."""
        names = {name for name, old in self.config.cameras.items() if cameras.get(name) != old}
        for name in names:
            self._watches[name].stop()
        for name in names:
            if not self._watches.pop(name).join(self.config.grace):
                logger.error("frames did not end in time", extra={"camera": name})
            outlet = self._outlets.pop(name, None)
            if outlet is not None:
                outlet.close()
        return names

    def _may_follow(self, config: Config) -> None:
        for key in FIXED:
            before, after = getattr(self.config, key), getattr(config, key)
            if before != after:
                raise SplitrtError(
                    f"{self.path}: {key} = {str(after)!r}, and it runs with {str(before)!r}\n"
                    "help: start the daemon again"
                )

    def _health(self) -> tuple[bool, dict[str, Any]]:
        return self.well, self.status()

    def _counts(self) -> dict[str, float]:
        return {
            "listeners": self.audience.size,
            "listeners_missed": self.audience.missed,
            "lines_failed": sum(one.failed for one in tuple(self._outlets.values())),
            "reloads_done": self._reloads["done"],
            "reloads_refused": self._reloads["refused"],
        }


def _differences(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What was added, changed, removed, in words."""
    words = [f"{what} {name}: removed" for name in old if name not in new]
    for name, one in new.items():
        if name not in old:
            words.append(f"{what} {name}: added")
        elif old[name] is not one and old[name] != one:
            words.append(f"{what} {name}: changed")
    return words
