"""The Open Inference Protocol: stock clients ask the tail, by the way that devices' frames go."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable
from importlib import metadata
from typing import Any

import grpc

from splitrt.cloud import oip
from splitrt.cloud.asked import frames, opened, response, wanted
from splitrt.cloud.batch import LONGEST_WAIT
from splitrt.cloud.face import VERSION, Face, faces
from splitrt.cloud.figures import Batches, Figures
from splitrt.cloud.front import Front
from splitrt.cloud.reception import IDLE
from splitrt.cloud.tail import Tail
from splitrt.core.packet import LONGEST_SLACK_US, reader
from splitrt.errors import PacketError
from splitrt.wire import tail_pb2 as wire

PLATFORM = "splitrt"
EXTENSIONS = ("model_configuration", "statistics")
CODES = {
    wire.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    wire.BUSY: grpc.StatusCode.UNAVAILABLE,
    wire.EXPIRED: grpc.StatusCode.DEADLINE_EXCEEDED,
    wire.STALE: grpc.StatusCode.UNAVAILABLE,
}


class Declined(Exception):
    """A request that gets no answer: a status and why. counted: its frames are in the tally."""

    def __init__(self, code: grpc.StatusCode, words: str, *, counted: bool = False) -> None:
        super().__init__(words)
        self.code, self.counted = code, counted


class Stock:
    """All calls of stock clients. Everything here runs on the server's loop."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self._of: Tail | None = None

    @property
    def faces(self) -> dict[str, Face]:
        """The models as they are served now."""
        if self._of is not self.front.batcher.tail:
            self._of = self.front.batcher.tail
            self._faces = faces(self._of, self.front.max_inflight, self.front.room)
        return self._faces

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's calls: ServerLive is `_server_live`, and so on."""
        found = {}
        for method in oip.methods():
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method.name).lower()
            kind = grpc.unary_unary_rpc_method_handler
            if method.client_streaming:
                kind = grpc.stream_stream_rpc_method_handler
            found[method.name] = kind(
                self.front.tally.guarded(getattr(self, f"_{name}")),
                reader(oip.of(method.input_type)),
                oip.of(method.output_type).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(oip.SERVICE, found)

    async def _server_live(self, _: Any, context: Any) -> Any:
        await self.front.known(context)
        return oip.message("ServerLiveResponse")(live=True)

    async def _server_ready(self, _: Any, context: Any) -> Any:
        await self.front.known(context)
        return oip.message("ServerReadyResponse")(ready=not self.front.closing)

    async def _model_ready(self, request: Any, context: Any) -> Any:
        await self.front.known(context)
        await self._named(request, context)
        return oip.message("ModelReadyResponse")(ready=not self.front.closing)

    async def _server_metadata(self, _: Any, context: Any) -> Any:
        await self.front.enter(context)
        return oip.message("ServerMetadataResponse")(
            name=PLATFORM, version=metadata.version("splitrt"), extensions=EXTENSIONS
        )

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        await self.front.enter(context)
        face = await self._named(request, context)
        made = oip.message("ModelMetadataResponse")(
            name=request.name, versions=[VERSION], platform=PLATFORM
        )
        for slots, there in ((face.inputs, made.inputs), (face.outputs, made.outputs)):
            for slot in slots:
                there.add(name=slot.name, datatype=slot.datatype, shape=[-1, *slot.dims])
        return made

    async def _model_config(self, request: Any, context: Any) -> Any:
        await self.front.enter(context)
        face = await self._named(request, context)
        made = oip.message("ModelConfig")(
            name=request.name, platform=PLATFORM, backend=PLATFORM, max_batch_size=face.most
        )
        made.dynamic_batching.max_queue_delay_microseconds = int(1e6 * LONGEST_WAIT)
        for slots, there in ((face.inputs, made.input), (face.outputs, made.output)):
            for slot in slots:
                there.add(name=slot.name, data_type=slot.type, dims=slot.dims)
        return oip.message("ModelConfigResponse")(config=made)

    async def _repository_index(self, _: Any, context: Any) -> Any:
        """All models there are; which of them are ready changes for all at once."""
        await self.front.enter(context)
        made = oip.message("RepositoryIndexResponse")()
        for name in self.faces:
            made.models.add(name=name, version=VERSION, state="READY")
        return made

    async def _model_statistics(self, request: Any, context: Any) -> Any:
        """Of devices' frames and of stock clients' rows together."""
        await self.front.enter(context)
        names = list(self.faces)
        if request is None or request.name:
            await self._named(request, context)
            names = [request.name]
        figures = self.front.tally.figures()
        return oip.message("ModelStatisticsResponse")(
            model_stats=[statistics(name, figures.get(name, Figures())) for name in names]
        )

    async def _model_infer(self, request: Any, context: Any) -> Any:
        device = await self.front.enter(context)
        try:
            trace = self.front.carried(context)
            return await self._asked(request, device, context.time_remaining(), trace)
        except Declined as declined:
            context.set_code(declined.code)
            context.set_details(str(declined))
            return oip.message("ModelInferResponse")()

    async def _model_stream_infer(self, _: Any, context: Any) -> None:
        """One request after the other; what is declined does not end the stream."""
        device = await self.front.enter(context)
        kind, answer = oip.message("ModelInferRequest"), oip.message("ModelStreamInferResponse")
        trace = self.front.carried(context)
        while isinstance(request := await _soon(context.read(), context), kind):
            try:
                made = answer(infer_response=await self._asked(request, device, None, trace))
            except Declined as declined:
                made = answer(error_message=str(declined))
                made.infer_response.id = request.id
            await _soon(context.write(made), context)
        if request is None:
            words = "not a ModelInferRequest"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)

    async def _named(self, request: Any, context: Any) -> Face:
        """The model that a request names."""
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a request of this call")
        try:
            return self._found(request.name, request.version)
        except Declined as declined:
            await context.abort(declined.code, str(declined))
            raise

    def _found(self, name: str, version: str) -> Face:
        if name not in self.faces or version not in ("", VERSION):
            words = f"no such model\nhelp: {', '.join(self.faces)}, version {VERSION}"
            raise Declined(grpc.StatusCode.NOT_FOUND, words)
        return self.faces[name]

    async def _asked(self, request: Any, device: str, remaining: float | None, trace: bytes) -> Any:
        """The response to a request; Declined, and in the tally, if there is none."""
        try:
            return await self._answered(request, device, remaining, trace)
        except Declined as declined:
            if not declined.counted:
                self.front.tally.add(declined.code.name)
            raise

    async def _answered(
        self, request: Any, device: str, remaining: float | None, trace: bytes
    ) -> Any:
        if request is None:
            raise Declined(grpc.StatusCode.INVALID_ARGUMENT, "not a ModelInferRequest")
        if self.front.closing:
            raise Declined(grpc.StatusCode.UNAVAILABLE, "the server is closing")
        face = self._found(request.model_name, request.model_version)
        claimed = max((tensor.shape[0] for tensor in request.inputs[:1] if tensor.shape), default=1)
        rows = min(max(claimed, 1), face.most)
        size = request.ByteSize()
        if retry_ms := self.front.over_quota(device, size, time.monotonic(), rows):
            words = f"more than this client's quota; again after {retry_ms} ms"
            raise Declined(grpc.StatusCode.RESOURCE_EXHAUSTED, words)
        try:
            places = wanted(face, request)
            asked = frames(face, request, slack_us(request.parameters, remaining))
        except PacketError as error:
            raise Declined(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        for frame in asked:
            frame.trace = trace
        pixels = opened(face, request)
        answers = await self.front.answers(asked, (face.digest,), opened=pixels)
        for answer in answers:
            if answer.status != wire.OK:
                code = CODES.get(answer.status, grpc.StatusCode.INTERNAL)
                raise Declined(code, answer.detail, counted=True)
        return response(face, request, places, answers)


async def _soon(moving: Awaitable[Any], context: Any) -> Any:
    """A message that comes or goes; the call ends if it stands still."""
    try:
        return await asyncio.wait_for(moving, IDLE)
    except asyncio.TimeoutError:
        words = f"nothing came or was read for {IDLE:.0f} s"
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, words)


