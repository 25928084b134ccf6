from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNSPECIFIED: _ClassVar[Status]
    OK: _ClassVar[Status]
    INVALID: _ClassVar[Status]
    BUSY: _ClassVar[Status]
    EXPIRED: _ClassVar[Status]
    FAILED: _ClassVar[Status]
    NEED_KEY: _ClassVar[Status]
    STALE: _ClassVar[Status]
UNSPECIFIED: Status
OK: Status
INVALID: Status
BUSY: Status
EXPIRED: Status
FAILED: Status
NEED_KEY: Status
STALE: Status

class Hello(_message.Message):
    __slots__ = ("protocol", "model", "manifest", "also", "temporal", "moves")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ALSO_FIELD_NUMBER: _ClassVar[int]
    TEMPORAL_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    model: str
    manifest: bytes
    also: _containers.RepeatedScalarFieldContainer[bytes]
    temporal: bool
    moves: bool
    def __init__(self, protocol: _Optional[int] = ..., model: _Optional[str] = ..., manifest: _Optional[bytes] = ..., also: _Optional[_Iterable[bytes]] = ..., temporal: bool = ..., moves: bool = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "max_inflight", "bases")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MAX_INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    BASES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    max_inflight: int
    bases: int
    def __init__(self, protocol: _Optional[int] = ..., max_inflight: _Optional[int] = ..., bases: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("seq", "plan", "payload", "slack_us", "base", "size", "side", "trace")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SLACK_US_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    plan: int
    payload: bytes
    slack_us: int
    base: int
    size: _containers.RepeatedScalarFieldContainer[int]
    side: _containers.RepeatedScalarFieldContainer[bytes]
    trace: bytes
    def __init__(self, seq: _Optional[int] = ..., plan: _Optional[int] = ..., payload: _Optional[bytes] = ..., slack_us: _Optional[int] = ..., base: _Optional[int] = ..., size: _Optional[_Iterable[int]] = ..., side: _Optional[_Iterable[bytes]] = ..., trace: _Optional[bytes] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("shape", "data")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("seq", "status", "outputs", "queue_us", "compute_us", "batch", "detail", "retry_after_ms", "open_us", "waiting")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    OPEN_US_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    seq: int
    status: Status
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    queue_us: int
    compute_us: int
    batch: int
    detail: str
    retry_after_ms: int
    open_us: int
    waiting: int
    def __init__(self, seq: _Optional[int] = ..., status: _Optional[_Union[Status, str]] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., batch: _Optional[int] = ..., detail: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., open_us: _Optional[int] = ..., waiting: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("seq", "padding")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    seq: int
    padding: bytes
    def __init__(self, seq: _Optional[int] = ..., padding: _Optional[bytes] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("seq", "waiting")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    seq: int
    waiting: int
    def __init__(self, seq: _Optional[int] = ..., waiting: _Optional[int] = ...) -> None: ...

class ToServer(_message.Message):
    __slots__ = ("hello", "frame", "ping")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    frame: Frame
    ping: Ping
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ...) -> None: ...

class ToEdge(_message.Message):
    __slots__ = ("welcome", "answer", "pong", "leave")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    answer: Answer
    pong: Pong
    leave: bool
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., leave: bool = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("hello", "frame")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    frame: Frame
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ...) -> None: ...
