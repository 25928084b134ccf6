"""Devices ask a server where all servers of its fleet are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import grpc

from splitrt.cloud.tally import Tally
from splitrt.core.packet import reader
from splitrt.wire import fleet_pb2 as wire

SERVICE = "splitrt.wire.Fleet"
MOST = 256  # replicas of an answer

Peers: TypeAlias = Callable[[], Sequence[wire.Replica]]
Known: TypeAlias = Callable[[Any], Awaitable[str]]  # a device's name, or the call ends


def handlers(peers: Peers, known: Known, tally: Tally) -> grpc.GenericRpcHandler:
    """The service's one call.

    peers: who serves now.  known: lets a device in.
    """

    async def replicas(request: wire.Inquiry | None, context: Any) -> wire.Known:
        await known(context)
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not an Inquiry")
        return wire.Known(replicas=peers()[:MOST])

    call = grpc.unary_unary_rpc_method_handler(
        tally.guarded(replicas), reader(wire.Inquiry), wire.Known.SerializeToString
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"Replicas": call})
