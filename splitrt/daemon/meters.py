"""What Prometheus reads: frames by camera, plan, place and cause; times, bytes, links, process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from splitrt.daemon.seen import Seen
from splitrt.daemon.shelf import Resident
from splitrt.daemon.watch import Watch

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
STAGES = ("head", "link", "total")


class Meters:
    """Labels are names of the configuration and of plans, so they are bounded."""

    def __init__(
        self,
        residents: Callable[[], Mapping[str, Resident]],
        watches: Callable[[], Mapping[str, Watch]],
        counts: Callable[[], Mapping[str, float]],
    ) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._frames = Counter(
            "splitrt_frames", "Frames by how they ended.",
            ["camera", "model", "plan", "where", "cause"], registry=self._registry,
        )  # fmt: skip
        self._bytes = Counter(
            "splitrt_sent_bytes", "Bytes of messages to servers.",
            ["camera", "model"], registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "splitrt_frame_seconds", "Head, way there and back, and all from capture to result.",
            ["camera", "stage"], registry=self._registry, buckets=SECONDS,
        )  # fmt: skip
        self._registry.register(Gauges(residents, watches, counts))

    def saw(self, seen: Seen) -> None:
        """Count a frame's end."""
        result = seen.result
        where = result.where or "none"
        self._frames.labels(seen.camera, seen.model, result.plan, where, seen.cause).inc()
        self._bytes.labels(seen.camera, seen.model).inc(result.sent_bytes)
        for stage in STAGES:
            milliseconds = getattr(result.timings, stage)
            if milliseconds:
                self._seconds.labels(seen.camera, stage).observe(milliseconds / 1000)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)


class Gauges:
    """What is read when it is asked for: a collector of prometheus_client's."""

    def __init__(
        self,
        residents: Callable[[], Mapping[str, Resident]],
        watches: Callable[[], Mapping[str, Watch]],
        counts: Callable[[], Mapping[str, float]],
    ) -> None:
        self._residents, self._watches, self._counts = residents, watches, counts

    def collect(self) -> Iterator[Metric]:
        """prometheus_client calls it."""
        up = GaugeMetricFamily("splitrt_link_up", "1: a server is reached.", labels=["model"])
        rtt = GaugeMetricFamily(
            "splitrt_link_rtt_seconds", "Round trip, as it is believed.", labels=["model"]
        )
        rate = GaugeMetricFamily(
            "splitrt_link_bytes_per_second", "Uplink, as it is believed.", labels=["model"]
        )
        server = GaugeMetricFamily(
            "splitrt_server_seconds", "Queue and tail, as it is believed.", labels=["model"]
        )
        revision = GaugeMetricFamily(
            "splitrt_exit_revision", "Of the exit, in use; 0: as shipped.", labels=["model"]
        )
        for name, resident in self._residents().items():
            revision.add_metric([name], resident.edge.revision)
            reached, estimate = resident.edge.up, resident.edge.estimate
            if reached is not None:
                up.add_metric([name], float(reached))
            if estimate is not None:
                rtt.add_metric([name], estimate.rtt)
                rate.add_metric([name], math.exp(min(estimate.mu, 100.0)))
                server.add_metric([name], estimate.server)
        yield from (up, rtt, rate, server, revision)
        yield from self._cameras()
        for name, value in self._counts().items():
            told = GaugeMetricFamily(f"splitrt_{name}", name.replace("_", " ").capitalize() + ".")
            told.add_metric([], value)
            yield told

    def _cameras(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("splitrt_camera_up", "1: it gives frames.", labels=["camera"])
        opened = GaugeMetricFamily(
            "splitrt_camera_opened", "How often it was opened.", labels=["camera"]
        )
        for name, watch in self._watches().items():
            running.add_metric([name], float(watch.state == "running"))
            opened.add_metric([name], watch.opened)
        yield from (running, opened)
