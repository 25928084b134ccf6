from splitrt.wire import tail_pb2 as _tail_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Start(_message.Message):
    __slots__ = ("hello", "width", "used", "seen", "tail")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    hello: _tail_pb2.Hello
    width: str
    used: int
    seen: int
    tail: bytes
    def __init__(self, hello: _Optional[_Union[_tail_pb2.Hello, _Mapping]] = ..., width: _Optional[str] = ..., used: _Optional[int] = ..., seen: _Optional[int] = ..., tail: _Optional[bytes] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("protocol", "rate", "unread", "tail")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    rate: int
    unread: int
    tail: bytes
    def __init__(self, protocol: _Optional[int] = ..., rate: _Optional[int] = ..., unread: _Optional[int] = ..., tail: _Optional[bytes] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("seq", "plan", "payload", "logits", "level")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    seq: int
    plan: int
    payload: bytes
    logits: bytes
    level: bytes
    def __init__(self, seq: _Optional[int] = ..., plan: _Optional[int] = ..., payload: _Optional[bytes] = ..., logits: _Optional[bytes] = ..., level: _Optional[bytes] = ...) -> None: ...

class Taken(_message.Message):
    __slots__ = ("seq",)
    SEQ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    def __init__(self, seq: _Optional[int] = ...) -> None: ...

class Revision(_message.Message):
    __slots__ = ("number", "width", "sha256", "body")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    number: int
    width: str
    sha256: bytes
    body: bytes
    def __init__(self, number: _Optional[int] = ..., width: _Optional[str] = ..., sha256: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...

class Dropped(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class ToTeacher(_message.Message):
    __slots__ = ("start", "sample", "dropped")
    START_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    start: Start
    sample: Sample
    dropped: Dropped
    def __init__(self, start: _Optional[_Union[Start, _Mapping]] = ..., sample: _Optional[_Union[Sample, _Mapping]] = ..., dropped: _Optional[_Union[Dropped, _Mapping]] = ...) -> None: ...

class ToPupil(_message.Message):
    __slots__ = ("ready", "taken", "revision")
    READY_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ready: Ready
    taken: Taken
    revision: Revision
    def __init__(self, ready: _Optional[_Union[Ready, _Mapping]] = ..., taken: _Optional[_Union[Taken, _Mapping]] = ..., revision: _Optional[_Union[Revision, _Mapping]] = ...) -> None: ...
