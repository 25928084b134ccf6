"""What a session is opened with, or taken up again: the first message of a stream."""

from __future__ import annotations

from dataclasses import dataclass

from splitrt.core import packet
from splitrt.core.language import Resume
from splitrt.core.rows import TOKEN, Rows
from splitrt.core.sample import Sampling
from splitrt.wire import decode_pb2 as wire


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session is opened with. longest: positions."""

    codec: str
    resume: Resume
    longest: int
    sampling: Sampling = Sampling()

    def size(self, hidden: int) -> int:
        """Bytes that a position takes on the wire."""
        return TOKEN if self.resume == "tokens" else Rows(self.codec, hidden).size

    def first(self, digest: bytes, sid: bytes | None) -> wire.ToDecoder:
        """Take up the session `sid` of the model with that digest, or open one."""
        if sid is not None:
            resume = wire.Resume(protocol=packet.PROTOCOL, manifest=digest, sid=sid, moves=True)
            return wire.ToDecoder(resume=resume)
        return wire.ToDecoder(
            open=wire.Open(
                protocol=packet.PROTOCOL,
                manifest=digest,
                resume=self.resume,
                codec=self.codec,
                max_len=self.longest,
                seed=self.sampling.seed,
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                moves=True,
            )
        )
