"""The tail behind LitServe: one worker with dynamic batching, raw bytes both ways.

No `from __future__ import annotations` here: LitServe reads decode_request's annotation.
"""

import os
import sys
from typing import Annotated

import litserve
from fastapi import Body, Response
from program import Program


class Tail(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.program = Program()

    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, bodies: list[bytes]) -> list[bytes]:
        return self.program(bodies)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    tail = Tail(
        max_batch_size=int(os.environ["MAX_BATCH"]),
        batch_timeout=float(os.environ["WAIT_MS"]) / 1000,
        api_path="/inference",
    )
    server = litserve.LitServer(tail, accelerator="cpu", fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[sys.argv.index("--port") + 1]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
