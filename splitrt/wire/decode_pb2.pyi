from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NO_REASON: _ClassVar[Reason]
    HOLE: _ClassVar[Reason]
    NOT_FOUND: _ClassVar[Reason]
    EXPIRED_SESSION: _ClassVar[Reason]
    NO_MEMORY: _ClassVar[Reason]
    LENGTH: _ClassVar[Reason]
    MALFORMED: _ClassVar[Reason]
    CANCELLED_ASK: _ClassVar[Reason]
    SERVER_FAILED: _ClassVar[Reason]
NO_REASON: Reason
HOLE: Reason
NOT_FOUND: Reason
EXPIRED_SESSION: Reason
NO_MEMORY: Reason
LENGTH: Reason
MALFORMED: Reason
CANCELLED_ASK: Reason
SERVER_FAILED: Reason

class Open(_message.Message):
    __slots__ = ("protocol", "manifest", "resume", "codec", "max_len", "seed", "temperature", "top_p", "moves")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    MAX_LEN_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    manifest: bytes
    resume: str
    codec: str
    max_len: int
    seed: int
    temperature: float
    top_p: float
    moves: bool
    def __init__(self, protocol: _Optional[int] = ..., manifest: _Optional[bytes] = ..., resume: _Optional[str] = ..., codec: _Optional[str] = ..., max_len: _Optional[int] = ..., seed: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., moves: bool = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("protocol", "manifest", "sid", "moves")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SID_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    manifest: bytes
    sid: bytes
    moves: bool
    def __init__(self, protocol: _Optional[int] = ..., manifest: _Optional[bytes] = ..., sid: _Optional[bytes] = ..., moves: bool = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("sid", "n", "gen", "log", "max_rows", "max_drafts", "max_inflight", "ttl_s")
    SID_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    GEN_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    MAX_INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    sid: bytes
    n: int
    gen: int
    log: bytes
    max_rows: int
    max_drafts: int
    max_inflight: int
    ttl_s: int
    def __init__(self, sid: _Optional[bytes] = ..., n: _Optional[int] = ..., gen: _Optional[int] = ..., log: _Optional[bytes] = ..., max_rows: _Optional[int] = ..., max_drafts: _Optional[int] = ..., max_inflight: _Optional[int] = ..., ttl_s: _Optional[int] = ...) -> None: ...

class Append(_message.Message):
    __slots__ = ("gen", "start", "rows", "payload")
    GEN_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    gen: int
    start: int
    rows: int
    payload: bytes
    def __init__(self, gen: _Optional[int] = ..., start: _Optional[int] = ..., rows: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("seq", "gen", "start", "rows", "payload", "drafts")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    GEN_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    gen: int
    start: int
    rows: int
    payload: bytes
    drafts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, seq: _Optional[int] = ..., gen: _Optional[int] = ..., start: _Optional[int] = ..., rows: _Optional[int] = ..., payload: _Optional[bytes] = ..., drafts: _Optional[_Iterable[int]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("seq", "gen", "n", "accepted", "token", "confidence", "queue_us", "verify_us", "batch", "waiting")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    GEN_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    VERIFY_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    seq: int
    gen: int
    n: int
    accepted: int
    token: int
    confidence: float
    queue_us: int
    verify_us: int
    batch: int
    waiting: int
    def __init__(self, seq: _Optional[int] = ..., gen: _Optional[int] = ..., n: _Optional[int] = ..., accepted: _Optional[int] = ..., token: _Optional[int] = ..., confidence: _Optional[float] = ..., queue_us: _Optional[int] = ..., verify_us: _Optional[int] = ..., batch: _Optional[int] = ..., waiting: _Optional[int] = ...) -> None: ...

class Truncate(_message.Message):
    __slots__ = ("gen", "n")
    GEN_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    gen: int
    n: int
    def __init__(self, gen: _Optional[int] = ..., n: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("seq",)
    SEQ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    def __init__(self, seq: _Optional[int] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Nack(_message.Message):
    __slots__ = ("seq", "reason", "n", "gen", "retry_ms", "detail")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    GEN_FIELD_NUMBER: _ClassVar[int]
    RETRY_MS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    seq: int
    reason: Reason
    n: int
    gen: int
    retry_ms: int
    detail: str
    def __init__(self, seq: _Optional[int] = ..., reason: _Optional[_Union[Reason, str]] = ..., n: _Optional[int] = ..., gen: _Optional[int] = ..., retry_ms: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("seq",)
    SEQ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    def __init__(self, seq: _Optional[int] = ...) -> None: ...

class ToDecoder(_message.Message):
    __slots__ = ("open", "resume", "append", "ask", "truncate", "cancel", "close", "beat")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    open: Open
    resume: Resume
    append: Append
    ask: Ask
    truncate: Truncate
    cancel: Cancel
    close: Close
    beat: Beat
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., append: _Optional[_Union[Append, _Mapping]] = ..., ask: _Optional[_Union[Ask, _Mapping]] = ..., truncate: _Optional[_Union[Truncate, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ...) -> None: ...

class FromDecoder(_message.Message):
    __slots__ = ("opened", "verdict", "nack", "beat", "leave")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    NACK_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    verdict: Verdict
    nack: Nack
    beat: Beat
    leave: bool
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., nack: _Optional[_Union[Nack, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., leave: bool = ...) -> None: ...
