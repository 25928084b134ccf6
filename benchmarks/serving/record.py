"""The payload that a device really sends for a picture: taken from its stream by a listener."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np

from splitrt import Edge, SplitrtError
from splitrt.wire import tail_pb2 as wire


def recorded(folder: Path, plan: str) -> bytes:
    """The first frame's payload of a picture of noise."""
    frames: SimpleQueue[bytes] = SimpleQueue()

    def stream(messages: Iterator[wire.ToServer], context: Any) -> Iterator[wire.ToEdge]:
        for message in messages:
            if message.HasField("hello"):
                yield wire.ToEdge(welcome=wire.Welcome(protocol=1, max_inflight=1))
            elif message.HasField("frame"):
                frames.put(message.frame.payload)
                return

    handler = grpc.stream_stream_rpc_method_handler(
        stream, wire.ToServer.FromString, wire.ToEdge.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(2))
    service = grpc.method_handlers_generic_handler("splitrt.wire.Tail", {"Stream": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    try:
        with Edge(folder, cloud=f"127.0.0.1:{port}", plan=plan, threads=1) as edge:
            edge({"image": picture})
    except SplitrtError:
        pass  # nobody answers
    finally:
        server.stop(0)
    return frames.get(timeout=10)
