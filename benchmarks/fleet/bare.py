"""The floor of a server's front: a bare grpc.aio stream that refuses each frame at once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.fleet.crowd import Crowd
from benchmarks.fleet.load import Load
from benchmarks.fleet.serve import cpu_seconds
from splitrt.core import packet
from splitrt.wire import tail_pb2 as wire


@dataclass(frozen=True, slots=True)
class Floor:
    """Devices that send everything to it. message_us: CPU of its process, a frame refused."""

    devices: int
    refused: float
    message_us: float


def floor(
    folder: str, plan: str, counts: Sequence[int], crowd: Crowd, core: int, seconds: float
) -> list[Floor]:
    """Such a server on a core of its own, under fleets."""
    command = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.fleet.bare"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    found = []
    try:
        address = process.stdout.readline().split()[-1]
        for devices in counts:
            cpu: list[float] = []

            def watch(begun: Load, cpu: list[float] = cpu) -> None:
                for moment in (begun.begin + begun.warm, begun.end):
                    time.sleep(max(0.0, moment - time.monotonic()))
                    cpu.append(cpu_seconds(Path(f"/proc/{process.pid}")))

            load = Load(folder, plan, (address,), devices, 0.0, seconds, warm=1.5, deaf=True)
            refused = crowd.drive(load, meanwhile=watch).total("expired")
            found.append(Floor(devices, refused / seconds, 1e6 * (cpu[1] - cpu[0]) / refused))
    finally:
        process.terminate()
        process.wait()
    return found


async def stream(_: Any, context: Any) -> None:
    """Welcome, then EXPIRED to everything."""
    await context.read()
    await context.write(wire.ToEdge(welcome=wire.Welcome(protocol=1, max_inflight=8)))
    while isinstance(message := await context.read(), wire.ToServer):
        answer = packet.refusal(message.frame.seq, wire.EXPIRED, "")
        await context.write(wire.ToEdge(answer=answer))


async def serve() -> None:
    """Until SIGTERM; says its address."""
    handler = grpc.stream_stream_rpc_method_handler(
        stream, wire.ToServer.FromString, wire.ToEdge.SerializeToString
    )
    server = grpc.aio.server()
    service = grpc.method_handlers_generic_handler("splitrt.wire.Tail", {"Stream": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"bare at 127.0.0.1:{port}", flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await over.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve())
