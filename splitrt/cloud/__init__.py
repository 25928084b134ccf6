"""The server's half: tail, batches, gRPC (needs torch)."""

from splitrt.cloud.server import Server

__all__ = ["Server"]
