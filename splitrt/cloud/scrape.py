"""The server's figures for Prometheus, on a port of this machine alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from splitrt.cloud.figures import Figures, Histogram
from splitrt.cloud.tally import Tally
from splitrt.errors import LinkError

HOST = "127.0.0.1"  # whoever is to read it from elsewhere puts a proxy before it
TIMES = {
    "request": "From arrival to answer.",
    "queue": "Wait for the batch.",
    "open": "To check and decompress the batch.",
    "compute": "Of the tail, for the whole batch.",
}


class Counted(Protocol):
    """All calls of a server, as they are counted."""

    tally: Tally

    @property
    def gauges(self) -> Mapping[str, int]:
        """What there is now, by name."""


class Scrape:
    """Answers Prometheus from a thread of its own until closed. LinkError if the port is taken."""

    def __init__(self, port: int, front: Counted) -> None:
        self._front = front
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        try:
            self._server, self._thread = start_http_server(port, HOST, registry)
        except (OSError, OverflowError) as error:
            taken = f"{HOST}:{port} cannot be bound for metrics\nhelp: another port, or 0"
            raise LinkError(taken) from error

    @property
    def address(self) -> str:
        """host:port of the page /metrics."""
        return f"{HOST}:{self._server.server_port}"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        """What the server counted until now."""
        answers = CounterMetricFamily(
            "splitrt_answers", "Answers by status, calls that ended early by code.", labels=["code"]
        )
        for name, count in sorted(self._front.tally.read().items()):
            answers.add_metric([name], count)
        yield answers
        for name, value in self._front.gauges.items():
            yield GaugeMetricFamily(f"splitrt_{name}", f"Now: {name}.", value)
        yield from _families(self._front.tally.figures())


def _families(figures: Mapping[str, Figures]) -> Iterator[Metric]:
    """A model's figures, labelled by its name."""
    taken = CounterMetricFamily("splitrt_payload_bytes", "Of frames.", labels=["model"])
    sizes = HistogramMetricFamily("splitrt_batch_size", "Frames of a batch.", labels=["model"])
    for model, found in figures.items():
        taken.add_metric([model], found.taken)
        _add(sizes, model, found.sizes)
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
