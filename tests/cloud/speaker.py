"""A device's session on bare gRPC: what is sent and what comes back, message by message."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

from splitrt.core.language import Language
from splitrt.core.rows import Rows
from splitrt.wire import decode_pb2 as wire
from splitrt.wire.decode_pb2_grpc import DecoderStub
from tests.cloud.tongue import Head


class Speaker:
    """Opens or resumes a session. RpcError if the server ends the call instead."""

    def __init__(
        self,
        address: str,
        manifest: Language,
        *,
        sid: bytes = b"",
        metadata: Sequence[tuple[str, str]] = (),
        **fields: Any,
    ) -> None:
        self.manifest = manifest
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._outbox: queue.SimpleQueue[wire.ToDecoder | None] = queue.SimpleQueue()
        self.put(resuming(manifest, sid) if sid else opening(manifest, **fields))
        stub = DecoderStub(self.channel)
        self.call = stub.Session(iter(self._outbox.get, None), timeout=120, metadata=metadata)
        self.seq = 0
        self.codec = Rows(fields.get("codec", "f32"), manifest.shape.hidden)
        try:
            self.first = next(self.call)
        except grpc.RpcError:
            self.close()
            raise
        self.opened = self.first.opened
        self.sid, self.gen = self.opened.sid, self.opened.gen

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._outbox.put(None)
        self.channel.close()

    def put(self, message: wire.ToDecoder | None) -> None:
        """None: the device has done."""
        self._outbox.put(message)

    def append(self, start: int, rows: np.ndarray) -> None:
        """float32 [T, hidden], or ids [T]."""
        payload = self.packed(rows)
        one = wire.Append(gen=self.gen, start=start, rows=len(rows), payload=payload)
        self.put(wire.ToDecoder(append=one))

    def ask(self, start: int, rows: np.ndarray | None = None, drafts: Sequence[int] = ()) -> int:
        """Its number."""
        self.seq += 1
        payload = b"" if rows is None else self.packed(rows)
        count = 0 if rows is None else len(rows)
        one = wire.Ask(
            seq=self.seq, gen=self.gen, start=start, rows=count, payload=payload, drafts=drafts
        )
        self.put(wire.ToDecoder(ask=one))
        return self.seq

    def verdict(self, *asked: Any, **words: Any) -> wire.Verdict:
        """Ask, and what the server says."""
        self.ask(*asked, **words)
        message = self.get()
        assert message.HasField("verdict"), message
        self.gen = message.verdict.gen
        return message.verdict

    def nack(self) -> wire.Nack:
        message = self.get()
        assert message.HasField("nack"), message
        return message.nack

    def get(self) -> wire.FromDecoder:
        return next(self.call)

    def packed(self, rows: np.ndarray) -> bytes:
        if rows.ndim == 1:
            return rows.astype("<u4").tobytes()
        return self.codec.encode(rows)


def opening(manifest: Language, **fields: Any) -> wire.ToDecoder:
    words = {"protocol": 1, "manifest": manifest.digest, "resume": "hidden", "codec": "f32"}
    return wire.ToDecoder(open=wire.Open(**{**words, "max_len": 600, **fields}))


def resuming(manifest: Language, sid: bytes) -> wire.ToDecoder:
    return wire.ToDecoder(resume=wire.Resume(protocol=1, manifest=manifest.digest, sid=sid))


def spoken(speaker: Speaker, head: Head, ids: Sequence[int], count: int) -> list[int]:
    """The text by asking for each token."""
    told, sent = list(ids), 0
    for _ in range(count):
        verdict = speaker.verdict(sent, head.rows(told)[sent:])
        sent = len(told)
        assert verdict.n == sent
        told.append(verdict.token)
    return told[len(ids) :]
