"""What a server tells others than devices; by gRPC reflection, which messages it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from splitrt.cloud import oip
from splitrt.wire import adapt_pb2, decode_pb2, tail_pb2


@dataclass(frozen=True, slots=True)
class Seen:
    """What a server tells others than devices.

    metrics: the port where Prometheus reads its figures, and probes whether it is well; 0 for a
    free one.  reflection: gRPC's, of the services it has.  host: of that port; others than this
    machine read it only if it says so.
    traces: spans of frames that belong to a trace, to OpenTelemetry's global tracer provider.
    """

    metrics: int | None = None
    reflection: bool = False
    host: str = "127.0.0.1"
    traces: bool = False


def reflect(server: grpc.aio.Server, *, language: bool, adapt: bool = False) -> None:
    """Let clients without our .proto files, such as grpcurl, ask for them; everybody may."""
    ours = decode_pb2 if language else tail_pb2
    known = [_file(module) for module in (ours, health_pb2, reflection_pb2)]
    known += [] if language else oip.files()
    known += [_file(adapt_pb2)] if adapt else []
    pool = DescriptorPool()
    for file in known:
        pool.AddSerializedFile(file.SerializeToString())
    names = [f"{file.package}.{service.name}" for file in known for service in file.service]
    reflection.enable_server_reflection(names, server, pool)


def _file(module: Any) -> Any:
    found = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(found)
    return found
