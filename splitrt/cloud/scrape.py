"""The server's figures for Prometheus, and whether it is well, on a port beside the devices'."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from socketserver import ThreadingMixIn
from typing import Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from splitrt.cloud.figures import Figures, Histogram
from splitrt.cloud.tally import Tally
from splitrt.errors import LinkError

PATIENCE = 5.0  # seconds for a request to come
TIMES = {
    "request": "From arrival to answer.",
    "queue": "Wait for the batch.",
    "open": "To check and decompress the batch.",
    "compute": "Of the tail, for the whole batch.",
}


class Counted(Protocol):
    """All calls of a server, as they are counted. closing: it takes no more devices."""

    tally: Tally
    closing: bool

    @property
    def gauges(self) -> Mapping[str, int]:
        """What there is now, by name."""

    def turns(self) -> bool:
        """Whether calls are taken in and answered now."""


class Scrape:
    """Answers Prometheus, and probes, from threads of its own until closed.

    /metrics; /healthz and /readyz: 200, or 503 from a server that is stuck, or, for the second,
    that closes. They are plain HTTP, whatever the devices' port wants of its guests. LinkError if
    the port is taken.
    """

    def __init__(self, host: str, port: int, front: Counted) -> None:
        self._front, self._host = front, host.strip("[]")
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        self._metrics = make_wsgi_app(registry)
        try:
            self._server = make_server(self._host, port, self._page, _served(self._host), Silent)
        except (OSError, OverflowError) as error:
            taken = f"{host}:{port} cannot be bound for metrics\nhelp: another port, or 0"
            raise LinkError(taken) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """host:port of the page /metrics."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _page(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return self._metrics(environ, start)
        if path in ("/healthz", "/readyz"):
            well = self._front.turns() and not (path == "/readyz" and self._front.closing)
            status, words = ("200 OK", b"ok\n") if well else ("503 Service Unavailable", b"no\n")
        else:
            status, words = "404 Not Found", b"/metrics, /healthz or /readyz\n"
        start(status, [("Content-Type", "text/plain")])
        return [words]

    def collect(self) -> Iterator[Metric]:
        """What the server counted until now."""
        answers = CounterMetricFamily(
            "splitrt_answers", "Answers by status, calls that ended early by code.", labels=["code"]
        )
        for name, count in sorted(self._front.tally.read().items()):
            answers.add_metric([name], count)
        yield answers
        if lessons := self._front.tally.lessons():
            yield _lessons(lessons)
        for name, value in self._front.gauges.items():
            yield GaugeMetricFamily(f"splitrt_{name}", f"Now: {name}.", value)
        yield from _families(self._front.tally.figures())


def _lessons(counts: Mapping[str, int]) -> Metric:
    """What became of samples and revisions, where exits are adapted."""
    family = CounterMetricFamily(
        "splitrt_lessons",
        "Samples taken, dropped; revisions sent, refused, reverted.",
        labels=["event"],
    )
    for name, count in sorted(counts.items()):
        family.add_metric([name], count)
    return family


class Silent(WSGIRequestHandler):
    """Writes no line for every request, and does not wait for ever for one."""

    timeout = PATIENCE

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def _served(host: str) -> type[WSGIServer]:
    """A thread for each request; of the family of that address."""

    class Served(ThreadingMixIn, WSGIServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

    return Served


def _families(figures: Mapping[str, Figures]) -> Iterator[Metric]:
    """A model's figures, labelled by its name."""
    taken = CounterMetricFamily("splitrt_payload_bytes", "Of frames.", labels=["model"])
    asked = CounterMetricFamily(
        "splitrt_requests", "Frames answered.", labels=["model", "codec", "code"]
    )
    sizes = HistogramMetricFamily("splitrt_batch_size", "Frames of a batch.", labels=["model"])
    for model, found in figures.items():
        taken.add_metric([model], found.taken)
        _add(sizes, model, found.sizes)
        for (codec, code), count in sorted(found.codes.items()):
            asked.add_metric([model, codec, code], count)
    yield asked
    yield taken
    yield sizes
    for part, words in TIMES.items():
        name = f"splitrt_{part}_seconds"
        family = HistogramMetricFamily(name, words, labels=["model"])
        for model, found in figures.items():
            _add(family, model, found.total if part == "request" else getattr(found, part))
        yield family


def _add(family: Any, model: str, histogram: Histogram) -> None:
    bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    counts = accumulate(histogram.counts)
    family.add_metric([model], list(zip(bounds, counts, strict=True)), histogram.sum)
