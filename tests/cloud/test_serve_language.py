"""`splitrt serve` with a language model: what it says, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from splitrt.core.rows import Rows
from tests.cloud.speaker import Speaker
from tests.conftest import ROOT


def test_it_says_what_each_way_to_send_costs_and_answers_what_is_in_flight(llama_dir, llama, head):
    command = [sys.executable, "-m", "splitrt.cli", "serve", str(llama_dir), "--port", "0"]
    command += ["--threads", "1", "--kv-tokens", "1000", "--ttl", "7"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        first, *lines = [server.stdout.readline() for _ in range(4)]
        assert first.startswith(f"layers 1 to 4 of {llama_dir} at 127.0.0.1:")
        size = Rows(llama.codec, llama.shape.hidden).size
        held = 4 * (2 * 2 * llama.shape.kv_heads * llama.shape.head + llama.shape.hidden)
        assert lines[0].startswith(f"hidden: {size} bytes a position up, {held:,} held; rows of")
        assert lines[1].startswith("tokens: 4 bytes a position up")
        assert "room for 1,000 positions, 4,000 more parked" in lines[2]
        with Speaker(first.split()[-1], llama) as speaker:
            assert speaker.opened.ttl_s == 7
            seq = speaker.ask(0, head.rows([1, 2, 3]))
            assert speaker.get().verdict.seq == seq
            server.send_signal(signal.SIGTERM)
            assert list(speaker.call) == []
        assert server.wait(30) == 0
    finally:
        server.kill()
