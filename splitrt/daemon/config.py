"""What a daemon can be told: the tables of daemon.toml, and what each key wants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from splitrt.core.manifest import Similar
from splitrt.core.tls import small
from splitrt.edge.lens import LIVE
from splitrt.edge.pilot import Caps
from splitrt.edge.roll import proved
from splitrt.edge.trust import Trust
from splitrt.errors import LinkError

SOCKET = Path("/run/splitrt/daemon.sock")
PLACE = Path("/etc/splitrt/daemon.toml")
STDOUT = "stdout"


def _address(text: str) -> str:
    try:
        return proved(text)
    except LinkError as error:
        raise ValueError(str(error)) from error


Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
File = Annotated[Path, Field(strict=False)]  # TOML has texts alone
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Part(BaseModel):
    """A table: closed to unknown keys; a text is no number. A key's description is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CapsPart(Part):
    """See `Caps`."""

    bytes: Amount | None = Field(
        default=None, description="bytes a second that may be sent on average"
    )
    joules: Amount | None = Field(default=None, description="joules a second for heads and sending")
    watts: Amount = Field(
        default=0.0, description="the device's power while a head runs, above idle"
    )
    uj_per_byte: Amount = Field(default=0.0, description="the radio's microjoules a byte")


class TrustPart(Part):
    """See `Trust`. The token is in a file, or in SPLITRT_TOKEN."""

    ca: File | None = Field(default=None, description="a PEM file: who may vouch for the server")
    cert: File | None = Field(default=None, description="a PEM file: this device's certificate")
    key: File | None = Field(default=None, description="a PEM file: its key")
    token_file: File | None = Field(default=None, description="a file with this device's token")
    insecure_tokens: bool = Field(default=False, description="true: a token may go without TLS")


class ModelPart(Part):
    """One model that stays loaded: its directory, and the options of `Edge`."""

    path: File = Field(description="a model directory")
    cloud: Annotated[str, AfterValidator(_address)] | None = Field(
        default=None, description="the server's host:port; several with commas; dns:///name:port"
    )
    deadline: Seconds | None = Field(
        default=None, description="seconds a frame may take, more than 0"
    )
    plan: str | None = Field(default=None, description="the name of one of the model's plans")
    filter: bool = Field(default=False, description="true: drop frames with nothing of interest")
    tails: list[File] = Field(default=[], description="a list of further tails' directories")
    temporal: bool | Annotated[int, Field(ge=1)] = Field(
        default=False, description="true, or a keyframe every so many frames"
    )
    similar: bool | Amount = Field(
        default=False, description="true, or grey levels up to which an answer is used again"
    )
    interval: Annotated[int, Field(ge=1)] = Field(
        default=30, description="with similar: ask one frame in so many, 1 or more"
    )
    adapt: bool = Field(
        default=False, description="true: the server adapts the exit to what is seen"
    )
    caps: CapsPart = Field(
        default=CapsPart(), description="a table of bytes, joules, watts, uj_per_byte"
    )
    trust: TrustPart = Field(
        default=TrustPart(), description="a table of ca, cert, key, token_file"
    )
    standin: bool = Field(
        default=True, description="false: keep no tail here to answer in the server's stead"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="threads of ONNX Runtime, 1 or more"
    )
    provider: str = Field(default="CPU", description="of ONNX Runtime: CPU, CUDA, Tensorrt")

    def options(self, environ: Mapping[str, str]) -> dict[str, Any]:
        """What `Edge` is opened with, beside the directory."""
        similar: Similar | bool = self.similar is True
        if not isinstance(self.similar, bool):
            similar = Similar(threshold=self.similar, interval=self.interval)
        return {
            "cloud": self.cloud,
            "deadline": self.deadline,
            "plan": self.plan,
            "filter": self.filter,
            "tails": self.tails,
            "temporal": self.temporal,
            "similar": similar,
            "adapt": self.adapt,
            "caps": Caps(**self.caps.model_dump()),
            "trust": self._trust(environ),
            "standin": self.standin,
            "threads": self.threads,
            "provider": self.provider,
        }

    def _trust(self, environ: Mapping[str, str]) -> Trust:
        told = self.trust
        token = environ.get("SPLITRT_TOKEN") or None
        if told.token_file is not None:
            token = small(told.token_file).decode("utf-8", "replace").strip()
        return Trust(told.ca, told.cert, told.key, token, told.insecure_tokens)


class CameraPart(Part):
    """One source of frames, the model that sees them, and where its answers go."""

    source: str = Field(
        min_length=1,
        description="/dev/video0, rtsp://…, csi://0, a video, a folder, pan:photo.jpg",
    )
    model: str = Field(description="the name of one of the models")
    fps: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        default=None, description="frames a second at most, more than 0"
    )
    inflight: Annotated[int, Field(ge=1, le=64)] = Field(
        default=4, description="frames between capture and result, 1 to 64"
    )
    repeat: bool = Field(
        default=False, description="true: begin a folder or a video again at its end"
    )
    output: str | None = Field(
        default=None, min_length=1, description='"stdout", or a file for JSON lines'
    )

    @property
    def live(self) -> bool:
        """Whether the source ends by accident only."""
        return self.source.startswith(LIVE)


class Config(Part):
    """The whole of it; `told.read` makes one."""

    socket: File = Field(default=SOCKET, description="the path of the API's unix socket")
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        default=None, description="a port on 127.0.0.1 for /metrics and /healthz; 0: a free one"
    )
    log: Literal["text", "json"] = Field(default="text", description='"text" or "json"')
    trace: bool = Field(
        default=False, description="true: a trace of each frame, as OTEL_* variables say"
    )
    grace: Seconds = Field(default=10.0, description="seconds for what is in flight at the end")
    models: dict[Name, ModelPart] = Field(
        min_length=1, description="a table for each model: [models.NAME]"
    )
    cameras: dict[Name, CameraPart] = Field(
        default={}, description="a table for each camera: [cameras.NAME]"
    )
