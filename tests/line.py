"""A device's stream on bare gRPC: what is sent and what comes back, message by message."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence

import grpc

from splitrt.core import packet
from splitrt.core.manifest import Manifest
from splitrt.wire import tail_pb2 as wire
from splitrt.wire.tail_pb2_grpc import TailStub


class Line:
    """Says Hello, and holds the Welcome. RpcError if the server ends the stream instead."""

    def __init__(
        self,
        address: str,
        manifest: Manifest,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        moves: bool = False,
    ) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.manifest = manifest
        self.channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        self._outbox: queue.SimpleQueue[wire.ToServer | None] = queue.SimpleQueue()
        hello = packet.hello(manifest)
        hello.moves = moves
        self.put(wire.ToServer(hello=hello))
        stub = TailStub(self.channel)
        self.call = stub.Stream(iter(self._outbox.get, None), timeout=120, metadata=metadata)
        try:
            self.welcome = next(self.call).welcome
        except grpc.RpcError:
            self.close()
            raise

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._outbox.put(None)
        self.channel.close()

    def put(self, message: wire.ToServer | None) -> None:
        """None: the device has done."""
        self._outbox.put(message)

    def frame(self, seq: int, slack: float | None = None) -> None:
        """A picture whose codes are all the same."""
        place = [plan.name for plan in self.manifest.plans].index("q8")
        payload = b"\0" + bytes([100]) * self.manifest.widths[-1].elements
        self.put(packet.frame(seq, place, payload, slack))

    def ping(self, seq: int, padding: bytes = b"") -> None:
        self.put(wire.ToServer(ping=wire.Ping(seq=seq, padding=padding)))

    def __iter__(self) -> Iterator[wire.ToEdge]:
        """What comes; ends when the server ends the stream well."""
        return iter(self.call)

    def get(self) -> wire.ToEdge:
        return next(self.call)
