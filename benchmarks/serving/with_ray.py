"""The tail behind Ray Serve: one replica with @serve.batch, raw bytes both ways."""

from __future__ import annotations

import argparse
import os
import signal

import ray
from program import Program
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

WAIT = float(os.environ["WAIT_MS"]) / 1000
BATCH = int(os.environ["MAX_BATCH"])


@serve.deployment(num_replicas=1, max_ongoing_requests=128, ray_actor_options={"num_cpus": 1})
class Tail:
    def __init__(self) -> None:
        self.program = Program()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT)
    async def run(self, bodies: list[bytes]) -> list[bytes]:
        return self.program(bodies)

    async def __call__(self, request: Request) -> Response:
        answer = await self.run(await request.body())
        return Response(answer, media_type="application/octet-stream")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    ray.init(num_cpus=4, include_dashboard=False, _temp_dir=os.environ["RAY_FOLDER"])
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Tail.bind(), route_prefix="/inference")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
