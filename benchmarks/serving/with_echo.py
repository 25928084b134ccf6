"""No server at all: a grpc.aio stream that answers each message at once with as many bytes."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc


async def serve(port: int, size: int) -> None:
    """Answers of `size` bytes, unparsed both ways."""
    answer = bytes(size)

    async def stream(messages: AsyncIterator[bytes], context: Any) -> None:
        async for _ in messages:
            await context.write(answer)

    handlers = {"Stream": grpc.stream_stream_rpc_method_handler(stream)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.size))
