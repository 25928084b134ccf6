from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Nothing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Which(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("model", "plan")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    model: str
    plan: str
    def __init__(self, model: _Optional[str] = ..., plan: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "manifest", "plan", "deadline")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    name: str
    manifest: bytes
    plan: str
    deadline: float
    def __init__(self, name: _Optional[str] = ..., manifest: _Optional[bytes] = ..., plan: _Optional[str] = ..., deadline: _Optional[float] = ...) -> None: ...

class Array(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Question(_message.Message):
    __slots__ = ("model", "inputs", "age_us", "name", "inflight")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    AGE_US_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    model: str
    inputs: _containers.RepeatedCompositeFieldContainer[Array]
    age_us: int
    name: str
    inflight: int
    def __init__(self, model: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Array, _Mapping]]] = ..., age_us: _Optional[int] = ..., name: _Optional[str] = ..., inflight: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("capture", "head", "gate", "codec", "link", "server", "batch", "tail", "total")
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    capture: float
    head: float
    gate: float
    codec: float
    link: float
    server: float
    batch: float
    tail: float
    total: float
    def __init__(self, capture: _Optional[float] = ..., head: _Optional[float] = ..., gate: _Optional[float] = ..., codec: _Optional[float] = ..., link: _Optional[float] = ..., server: _Optional[float] = ..., batch: _Optional[float] = ..., tail: _Optional[float] = ..., total: _Optional[float] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("frame", "index", "outputs", "where", "plan", "reason", "confidence", "timings", "sent_bytes", "missed", "size", "revision")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    frame: str
    index: int
    outputs: _containers.RepeatedCompositeFieldContainer[Array]
    where: str
    plan: str
    reason: str
    confidence: float
    timings: Timings
    sent_bytes: int
    missed: int
    size: _containers.RepeatedScalarFieldContainer[int]
    revision: int
    def __init__(self, frame: _Optional[str] = ..., index: _Optional[int] = ..., outputs: _Optional[_Iterable[_Union[Array, _Mapping]]] = ..., where: _Optional[str] = ..., plan: _Optional[str] = ..., reason: _Optional[str] = ..., confidence: _Optional[float] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., sent_bytes: _Optional[int] = ..., missed: _Optional[int] = ..., size: _Optional[_Iterable[int]] = ..., revision: _Optional[int] = ...) -> None: ...

class Changes(_message.Message):
    __slots__ = ("lines",)
    LINES_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lines: _Optional[_Iterable[str]] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...
