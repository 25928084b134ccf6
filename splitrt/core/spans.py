"""Spans with times of their own, and the way they leave: all of OpenTelemetry that is used."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from splitrt.core.trace import SPAN, TRACE, Mark

LAST = 2.0  # seconds for the last spans to leave
KINDS = {
    "link": SpanKind.CLIENT,
    "server": SpanKind.SERVER,
}


class Spans:
    """Makes spans where OpenTelemetry's global tracer provider wants them.

    Times are nanoseconds since 1970 by the clock of the machine that makes the span.
    """

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("splitrt")

    def begin(
        self,
        name: str,
        at: int,
        parent: Span | Mark | None = None,
        attributes: Mapping[str, str | int | float] | None = None,
    ) -> Span:
        """A span that began then; without a parent it is the root of a trace of its own."""
        around = Context()
        if parent is not None:
            above = _remote(parent) if isinstance(parent, Mark) else parent
            around = trace.set_span_in_context(above, around)
        kind = KINDS.get(name, SpanKind.INTERNAL)
        return self._tracer.start_span(name, around, kind, attributes, start_time=at)

    def add(self, name: str, at: int, until: int, parent: Span) -> None:
        """A span that is over already."""
        self.begin(name, at, parent).end(until)

    def end(self, span: Span, until: int, wrong: str | None = None) -> None:
        """It ended then.  wrong: why it failed, if it did."""
        if wrong is not None:
            span.set_status(Status(StatusCode.ERROR, wrong))
        span.end(until)

    def mark(self, span: Span) -> Mark | None:
        """What a frame carries for the span's children elsewhere; None if it is not recorded."""
        context = span.get_span_context()
        if not (context.is_valid and context.trace_flags.sampled):
            return None
        trace_id = context.trace_id.to_bytes(TRACE, "big")
        return Mark(trace_id, context.span_id.to_bytes(SPAN, "big"), context.trace_flags)

    def carried(self, header: str) -> Mark | None:
        """The mark in a `traceparent` header; None if it is none, or of what is not recorded."""
        found = TraceContextTextMapPropagator().extract({"traceparent": header}, Context())
        return self.mark(trace.get_current_span(found))


@contextlib.contextmanager
def exporting(service: str) -> Iterator[None]:
    """The global tracer provider sends by OTLP until the block ends, and LAST seconds more at most.

    Endpoint, sampler, name, sizes of queues are OpenTelemetry's environment variables'
    (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_BSP_…). Spans wait in
    a bounded queue for a thread of its own; those that find it full are dropped.
    """
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    exporter = OTLPSpanExporter()
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        giving_up = threading.Timer(LAST, exporter.shutdown)  # by itself it tries for 30 s
        giving_up.daemon = True
        giving_up.start()
        provider.shutdown()
        giving_up.cancel()


def _remote(mark: Mark) -> Span:
    context = trace.SpanContext(
        int.from_bytes(mark.trace, "big"),
        int.from_bytes(mark.span, "big"),
        is_remote=True,
        trace_flags=trace.TraceFlags(mark.flags),
    )
    return trace.NonRecordingSpan(context)
