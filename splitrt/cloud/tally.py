"""What the server answered, counted: frames by their status, calls that ended early by theirs."""

from __future__ import annotations

import copy
import functools
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import grpc

from splitrt.cloud.figures import Figures
from splitrt.wire import tail_pb2 as wire

logger = logging.getLogger(__name__)


class Tally:
    """Counts since the server began; may be used from any thread.

    A frame counts once, by the name of its answer's status (OK, INVALID, …); a call that the
    server ends before its time once more, by its gRPC code's name (INVALID_ARGUMENT, …). What gRPC
    itself turns away, such as a message over the limit, is not seen here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._lessons: Counter[str] = Counter()
        self._figures: dict[str, Figures] = {}
        self._inflight = 0

    def read(self) -> Mapping[str, int]:
        """The counts now, frozen."""
        with self._lock:
            return MappingProxyType(dict(self._counts))

    def figures(self) -> dict[str, Figures]:
        """What the frames of each model took until now; a copy."""
        with self._lock:
            return copy.deepcopy(self._figures)

    @property
    def inflight(self) -> int:
        """Frames that were taken and not answered yet."""
        return self._inflight

    def add(self, name: str) -> None:
        """One more of that name."""
        with self._lock:
            self._counts[name] += 1

    def learnt(self, name: str) -> None:
        """One more of that name of what becomes of samples and revisions: see `lessons`."""
        with self._lock:
            self._lessons[name] += 1

    def lessons(self) -> Mapping[str, int]:
        """Samples taken and dropped; revisions sent, refused by the learner's guard, withdrawn by
        it, reverted by their devices.
        """
        with self._lock:
            return MappingProxyType(dict(self._lessons))

    def awaited(
        self,
        reply: Callable[[wire.Answer], Any],
        models: Sequence[str] = (),
        size: int = 0,
        codec: str = "",
    ) -> Callable[[wire.Answer], None]:
        """`reply` for a frame that begins now; its answer is counted when it comes.

        models: names of those that are to answer it.  size: bytes of its payload.  codec: of
        its plan.
        """
        began = time.monotonic()
        with self._lock:
            self._inflight += 1

        def counted(answer: wire.Answer) -> None:
            seconds = time.monotonic() - began
            with self._lock:
                self._inflight -= 1
                self._counts[wire.Status.Name(answer.status)] += 1
                for model in models:
                    self._figures.setdefault(model, Figures()).add(answer, seconds, size, codec)
            reply(answer)

        return counted

    def guarded(self, handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """A handler whose early ends are counted, and whose own faults tell the peer nothing.

        gRPC would send an uncaught exception's text.
        """

        @functools.wraps(handler)
        async def guarded(request: Any, context: Any) -> Any:
            try:
                return await handler(request, context)
            except grpc.aio.AbortError:
                self.add(context.code().name)
                raise
            except grpc.aio.BaseError:  # the peer is gone
                raise
            except Exception:
                logger.exception("a call failed")
                self.add(grpc.StatusCode.INTERNAL.name)
                await context.abort(grpc.StatusCode.INTERNAL, "the server failed")

        return guarded
