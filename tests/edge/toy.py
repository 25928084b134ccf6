"""A language model that is a hash, on a device and on a server: every bit counts, no near-ties.

The token after a position is a hash of all that the server holds up to it, so that a row which is
lost, doubled or computed otherwise makes another text. The device's exit knows the same hash, and
is wrong, or unsure, at positions that another hash names.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import tomli_w

from splitrt.core.rows import BEGIN, TOKEN, Rows, chained
from splitrt.wire import decode_pb2 as wire
from splitrt.wire.decode_pb2_grpc import DecoderServicer, add_DecoderServicer_to_server

HIDDEN, VOCAB, LONGEST, END = 16, 97, 400, 96
MAX_ROWS, MAX_DRAFTS = 16, 8


def directory(folder: Path, *, exits: tuple[int, ...] = (2,), stops: tuple[int, ...] = ()) -> Path:
    """A model directory that has a manifest and nothing else."""
    names = [f"{kind}-{layer}.onnx" for layer in exits for kind in ("layers", "exit")]
    files = [*names, "voice.onnx", "layers.safetensors", "tokenizer.json"]
    shape = {
        "vocab": VOCAB, "hidden": HIDDEN, "layers": 4, "heads": 2, "kv_heads": 1, "head": 8,
        "inner": 16, "eps": 1e-5, "rope": {"frequencies": [1.0] * 4}, "windows": [0] * 4,
    }  # fmt: skip
    tables = {
        "format": 1, "kind": "language", "name": "toy", "family": "llama", "shape": shape,
        "cut": exits[-1], "voice": "voice.onnx", "weights": "fp32", "codec": "f32",
        "exits": [
            {"layer": one, "segment": f"layers-{one}.onnx", "file": f"exit-{one}.onnx"}
            for one in exits
        ],
        "resume": ["hidden", "tokens"], "longest": LONGEST, "stops": list(stops),
        "files": dict.fromkeys(files, "0" * 64),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text(tomli_w.dumps(tables))
    return folder


def hashed(*parts: bytes) -> int:
    return int.from_bytes(blake2b(b"|".join(parts), digest_size=8).digest(), "little")


def spoken(log: bytes, seed: int) -> int:
    """The server's token after rows with that log."""
    return hashed(b"token", log, str(seed).encode()) % VOCAB


class ToyDecoder:
    """The device's half: rows of a hash, an exit that is wrong at one position in `wrong`."""

    def __init__(self, *, codec="f32", tokens=False, seed=0, exits=(2,), wrong=4) -> None:
        self.codec, self.tokens, self.seed, self.wrong = Rows(codec, HIDDEN), tokens, seed, wrong
        self.exits, self.ids, self.settled, self.steps = exits, [], 0, 0
        self.logs = [BEGIN]

    @property
    def n(self) -> int:
        return len(self.ids)

    def step(self, ids):
        assert self.settled == self.n
        rows = np.stack([self._take(one) for one in ids])
        self.settled = self.n
        return SimpleNamespace(rows=rows, logits=self._logits(self.exits[-1]))

    def early(self, ids, layer):
        for one in ids:
            self._take(one)
        return self._logits(layer)

    def deeper(self, layer):
        return self._logits(layer)

    def settle(self):
        rows = np.stack([self._row(place) for place in range(self.settled, self.n)])
        self.settled = self.n
        return rows

    def truncate(self, n):
        assert n <= self.n
        del self.ids[n:], self.logs[n + 1 :]
        self.settled = min(self.settled, n)

    def _take(self, token):
        self.steps += 1
        self.ids.append(int(token))
        row = self._row(self.n - 1)
        payload = (
            np.array([token], "<u4").tobytes() if self.tokens else self.codec.encode(row[None])
        )
        self.logs += chained(self.logs[-1], payload, len(payload))
        return row

    def _row(self, place):
        seed = hashed(b"row", np.array(self.ids[: place + 1], "<u4").tobytes())
        return np.random.default_rng(seed).standard_normal(HIDDEN).astype(np.float32)

    def _logits(self, layer):
        """Peaked at the server's token; deeper exits are wrong less often, and surer."""
        log = self.logs[-1]
        right = spoken(log, self.seed)
        doubt = hashed(b"doubt", log, str(layer).encode())
        logits = np.zeros(VOCAB, np.float32)
        wrong = doubt % self.wrong == 0
        logits[(right + 1 + doubt % 7) % VOCAB if wrong else right] = 4 + doubt % 5
        return logits


@dataclass
class Held:
    """A session of the toy server."""

    size: int
    seed: int
    gen: int = 0
    logs: list[bytes] = field(default_factory=lambda: [BEGIN])

    @property
    def n(self) -> int:
        return len(self.logs) - 1


