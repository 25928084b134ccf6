"""The server's half: tail, batches, gRPC (needs torch)."""

from splitrt.cloud.admit import Quota
from splitrt.cloud.identity import Guard
from splitrt.cloud.seen import Seen
from splitrt.cloud.server import Server
from splitrt.cloud.turn import Room

__all__ = ["Guard", "Quota", "Room", "Seen", "Server"]
