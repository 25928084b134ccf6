from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Inquiry(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Known(_message.Message):
    __slots__ = ("replicas",)
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    def __init__(self, replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("address", "models", "inflight", "devices")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    address: str
    models: _containers.RepeatedCompositeFieldContainer[Served]
    inflight: float
    devices: int
    def __init__(self, address: _Optional[str] = ..., models: _Optional[_Iterable[_Union[Served, _Mapping]]] = ..., inflight: _Optional[float] = ..., devices: _Optional[int] = ...) -> None: ...

class Served(_message.Message):
    __slots__ = ("name", "manifest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    manifest: bytes
    def __init__(self, name: _Optional[str] = ..., manifest: _Optional[bytes] = ...) -> None: ...
