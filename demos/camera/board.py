"""What happened lately, for every page that looks: the newest goes out, the last minute stays."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import numpy as np
from answer import answer
from dials import Dials
from joules import Joules
from PIL import Image

from splitrt import Edge, Frame, Result, SplitrtError

MINUTE = 60.0  # seconds that stay
MOST = 2000  # frames of it
PAGES = 16  # that look at the same time
WAITING = 8  # frames that a slow page is sent late; older ones it misses
WIDEST = 480  # pixels of the picture that is shown
BEAT = 0.5  # seconds after which a page's stream looks whether all is over
STEAD = {
    "exit": "The device answers",
    "local": "The device answers by its local tail",
    None: "Nobody answers",
}
CHOSEN = {None, "no plan is worth it"}  # reasons of a device that answers by choice


class Board:
    """Frames and their results as pages show them; `put` from one thread, `look` from asyncio.

    over: whether the pages are to be let go.
    """

    over: Callable[[], bool]

    def __init__(self, edge: Edge, dials: Dials, costs: Joules) -> None:
        self._edge, self._dials, self._costs = edge, dials, costs
        self._begun = time.monotonic()
        self.over = lambda: False
        self._past: deque[dict] = deque(maxlen=MOST)
        self._lock = threading.Lock()
        self._looking: dict[asyncio.Queue[str], asyncio.AbstractEventLoop] = {}

    def about(self) -> dict[str, object]:
        """What does not change."""
        manifest, costs = self._edge.manifest, self._costs
        return {
            "model": manifest.name,
            "deadline_ms": 1000 * (self._edge.deadline or 0),
            "labels": len(manifest.labels or []),
            "stead": STEAD[self._edge.standin],
            "joules": {"device": costs.device, "why": costs.why},
            "seconds": MINUTE,
        }

    def put(self, frame: Frame, result: Result) -> None:
        """A frame has ended."""
        point = self._point(frame, result)
        with self._lock:
            self._past.append(point)
            looking = list(self._looking.items())
        if not looking:
            return
        text = json.dumps({**point, "picture": picture(frame.image)})
        for queue, loop in looking:
            with suppress(RuntimeError):  # the loop has ended, and its page with it
                loop.call_soon_threadsafe(push, queue, text)

    async def look(self) -> AsyncIterator[tuple[str, str]]:
        """(event, JSON): first all that is known, then every frame; a beat where there is none.

        SplitrtError if too many pages look already.
        """
        queue: asyncio.Queue[str] = asyncio.Queue(WAITING)
        with self._lock:
            if len(self._looking) >= PAGES:
                raise SplitrtError(f"{PAGES} pages look already\nhelp: close one")
            self._looking[queue] = asyncio.get_running_loop()
            past = [point for point in self._past if point["t"] > self._now() - MINUTE]
        try:
            known = {"about": self.about(), "past": past, "link": self._dials.now()}
            yield "hello", json.dumps({**known, "t": self._now()})
            while not self.over():
                try:
                    yield "frame", await asyncio.wait_for(queue.get(), BEAT)
                except asyncio.TimeoutError:
                    yield "beat", json.dumps({"t": self._now(), "link": self._dials.now()})
        finally:
            with self._lock:
                del self._looking[queue]

    def _now(self) -> float:
        return round(time.monotonic() - self._begun, 3)

    def _point(self, frame: Frame, result: Result) -> dict[str, object]:
        """A frame's end in numbers. kind: cloud, own, stead (of the server) or none."""
        spent, estimate, link = result.timings, self._edge.estimate, self._dials.now()
        here = spent.tail if result.where == "edge" else 0.0  # a local tail is no server
        stages = {
            "capture": spent.capture,
            "head": spent.head + here,
            "codec": spent.gate + spent.codec,
            "link": spent.link,
            "server": spent.server + spent.batch + spent.tail - here,
        }
        stages["waiting"] = max(0.0, spent.total - sum(stages.values()))
        own = "own" if result.reason in CHOSEN else "stead"
        joules = self._costs.of(result)
        return {
            "t": self._now(),
            "name": frame.name,
            "kind": own if result.where == "edge" else result.where or "none",
            "plan": result.plan,
            "reason": result.reason,
            **answer(self._edge, frame, result),
            "total": round(spent.total, 2),
            "stages": {name: round(value, 2) for name, value in stages.items()},
            "bytes": result.sent_bytes,
            "joules": None if joules is None else round(joules, 6),
            "up": self._edge.up,
            "mbps": None if estimate is None else round(8e-6 * float(np.exp(estimate.mu)), 5),
            "rtt_ms": None if estimate is None else round(1000 * estimate.rtt, 2),
            "link": link,
        }


def push(queue: asyncio.Queue[str], text: str) -> None:
    """Who is slow misses the oldest."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(text)


def picture(image: np.ndarray) -> str:
    """A JPEG as a data: address, small enough for a page."""
    shown = Image.fromarray(image)
    shown.thumbnail((WIDEST, WIDEST))
    held = io.BytesIO()
    shown.save(held, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()
