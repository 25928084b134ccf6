"""Where spans arrive: a server of OTLP by gRPC, as OpenTelemetry's collector is one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.conftest import ROOT

CLI = [sys.executable, "-m", "splitrt.cli"]
SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


@dataclass(frozen=True, slots=True)
class Span:
    """One span that arrived. start, end: ns since 1970.  parent: empty for a root."""

    service: str
    name: str
    trace: str
    span: str
    parent: str
    kind: int
    start: int
    end: int
    error: str | None
    attributes: dict[str, Any]


class Collector:
    """What arrived until now, and the environment by which processes find it."""

    def __init__(self, port: int) -> None:
        self.spans: list[Span] = []
        self.environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def of(self, trace: str) -> dict[str, Span]:
        """A trace's spans by their names, each of which it has once."""
        found = [span for span in self.spans if span.trace == trace]
        assert len({span.name for span in found}) == len(found), found
        return {span.name: span for span in found}

    def named(self, name: str, service: str | None = None) -> list[Span]:
        return [s for s in self.spans if s.name == name and service in (None, s.service)]

    def take(self, request: Any) -> None:
        """An ExportTraceServiceRequest."""
        for resource in request.resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [_read(service, span) for span in scope.spans]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="no extra `trace` here")
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp

    def export(request: Any, _: Any) -> Any:
        collector.take(request)
        return otlp.ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        otlp.ExportTraceServiceRequest.FromString,
        otlp.ExportTraceServiceResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Export": handler}),)
    )
    collector = Collector(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def around(**environ: str) -> dict[str, str]:
    paths = ":".join([str(ROOT), *sys.path])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environ}


@contextmanager
def serving(model: Path, *words: str, **environ: str) -> Iterator[str]:
    """`splitrt serve` as a process, its address; ended by SIGTERM, in good order."""
    command = [*CLI, "serve", str(model), "--port", "0", "--threads", "1", *words]
    done = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=around(**environ)
    )
    try:
        found = (re.search(r" at (\S+:\d+)$", line.strip()) for line in done.stdout)
        yield next(filter(None, found)).group(1)
        done.send_signal(signal.SIGTERM)
        assert done.wait(60) == 0
    finally:
        done.kill()
        done.communicate()


def _read(service: str, span: Any) -> Span:
    return Span(
        service=service,
        name=span.name,
        trace=span.trace_id.hex(),
        span=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=span.kind,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        error=span.status.message if span.status.code == 2 else None,
        attributes=_values(span.attributes),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
