"""The server's half: tail, batches, gRPC (needs torch)."""

from splitrt.cloud.admit import Quota
from splitrt.cloud.identity import Guard
from splitrt.cloud.server import Server

__all__ = ["Guard", "Quota", "Server"]
