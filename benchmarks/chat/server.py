"""Devices that ask one server of a language model: their rows packed in a step, or one by one.

    python benchmarks/chat/server.py [--json FILE] [--threads 1 2] [--clients 1 4 16]

(extras: `pip install -e '.[dev]'`.) Each device asks for a token, and for the next one when it has
come. The server is a process of its own, and only it is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
import transformers

from splitrt.cloud import Room, Server
from splitrt.train import divide
from splitrt.wire import decode_pb2 as wire

HIDDEN, INNER, HEADS, SHARED, VOCAB = 768, 2816, 12, 4, 32000
CUT, ON_SERVER, LONGEST = 1, 4, 512
PROMPT = 64  # rows before the first token; after the last position a device begins there again
WARM, WINDOW = 2.0, 8.0  # seconds
PACKED, ALONE = "packed", "one by one"
SESSION = "/splitrt.wire.Decoder/Session"
TICKS = os.sysconf("SC_CLK_TCK")
WAITS = 60.0  # seconds for the server to come up


@dataclass(frozen=True, slots=True)
class Row:
    """One run: tokens and CPU of the server over the window."""

    way: str
    threads: int
    clients: int
    tokens_per_s: float
    cpu_ms: float  # of the server's process, user and system, a token
    p50_ms: float
    p99_ms: float
    batch: float  # rows of a step, mean over the answers
    cores: float  # that the server kept busy


@dataclass(slots=True)
class Window:
    """When answers count, time.monotonic(), and what was seen in it."""

    start: float
    end: float
    seconds: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)


def made(folder: Path) -> Path:
    """The model directory of a random Llama."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=CUT + ON_SERVER,
        num_attention_heads=HEADS,
        num_key_value_heads=SHARED,
        max_position_embeddings=LONGEST,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "checkpoint")
    (folder / "checkpoint" / "tokenizer.json").write_text("{}")
    divide(folder / "checkpoint", folder / "model", cut=CUT, weights="fp32", codec="f16")
    return folder / "model"


def serve(folder: Path, threads: int, way: str) -> None:
    """The server's process: says its address, ends with SIGTERM."""
    room = Room(together=1 if way == ALONE else None)
    with Server(folder, port=0, threads=threads, room=room) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.stop())
        print(server.address, flush=True)
        server.wait()


@contextmanager
def serving(folder: Path, threads: int, way: str) -> Iterator[tuple[str, int]]:
    """Such a process; its address and its number."""
    command = [sys.executable, __file__, "--serve", str(folder)]
    command += ["--threads", str(threads), "--way", way]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate()
        process.wait(WAITS)


async def device(address: str, manifest: bytes, number: int, window: Window) -> None:
    """Asks for one token after the other until the window ends."""
    random = np.random.default_rng(number)
    rows = random.standard_normal((LONGEST, HIDDEN)).astype("<f2")
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call = channel.stream_stream(
            SESSION,
            request_serializer=wire.ToDecoder.SerializeToString,
            response_deserializer=wire.FromDecoder.FromString,
        )()
        opening = wire.Open(
            protocol=1, manifest=manifest, resume="hidden", codec="f16", max_len=LONGEST
        )
        await call.write(wire.ToDecoder(open=opening))
        if not (await call.read()).HasField("opened"):
            raise SystemExit("the server opens no session")
        seq, start, end = 0, 0, PROMPT
        while time.monotonic() < window.end:
            seq += 1
            payload = rows[start:end].tobytes()
            ask = wire.Ask(seq=seq, start=start, rows=end - start, payload=payload)
            sent = time.monotonic()
            await call.write(wire.ToDecoder(ask=ask))
            answer = await call.read()
            now = time.monotonic()
            if not answer.HasField("verdict") or answer.verdict.seq != seq:
                raise SystemExit(f"answered {answer}")
            if window.start <= now < window.end:
                window.seconds.append(now - sent)
                window.batches.append(answer.verdict.batch)
            start = answer.verdict.n if answer.verdict.n < LONGEST else PROMPT
            end = start + 1
        await call.write(wire.ToDecoder(close=wire.Close()))
        await call.done_writing()


async def load(address: str, pid: int, manifest: bytes, clients: int) -> tuple[Window, float]:
    """So many devices at once; what they saw, and the server's CPU seconds in the window."""
    now = time.monotonic()
    window, used = Window(now + WARM, now + WARM + WINDOW), []

    async def watch() -> None:
        for moment in (window.start, window.end):
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
            used.append(cpu(pid))

    await asyncio.gather(
        watch(), *(device(address, manifest, number, window) for number in range(clients))
    )
    return window, used[1] - used[0]


def measured(folder: Path, way: str, threads: int, clients: int) -> Row:
    """One run on a fresh server."""
    manifest = hashlib.sha256((folder / "model.toml").read_bytes()).digest()
    with serving(folder, threads, way) as (address, pid):
        window, seconds = asyncio.run(load(address, pid, manifest, clients))
    count = len(window.seconds)
    taken = sorted(window.seconds)
    return Row(
        way=way,
        threads=threads,
        clients=clients,
        tokens_per_s=count / WINDOW,
        cpu_ms=1000 * seconds / count,
        p50_ms=1000 * statistics.median(taken),
        p99_ms=1000 * taken[min(count - 1, int(0.99 * count))],
        batch=statistics.mean(window.batches),
        cores=seconds / WINDOW,
    )


def cpu(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def medians(rows: list[Row]) -> Row:
    """The medians of the runs of one setting."""
    found: dict[str, Any] = asdict(rows[0])
    for name in ("tokens_per_s", "cpu_ms", "p50_ms", "p99_ms", "batch", "cores"):
        found[name] = statistics.median(getattr(row, name) for row in rows)
    return Row(**found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write every run there, too")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", default=PACKED, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.threads[0], options.way)
        return
    runs: list[Row] = []
    with tempfile.TemporaryDirectory() as work:
        folder = made(Path(work))
        for _ in range(options.runs):
            for threads in options.threads:
                for clients in options.clients:
                    for way in (PACKED, ALONE):  # in turns: the machine is never quite free
                        runs.append(measured(folder, way, threads, clients))
                        print(".", end="", file=sys.stderr, flush=True)
    print(f"\n{platform.machine()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print("| threads | devices | way | tokens/s | CPU ms/token | p50 ms | p99 ms | rows/step |")
    print("|---|---|---|---|---|---|---|---|")
    for key in dict.fromkeys((row.threads, row.clients, row.way) for row in runs):
        row = medians([one for one in runs if (one.threads, one.clients, one.way) == key])
        print(
            f"| {row.threads} | {row.clients} | {row.way} | {row.tokens_per_s:.1f} "
            f"| {row.cpu_ms:.1f} | {row.p50_ms:.1f} | {row.p99_ms:.1f} | {row.batch:.1f} |"
        )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in runs], indent=1))


if __name__ == "__main__":
    main()