def slack_us(parameters: Any, remaining: float | None) -> int:
    """The time a request has: its `timeout` and the call's own deadline; 0: no end.

    remaining: seconds.
    """
    ends = [] if remaining is None else [int(1e6 * remaining)]
    if "timeout" in parameters:
        given = parameters["timeout"]
        kind = given.WhichOneof("parameter_choice")
        if kind not in ("int64_param", "uint64_param") or getattr(given, kind) < 0:
            raise PacketError("parameter 'timeout' is no number of microseconds")
        ends += [getattr(given, kind)] if getattr(given, kind) else []
    return min(max(min(ends), 1), LONGEST_SLACK_US) if ends else 0


def statistics(name: str, figures: Figures) -> Any:
    """A model's figures as a ModelStatistics: seconds add up row by row."""
    made = oip.message("ModelStatistics")(
        name=name,
        version=VERSION,
        last_inference=int(1000 * figures.last),
        inference_count=figures.answered,
        execution_count=figures.runs,
    )
    stats, rest = made.inference_stats, figures.total.sum
    _duration(stats.success, figures.answered, figures.total.sum)
    _duration(stats.fail, figures.failed, figures.failed_s)
    for there, part in (
        (stats.queue, figures.queue),
        (stats.compute_input, figures.open),
        (stats.compute_infer, figures.compute),
    ):
        _duration(there, figures.answered, part.sum)
        rest -= part.sum
    _duration(stats.compute_output, figures.answered, max(0.0, rest))
    for size, found in sorted(figures.batches.items()):
        _batch(made.batch_stats.add(batch_size=size), size, found)
    return made


def _batch(there: Any, size: int, found: Batches) -> None:
    runs = round(found.frames / size)
    _duration(there.compute_input, runs, found.open_us / 1e6 / size)
    _duration(there.compute_infer, runs, found.compute_us / 1e6 / size)


def _duration(there: Any, count: int, seconds: float) -> None:
    there.count, there.ns = count, int(1e9 * seconds)
