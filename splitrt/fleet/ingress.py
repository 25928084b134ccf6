"""The Open Inference Protocol on Ray's gRPC ingress: whole messages pass through, unread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2

import splitrt.wire

IMPORTED = "splitrt.fleet.ingress.add"  # what Ray's proxies import


@dataclass(frozen=True, slots=True)
class Raw:
    """A message as it came, for Ray, which writes it."""

    content: bytes

    def SerializeToString(self) -> bytes:
        """The message."""
        return self.content


def methods() -> tuple[str, dict[str, bool]]:
    """The service's name; whether each of its methods is a stream, both ways."""
    raw = (Path(splitrt.wire.__file__).parent / "oip.binpb").read_bytes()
    [file] = descriptor_pb2.FileDescriptorSet.FromString(raw).file
    [service] = file.service
    streams = {method.name: method.client_streaming for method in service.method}
    return f"{file.package}.{service.name}", streams


def add(servicer: Any, server: Any) -> None:
    """Called in each of Ray's proxies, which routes what comes to the replica's method of the name.

    Without serializers, so that bytes stay bytes.
    """
    service, streams = methods()
    found = {}
    for name, stream in streams.items():
        kind = grpc.stream_stream_rpc_method_handler if stream else None
        kind = kind or grpc.unary_unary_rpc_method_handler
        found[name] = kind(getattr(servicer, name))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, found),))
