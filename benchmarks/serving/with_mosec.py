"""The tail behind mosec: one worker with dynamic batching, raw bytes both ways."""

from __future__ import annotations

import os

from mosec import Server, Worker
from program import Program


class Tail(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.program = Program()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        return self.program(data)


if __name__ == "__main__":
    server = Server()
    wait = int(float(os.environ["WAIT_MS"]))
    batch = int(os.environ["MAX_BATCH"])
    server.append_worker(Tail, max_batch_size=batch, max_wait_time=wait)
    server.run()
