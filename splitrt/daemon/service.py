"""The daemon as a process: signals, signs of life for systemd, and an end in good order."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Literal

from splitrt.core.trace import exporting
from splitrt.daemon import journal
from splitrt.daemon.life import Daemon
from splitrt.daemon.notify import Notify
from splitrt.daemon.told import read
from splitrt.errors import SplitrtError

logger = logging.getLogger(__name__)

TICK = 1.0  # seconds between two looks at the daemon's health, where nobody asks for signs of it


class Service:
    """One daemon until SIGTERM or SIGINT; SIGHUP reloads."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._notify = daemon, Notify()
        self._wake = threading.Event()
        self._over = self._asked = False
        self._reloading: threading.Thread | None = None

    def run(self) -> None:
        """Returns when the daemon is to end."""
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._end)
        signal.signal(signal.SIGHUP, self._again)
        self._notify.ready(self._summary())
        while not self._over:
            self._wake.wait(self._notify.every or TICK)
            self._wake.clear()
            busy = self._reloading is not None and self._reloading.is_alive()
            if self._asked and not busy:
                self._asked = False
                self._reloading = threading.Thread(target=self._reload, name="reload", daemon=True)
                self._reloading.start()
            if self._notify.every is not None and self._daemon.well:
                self._notify.alive()
        self._notify.stopping()

    def _end(self, *_: object) -> None:
        self._over = True
        self._wake.set()

    def _again(self, *_: object) -> None:
        self._asked = True
        self._wake.set()

    def _reload(self) -> None:
        self._notify.reloading()
        try:
            for change in self._daemon.reload():
                logger.info("reloaded: %s", change)
        except SplitrtError as error:
            logger.error("not reloaded, the old goes on: %s", error)
        finally:
            self._notify.ready(self._summary())

    def _summary(self) -> str:
        config = self._daemon.config
        return f"{len(config.models)} models, {len(config.cameras)} cameras"


def run(path: Path, log: Literal["text", "json"] | None = None) -> None:
    """The daemon of that file, until a signal ends it."""
    journal.begin(log or "text")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    traces = read(path, os.environ).trace
    with exporting("splitrt-daemon", traces), Daemon(path) as daemon:
        if log is None:
            journal.begin(daemon.config.log)
        where = "" if daemon.page is None else f", metrics at port {daemon.page.port}"
        for name, resident in daemon.shelf.residents.items():
            digest = resident.edge.manifest.digest[:6].hex()
            logger.info("loaded %s", digest, extra={"model": name})
        logger.info("ready at %s%s", daemon.config.socket, where)
        Service(daemon).run()
        logger.info("ending: frames in flight are answered")
    logger.info("ended")
