"""The server's part of a frame's trace: `server` from its arrival to its answer, batch and tail."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from splitrt.core.trace import RECORDED, Mark, marked, spans
from splitrt.errors import PacketError
from splitrt.wire import tail_pb2 as wire

if TYPE_CHECKING:
    from splitrt.core.spans import Spans

HEADER = "traceparent"  # W3C's
Reply = Callable[[wire.Answer], Any]


class Tracer:
    """Makes spans of the frames that say which trace they belong to; of no others.

    All by this machine's clock. What `server` took beside batch and tail is checking and
    decompressing, of the whole batch. SplitrtError without the extra `trace`.
    """

    def __init__(self) -> None:
        self._spans: Spans = spans()

    def carried(self, context: Any) -> bytes:
        """What the metadata of a call say for a frame's field `trace`; a wrong header is none."""
        found = next((value for key, value in context.invocation_metadata() if key == HEADER), "")
        mark = self._spans.carried(found) if isinstance(found, str) else None
        return b"" if mark is None else mark.packed()

    def followed(self, reply: Reply, trace: bytes, models: Sequence[str]) -> Reply:
        """`reply` for a frame that begins now; its spans are made when its answer has gone."""
        try:
            mark = marked(trace)
        except PacketError:  # whoever admits the frame says so
            return reply
        if mark is None or not mark.flags & RECORDED:
            return reply
        began = time.time_ns()

        def told(answer: wire.Answer) -> None:
            reply(answer)
            self._tell(mark, answer, began, models)

        return told

    def _tell(self, mark: Mark, answer: wire.Answer, began: int, models: Sequence[str]) -> None:
        about = {
            "splitrt.model": ",".join(models),
            "splitrt.status": wire.Status.Name(answer.status),
        }
        server = self._spans.begin("server", began, mark, about)
        if answer.status != wire.OK:
            self._spans.end(server, time.time_ns(), answer.detail)
            return
        server.set_attribute("splitrt.batch_size", answer.batch)
        run = began + 1000 * answer.queue_us
        ready = run + 1000 * answer.open_us
        self._spans.add("batch", began, run, server)
        self._spans.add("tail", ready, ready + 1000 * answer.compute_us, server)
        self._spans.end(server, max(time.time_ns(), ready + 1000 * answer.compute_us))
