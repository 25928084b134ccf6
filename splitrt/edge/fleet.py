"""Where the servers of a fleet are: its door tells, and so does each of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import grpc

from splitrt.core import packet
from splitrt.edge.trust import Trust
from splitrt.edge.where import host_and_port
from splitrt.errors import LinkDown, LinkError, PacketError, Refused
from splitrt.wire import fleet_pb2 as wire
from splitrt.wire.fleet_pb2_grpc import FleetStub

LARGEST = 64 << 10  # bytes of what is told
LONGEST = 261  # characters of an address
SOCKETS = ("unix:", "unix-abstract:", "vsock:")  # gRPC takes them for no host, whatever follows
MOST = 256  # servers
ATTEMPT = 1.0  # seconds for each that is asked
OTHERS = 3  # replicas that are asked if the door does not answer
OPTIONS = [
    ("grpc.max_receive_message_length", LARGEST),
    ("grpc.use_local_subchannel_pool", 1),
]
REFUSALS = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)


class Fleet:
    """Asks the door, or replicas that it was told of: the door may be gone while they serve."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._told: list[str] = []

    def __call__(self, where: str, trust: Trust) -> Sequence[str]:
        """Addresses, those with least to do first. SplitrtError where nobody tells."""
        name = host_and_port(where, where)[0]
        known = [address for address in self._told if address != where]
        others = self._dice.sample(known, min(OTHERS, len(known)))
        for address in (where, *others):
            try:
                self._told = replicas(address, trust, name=name)
                break
            except LinkError:
                if address == [where, *others][-1]:
                    raise
        return self._told


def replicas(address: str, trust: Trust, *, name: str | None = None) -> list[str]:
    """The servers of a fleet, those with least to do first, as the one at that address tells.

    name: whom its certificate must be for, where that is not the address's host. LinkDown or
    Refused if it does not tell; PacketError for what are no servers.
    """
    with trust.channel(address, OPTIONS, name=name) as channel:
        try:
            known = FleetStub(channel).Replicas(
                wire.Inquiry(), timeout=ATTEMPT, metadata=trust.metadata
            )
        except grpc.RpcError as error:
            raise _named(error, address) from error
    if len(known.replicas) > MOST:
        raise PacketError(f"{address} tells of {len(known.replicas)} servers\nhelp: {MOST} at most")
    shuffled = random.sample(known.replicas, len(known.replicas))  # those that are alike
    order = sorted(shuffled, key=lambda one: (_rounded(one.inflight), one.devices))
    return [_proved(one.address, address) for one in order]


def _rounded(inflight: float) -> float:
    return round(inflight) if math.isfinite(inflight) and inflight >= 0 else math.inf


def _proved(told: str, address: str) -> str:
    fits = len(told) <= LONGEST and not told.startswith(SOCKETS)
    try:
        host_and_port(told, told if fits else "")
    except LinkError:
        shown = packet.told(told[:40])
        raise PacketError(f"{address} tells of a server at {shown!r}\nhelp: host:port") from None
    return told


def _named(error: grpc.RpcError, address: str) -> LinkError:
    code = error.code() if isinstance(error, grpc.Call) else None
    detail = packet.told(error.details() or "") if isinstance(error, grpc.Call) else ""
    if code in REFUSALS:
        return Refused(f"{address}: {detail}")
    if code == grpc.StatusCode.UNAVAILABLE and "handshake failed" in detail:
        return Refused(f"{address}: the TLS handshake failed\nhelp: look at the ca and the name")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return LinkDown(f"{address} is of no fleet\nhelp: name it as it is, without fleet://")
    return LinkDown(f"{address} does not tell of its fleet: {code}")
