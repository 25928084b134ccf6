"""Chats on one server of a language model: memory of their sessions, tokens that it verifies."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from benchmarks.fleet.serve import Served
from splitrt.core.language import Language
from splitrt.core.rows import Rows
from splitrt.wire import decode_pb2 as wire

SESSION = "/splitrt.wire.Decoder/Session"
CHUNK = 250  # rows of a message
BEGINS = 64  # positions before the first Ask
WARM = 1.0  # seconds
FLOAT = 4  # bytes of a number in a session's memory on a CPU
STEP = 256  # positions by which a session's memory grows
LOG = 16  # bytes a position, of the hash of what is held


@dataclass(frozen=True, slots=True)
class Held:
    """Sessions that hold so many positions each. bytes: a position, by the manifest and by what
    the process grew."""

    sessions: int
    positions: int
    reckoned: float
    measured: float
    mib_each: float


@dataclass(frozen=True, slots=True)
class Spoken:
    """Chats that ask as fast as they are answered. Rates are a second, of all chats.

    rows: positions that were verified.  step: rows that ran together, mean over the answers.
    """

    chats: int
    drafts: int
    asks: float
    rows: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    step: float


@dataclass(frozen=True, slots=True)
class Session:
    """One call, opened, and the rows that it sends."""

    call: Any
    body: bytes
    size: int


def per_position(manifest: Language) -> int:
    """Bytes of a session of hidden rows: keys, values and last states, and the log."""
    shape = manifest.shape
    layers = shape.layers - manifest.cut
    return FLOAT * (2 * layers * shape.kv_heads * shape.head + shape.hidden) + LOG


async def opened(address: str, manifest: Language, number: int) -> tuple[Any, Session]:
    """A channel and its session."""
    channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
    call = channel.stream_stream(
        SESSION,
        request_serializer=wire.ToDecoder.SerializeToString,
        response_deserializer=wire.FromDecoder.FromString,
    )()
    opening = wire.Open(
        protocol=1, manifest=manifest.digest, resume="hidden", codec=manifest.codec,
        max_len=manifest.longest,
    )  # fmt: skip
    await call.write(wire.ToDecoder(open=opening))
    answer = await call.read()
    if not answer.HasField("opened"):
        raise SystemExit(f"error: the server opens no session: {answer}")
    noise = np.random.default_rng(number).standard_normal((CHUNK, manifest.shape.hidden))
    codec = Rows(manifest.codec, manifest.shape.hidden)
    return channel, Session(call, codec.encode(noise.astype(np.float32)), codec.size)


async def filled(session: Session, positions: int) -> None:
    """Rows up to that position, and one Ask, whose answer says that all are held."""
    for start in range(0, positions - CHUNK, CHUNK):
        append = wire.Append(start=start, rows=CHUNK, payload=session.body)
        await session.call.write(wire.ToDecoder(append=append))
    start = (positions - 1) // CHUNK * CHUNK
    rows = positions - start
    ask = wire.Ask(seq=1, start=start, rows=rows, payload=session.body[: rows * session.size])
    await session.call.write(wire.ToDecoder(ask=ask))
    _verdict(await session.call.read(), 1)


def held(folder: str, counts: Sequence[int], positions: int, core: int) -> list[Held]:
    """So many sessions on a server of their own each time."""
    manifest, found = Language.load(folder), []
    steps = -(-positions // STEP) * STEP

    async def hold(server: Served, sessions: int) -> int:
        pairs = [await opened(server.address, manifest, n) for n in range(sessions)]
        await filled(pairs[0][1], positions)  # what the first costs for good is not a session's
        before = server.figures().resident
        for _, session in pairs[1:]:
            await filled(session, positions)
        grown = server.figures().resident - before
        for channel, _ in pairs:
            await channel.close()
        return grown

    for sessions in counts:
        with Served(folder, cores=(core,)) as server:
            grown = asyncio.run(hold(server, sessions + 1))
        each = grown / sessions
        found.append(Held(sessions, positions, per_position(manifest), each / steps, each / 2**20))
    return found


def spoken(folder: str, chats: int, drafts: int, core: int, seconds: float) -> Spoken:
    """Chats whose every Ask brings a token's row and its drafts', on a fresh server."""
    manifest = Language.load(folder)
    taken: list[tuple[float, int]] = []
    cpu: list[float] = []

    async def chat(session: Session, begin: float) -> None:
        await filled(session, BEGINS)
        seq, start, gen, rows = 1, BEGINS, 0, drafts + 1
        body, guesses = session.body[: rows * session.size], [1] * drafts
        while time.monotonic() < begin + seconds:
            seq += 1
            ask = wire.Ask(seq=seq, gen=gen, start=start, rows=rows, payload=body, drafts=guesses)
            sent = time.monotonic()
            await session.call.write(wire.ToDecoder(ask=ask))
            answer = _verdict(await session.call.read(), seq)
            if sent >= begin:
                taken.append((time.monotonic() - sent, answer.batch))
            gen, start = answer.gen, answer.n
            if start + rows > manifest.longest:
                start = BEGINS

    async def all_of_them(server: Served) -> None:
        pairs = [await opened(server.address, manifest, n) for n in range(chats)]
        begin = time.monotonic() + WARM + chats / 20

        async def watch() -> None:
            for moment in (begin, begin + seconds):
                await asyncio.sleep(max(0.0, moment - time.monotonic()))
                cpu.append(server.figures().cpu)

        await asyncio.gather(watch(), *(chat(session, begin) for _, session in pairs))
        for channel, _ in pairs:
            await channel.close()

    with Served(folder, cores=(core,)) as server:
        asyncio.run(all_of_them(server))
    times = sorted(took for took, _ in taken)
    return Spoken(
        chats=chats,
        drafts=drafts,
        asks=len(taken) / seconds,
        rows=len(taken) * (drafts + 1) / seconds,
        cpu_us=1e6 * (cpu[1] - cpu[0]) / len(taken),
        p50_ms=1000 * statistics.median(times),
        p99_ms=1000 * times[int(0.99 * (len(times) - 1))],
        step=statistics.mean(rows for _, rows in taken),
    )


def _verdict(answer: Any, seq: int) -> Any:
    if not answer.HasField("verdict") or answer.verdict.seq != seq:
        raise SystemExit(f"error: answered {answer}")
    return answer.verdict
