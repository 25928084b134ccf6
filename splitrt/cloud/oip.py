"""The Open Inference Protocol's messages, in a pool of their own.

Protobuf knows a message by its full name, and clients bring the same names in files of theirs:
both in the default pool would not go into one process.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool

import splitrt.wire

FILE = "oip.binpb"
SERVICE = "inference.GRPCInferenceService"


@functools.cache
def files() -> tuple[Any, ...]:
    """The descriptors of the files, as protoc wrote them."""
    raw = (Path(splitrt.wire.__file__).parent / FILE).read_bytes()
    return tuple(descriptor_pb2.FileDescriptorSet.FromString(raw).file)


@functools.cache
def pool() -> DescriptorPool:
    """Where the messages are known."""
    found = DescriptorPool()
    for file in files():
        found.AddSerializedFile(file.SerializeToString())
    return found


def message(name: str) -> Any:
    """The class of a message by its name in the package."""
    return of(pool().FindMessageTypeByName(f"inference.{name}"))


def of(descriptor: Any) -> Any:
    """The class of a message by its descriptor; always the same one."""
    return message_factory.GetMessageClass(descriptor)


def methods() -> Any:
    """The service's methods: name, input_type, output_type, client_streaming."""
    return pool().FindServiceByName(SERVICE).methods
