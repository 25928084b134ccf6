"""The tail behind splitrt's own server, as `splitrt serve` starts it."""

from __future__ import annotations

import argparse
import os

from splitrt.cloud import Server

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    with Server(os.environ["TAIL_FOLDER"], port=parser.parse_args().port, threads=1) as server:
        server.wait()
