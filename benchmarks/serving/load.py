"""Closed-loop clients in one process: each sends its next frame when the last one is answered.

Writes a line of JSON: the latencies of all answers in the window, and this process's CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from splitrt.wire import tail_pb2 as wire

OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each device
Ask = Callable[[], Awaitable[bytes | None]]  # one frame; its output's bytes, None: not to be told
LAST = 10.0  # seconds until a request counts as lost


@dataclass(slots=True)
class Window:
    """When requests count, time.monotonic(), and what was seen in it."""

    start: float
    end: float
    expected: np.ndarray | None
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # at the start and at the end

    def check(self, output: bytes | None) -> None:
        """SystemExit unless the answer is the tail's own."""
        if self.expected is None or output is None:
            return
        found = np.frombuffer(output, np.float32)
        if found.shape != self.expected.shape or not np.allclose(
            found, self.expected, rtol=1e-3, atol=1e-4
        ):
            raise SystemExit(f"wrong answer: {found[:4]}, {self.expected[:4]} wanted")

    async def run(self, ask: Ask) -> None:
        """One device, until the window ends."""
        self.check(await asyncio.wait_for(ask(), LAST))
        output = None
        while (sent := time.monotonic()) < self.end:
            output = await ask()
            ended = time.monotonic()
            if self.start <= ended < self.end:
                self.seconds.append(ended - sent)
        self.check(output)

    async def watch(self) -> None:
        """This process's CPU seconds at both ends."""
        for moment in (self.start, self.end):
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
            self.cpu.append(time.process_time())


async def splitrt(window: Window, options: argparse.Namespace, body: bytes) -> None:
    """A device on splitrt's stream."""
    digest = hashlib.sha256((options.folder / "model.toml").read_bytes()).digest()
    message = wire.ToServer(frame=wire.Frame(plan=options.plan, payload=body))
    async with grpc.aio.insecure_channel(options.address, options=OPTIONS) as channel:
        call = channel.stream_stream(
            "/splitrt.wire.Tail/Stream",
            request_serializer=wire.ToServer.SerializeToString,
            response_deserializer=wire.ToEdge.FromString,
        )()
        await call.write(wire.ToServer(hello=wire.Hello(protocol=1, manifest=digest)))
        await call.read()

        async def ask() -> bytes:
            message.frame.seq += 1
            await call.write(message)
            answer = (await call.read()).answer
            if answer.status != wire.OK or answer.seq != message.frame.seq:
                raise SystemExit(f"status {answer.status} {answer.detail}")
            return answer.outputs[0].data

        await window.run(ask)
        await call.done_writing()


async def echo(window: Window, options: argparse.Namespace, body: bytes) -> None:
    """The same load on a stream without a server behind it."""
    async with grpc.aio.insecure_channel(options.address, options=OPTIONS) as channel:
        call = channel.stream_stream("/Echo/Stream")()

        async def ask() -> None:
            await call.write(body)
            if not isinstance(await call.read(), bytes):
                raise SystemExit("the echo ended")

        await window.run(ask)
        await call.done_writing()


async def http(window: Window, options: argparse.Namespace, body: bytes) -> None:
    """A device on one kept HTTP/1.1 connection: no library, so that the client costs little."""
    host, port = options.address.split(":")
    head = (
        f"POST /inference HTTP/1.1\r\nHost: {options.address}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    reader, writer = await asyncio.open_connection(host, int(port))

    async def ask() -> bytes:
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer[:13]:
            raise SystemExit(f"answered {answer[:80]!r}")
        fields = answer.lower()
        size = fields.index(b"content-length:") + 15
        return await reader.readexactly(int(fields[size : fields.index(b"\r", size)]))

    await window.run(ask)
    writer.close()


WAYS: dict[str, Any] = {"splitrt": splitrt, "echo": echo, "http": http}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--expected", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--plan", type=int, default=0)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--start", type=float, required=True, help="time.monotonic()")
    parser.add_argument("--end", type=float, required=True)
    options = parser.parse_args()
    expected = None if options.expected is None else np.fromfile(options.expected, np.float32)
    window = Window(options.start, options.end, expected)
    body, way = options.body.read_bytes(), WAYS[options.way]
    devices = [way(window, options, body) for _ in range(options.clients)]
    await asyncio.gather(window.watch(), *devices)
    print(json.dumps({"seconds": window.seconds, "cpu": window.cpu[1] - window.cpu[0]}))


if __name__ == "__main__":
    asyncio.run(main())
