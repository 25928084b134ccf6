"""Which trace a frame belongs to, as it travels; and the spans, where their extra is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from splitrt.errors import PacketError, SplitrtError

if TYPE_CHECKING:
    from splitrt.core.spans import Spans

TRACE, SPAN = 16, 8  # bytes
LENGTH = TRACE + SPAN + 1
RECORDED = 1  # the flag's bit: whoever began the trace records it


@dataclass(frozen=True, slots=True)
class Mark:
    """A span of another machine, whose children are made here.

    trace, span: its ids, not all zeros.  flags: those of W3C's Trace Context.
    """

    trace: bytes
    span: bytes
    flags: int = RECORDED

    def packed(self) -> bytes:
        """As a frame carries it."""
        return self.trace + self.span + bytes([self.flags])


def marked(raw: bytes) -> Mark | None:
    """The mark that a frame carries, if any; PacketError if it is none."""
    if not raw:
        return None
    if len(raw) != LENGTH:
        raise PacketError(f"a trace of {len(raw)} bytes, {LENGTH} or none wanted")
    trace, span = raw[:TRACE], raw[TRACE:-1]
    if not any(trace) or not any(span):
        raise PacketError("a trace whose ids are zeros")
    return Mark(trace, span, raw[-1])


def spans() -> Spans:
    """Where spans go: OpenTelemetry's global tracer provider. SplitrtError without the extra."""
    with _extra():
        from splitrt.core.spans import Spans

        return Spans()


@contextlib.contextmanager
def exporting(service: str, wanted: bool = True) -> Iterator[None]:
    """Spans made in the block leave by OTLP, as OpenTelemetry's environment variables say.

    service: its name where they give none.  wanted: if not, nothing is imported.
    """
    with contextlib.ExitStack() as stack:
        if wanted:
            with _extra():
                from splitrt.core import spans
            stack.enter_context(spans.exporting(service))
        yield


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "opentelemetry":
            raise
        raise SplitrtError(
            f"traces need {error.name}\nhelp: pip install 'splitrt[trace]'"
        ) from error
