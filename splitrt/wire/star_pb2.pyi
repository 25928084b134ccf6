from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FromSpoke(_message.Message):
    __slots__ = ("hello", "proof", "able", "ready", "lost", "beat")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    ABLE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    proof: Proof
    able: Able
    ready: Ready
    lost: Lost
    beat: Beat
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ..., able: _Optional[_Union[Able, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., lost: _Optional[_Union[Lost, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ...) -> None: ...

class ToSpoke(_message.Message):
    __slots__ = ("challenge", "welcome", "hold", "heard")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    challenge: Challenge
    welcome: Welcome
    hold: Hold
    heard: Heard
    def __init__(self, challenge: _Optional[_Union[Challenge, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., hold: _Optional[_Union[Hold, _Mapping]] = ..., heard: _Optional[_Union[Heard, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "name", "nonce")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    name: str
    nonce: bytes
    def __init__(self, protocol: _Optional[int] = ..., name: _Optional[str] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("nonce", "proof")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    proof: bytes
    def __init__(self, nonce: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: bytes
    def __init__(self, proof: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("sid", "manifest", "beat_ms", "patience_ms", "probe")
    SID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    BEAT_MS_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_MS_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    sid: bytes
    manifest: bytes
    beat_ms: int
    patience_ms: int
    probe: int
    def __init__(self, sid: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., beat_ms: _Optional[int] = ..., patience_ms: _Optional[int] = ..., probe: _Optional[int] = ...) -> None: ...

class Able(_message.Message):
    __slots__ = ("seconds", "memory", "disk")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    memory: int
    disk: int
    def __init__(self, seconds: _Optional[float] = ..., memory: _Optional[int] = ..., disk: _Optional[int] = ...) -> None: ...

class Hold(_message.Message):
    __slots__ = ("epoch", "shards", "device", "devices", "port", "rows", "longest", "ways", "parts")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_FIELD_NUMBER: _ClassVar[int]
    WAYS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    shards: _containers.RepeatedScalarFieldContainer[int]
    device: int
    devices: int
    port: int
    rows: int
    longest: int
    ways: _containers.RepeatedScalarFieldContainer[str]
    parts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, epoch: _Optional[int] = ..., shards: _Optional[_Iterable[int]] = ..., device: _Optional[int] = ..., devices: _Optional[int] = ..., port: _Optional[int] = ..., rows: _Optional[int] = ..., longest: _Optional[int] = ..., ways: _Optional[_Iterable[str]] = ..., parts: _Optional[_Iterable[int]] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class Lost(_message.Message):
    __slots__ = ("epoch", "why")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    why: str
    def __init__(self, epoch: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("epoch", "steps", "compute_us", "reduce_us", "wait_us", "load_us", "peak")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    REDUCE_US_FIELD_NUMBER: _ClassVar[int]
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    LOAD_US_FIELD_NUMBER: _ClassVar[int]
    PEAK_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    steps: int
    compute_us: int
    reduce_us: int
    wait_us: int
    load_us: int
    peak: int
    def __init__(self, epoch: _Optional[int] = ..., steps: _Optional[int] = ..., compute_us: _Optional[int] = ..., reduce_us: _Optional[int] = ..., wait_us: _Optional[int] = ..., load_us: _Optional[int] = ..., peak: _Optional[int] = ...) -> None: ...

class Heard(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Wanted(_message.Message):
    __slots__ = ("sid", "sha256", "offset")
    SID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    sid: bytes
    sha256: bytes
    offset: int
    def __init__(self, sid: _Optional[bytes] = ..., sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("size", "data")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    size: int
    data: bytes
    def __init__(self, size: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Invitation(_message.Message):
    __slots__ = ("port",)
    PORT_FIELD_NUMBER: _ClassVar[int]
    port: int
    def __init__(self, port: _Optional[int] = ...) -> None: ...

class Coming(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
