"""What the page may set: the link between device and server."""

from __future__ import annotations

import threading
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitrt import SplitrtError
from splitrt.relay import Relay


class Wanted(BaseModel):
    """What is to be changed; what is left out stays. Rates are of the uplink."""

    model_config = ConfigDict(extra="forbid", strict=True)

    mbps: Annotated[float, Field(ge=0.002, le=1000, allow_inf_nan=False)] = 0.0
    rtt_ms: Annotated[float, Field(ge=0, le=2000, allow_inf_nan=False)] = 0.0
    jitter_ms: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.0
    stall: bool = False  # bytes wait
    hole: bool = False  # bytes vanish, and nobody is told
    cut: bool = False  # the connection is closed, and none is accepted

    @classmethod
    def read(cls, raw: bytes) -> Wanted:
        """Of a request. SplitrtError says which field is wrong."""
        try:
            wanted = cls.model_validate_json(raw)
        except ValidationError as error:
            told = "; ".join(
                f"{'.'.join(map(str, one['loc'])) or 'the body'}: {one['msg']}"
                for one in error.errors(include_url=False, include_input=False)[:3]
            )
            raise SplitrtError(f"{told}\nhelp: {', '.join(cls.model_fields)}") from error
        if not wanted.model_fields_set:
            raise SplitrtError(f"nothing is to be set\nhelp: {', '.join(cls.model_fields)}")
        return wanted


class Dials:
    """The relay's settings, changed by one page at a time."""

    def __init__(self, relay: Relay) -> None:
        self._relay, self._lock = relay, threading.Lock()

    def now(self) -> dict[str, float | bool]:
        """As they are."""
        relay = self._relay
        return {
            "mbps": float(relay.trace.mbps[0]),
            "rtt_ms": round(1000 * relay.rtt, 3),
            "jitter_ms": round(1000 * relay.jitter, 3),
            "stall": relay.stall,
            "hole": relay.hole,
            "cut": relay.refuse,
        }

    def turn(self, wanted: Wanted) -> dict[str, float | bool]:
        """Change what is wanted; all as it is then."""
        relay, fields = self._relay, wanted.model_fields_set
        with self._lock:
            if "mbps" in fields:
                relay.trace = wanted.mbps
            if "rtt_ms" in fields:
                relay.rtt = wanted.rtt_ms / 1000
            if "jitter_ms" in fields:
                relay.jitter = wanted.jitter_ms / 1000
            if "stall" in fields:
                relay.stall = wanted.stall
            if "hole" in fields:
                relay.hole = wanted.hole
            if "cut" in fields:
                relay.refuse = wanted.cut
                if wanted.cut:
                    relay.cut()
            return self.now()