Spoil = Callable[[wire.FromDecoder], "list[wire.FromDecoder] | None"]


class ToyServer(DecoderServicer):
    """Answers as decode.proto says. spoil: what becomes of each message; None: the stream ends."""

    def __init__(self, spoil: Spoil = lambda message: [message], codec: str = "f32") -> None:
        self.spoil, self.codec = spoil, codec
        self.sessions: dict[bytes, Held] = {}
        self.asked = self.opened = self.rows = self.nacked = 0
        self.positions: list[int] = []  # at which tokens were chosen
        self.deaf = threading.Event()

    def Session(self, messages, context):
        outbox: queue.SimpleQueue = queue.SimpleQueue()

        def read() -> None:
            held = None
            try:
                for message in messages:
                    held = self._hear(held, message, outbox)
            except grpc.RpcError:
                pass
            except Exception as error:
                outbox.put(error)
            outbox.put(None)

        threading.Thread(target=read, daemon=True).start()
        while (message := outbox.get()) is not None:
            if isinstance(message, Exception):
                context.abort(grpc.StatusCode.INTERNAL, repr(message))
            if self.deaf.is_set():
                continue
            spoiled = self.spoil(message)
            if spoiled is None:
                return
            yield from spoiled

    def _hear(self, held, message, outbox):
        kind = message.WhichOneof("kind")
        if kind in ("open", "resume"):
            return self._begin(getattr(message, kind), outbox)
        if kind == "beat":
            outbox.put(wire.FromDecoder(beat=wire.Beat(seq=message.beat.seq)))
        elif kind == "truncate":
            if message.truncate.gen > held.gen and message.truncate.n <= held.n:
                held.gen = message.truncate.gen
                del held.logs[message.truncate.n + 1 :]
        elif kind == "close":
            self.sessions = {sid: one for sid, one in self.sessions.items() if one is not held}
            outbox.put(None)
        elif kind in ("append", "ask"):
            self._rows(held, getattr(message, kind), kind == "ask", outbox)
        return held

    def _begin(self, message, outbox):
        if isinstance(message, wire.Resume):
            held, sid = self.sessions.get(message.sid), message.sid
            if held is None:
                outbox.put(wire.FromDecoder(nack=wire.Nack(reason=wire.NOT_FOUND)))
                outbox.put(None)
                return None
        else:
            size = TOKEN if message.resume == "tokens" else Rows(message.codec, HIDDEN).size
            sid = hashed(b"sid", str(self.opened).encode(), str(id(self)).encode())
            sid = sid.to_bytes(8, "little") * 2
            held = self.sessions[sid] = Held(size, message.seed)
            self.opened += 1
        opened = wire.Opened(
            sid=sid, n=held.n, gen=held.gen, log=held.logs[-1], max_rows=MAX_ROWS,
            max_drafts=MAX_DRAFTS, max_inflight=1, ttl_s=60,
        )  # fmt: skip
        outbox.put(wire.FromDecoder(opened=opened))
        return held

    def _rows(self, held, message, asked, outbox):
        assert len(message.payload) == message.rows * held.size and message.rows <= MAX_ROWS
        seq = message.seq if asked else 0
        if message.gen != held.gen or message.start > held.n:
            self.nacked += 1
            nack = wire.Nack(seq=seq, reason=wire.HOLE, n=held.n, gen=held.gen)
            outbox.put(wire.FromDecoder(nack=nack))
            return
        del held.logs[message.start + 1 :]
        held.logs += chained(held.logs[-1], message.payload, held.size)
        self.rows += message.rows
        if not asked:
            return
        self.asked += 1
        drafts = list(message.drafts)
        first = held.n - len(drafts)
        assert first > 0 and len(drafts) <= MAX_DRAFTS
        chosen = [spoken(held.logs[first + place], held.seed) for place in range(len(drafts) + 1)]
        accepted = 0
        while accepted < len(drafts) and drafts[accepted] == chosen[accepted]:
            accepted += 1
        if accepted < len(drafts):
            held.gen += 1
            del held.logs[first + accepted + 1 :]
        self.positions.append(held.n)
        verdict = wire.Verdict(
            seq=seq, gen=held.gen, n=held.n, accepted=accepted, token=chosen[accepted],
            confidence=0.5, verify_us=100, batch=message.rows or 1,
        )  # fmt: skip
        outbox.put(wire.FromDecoder(verdict=verdict))


@contextmanager
def serving(toy: ToyServer, port: int = 0) -> Iterator[tuple[str, grpc.Server]]:
    """The toy on a port; also its gRPC server, to stop it suddenly."""
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    add_DecoderServicer_to_server(toy, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    assert bound
    server.start()
    try:
        yield f"127.0.0.1:{bound}", server
    finally:
        server.stop(0).wait()
