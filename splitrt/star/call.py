"""gRPC between a hub and its spokes: how they reach each other, what they prove, what is too much.

Proofs bind both sides' random bytes and the name; the secret never travels. Without certificates
whoever can read the line reads what goes over it, and whoever can change it may stand in between.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from urllib.parse import unquote

import grpc

from splitrt.core.manifest import LARGEST_MANIFEST
from splitrt.core.shards import MOST, Shards
from splitrt.core.tls import authorities, pair
from splitrt.edge.trust import Trust
from splitrt.star.greet import NONCE, Terms
from splitrt.star.seal import Seal

PROTOCOL = 1
GREETING = 5.0  # seconds in which who comes must have proved itself
BEAT = 0.3  # seconds between two of a spoke's
PATIENCE = 1.5  # seconds without one after which it is lost
SILENCE = 3.0  # times the hub's patience without a word of it: a spoke joins anew; pieces are words
AWAY = 1.0  # seconds late, after which it was this process that slept
SUMS = 600.0  # seconds that one part may take; that a device lives is known from its beats
SAID = 16 << 10  # bytes of a spoke's message
TOLD = LARGEST_MANIFEST + (64 << 10)  # bytes of a hub's message
PIECE = 256 << 10  # bytes of a file that travel at once
ROWS = 1024  # at once, at most
HUB, SPOKE = b"star hub", b"star spoke"  # who proves
CONNECT = 2000  # milliseconds that a connection may take
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # the sums go straight, too
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", CONNECT),
    ("grpc.max_reconnect_backoff_ms", CONNECT),
    ("grpc.max_receive_message_length", TOLD),
]
SERVING = [
    ("grpc.max_receive_message_length", SAID),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", int(1000 * GREETING)),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 4000),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
]
CALLS = 8 * MOST  # at once, of all


def trust(seal: Seal) -> Trust:
    """How who has that seal reaches others. SplitrtError for a certificate without ca."""
    return Trust(ca=seal.ca, cert=seal.cert, key=seal.key)


def credentials(seal: Seal) -> grpc.ServerCredentials | None:
    """For who has that seal and is called; None: not encrypted. SplitrtError for wrong files."""
    if seal.cert is None or seal.key is None:
        return None
    roots = None if seal.ca is None else authorities(seal.ca)
    return grpc.ssl_server_credentials(
        [pair(seal.cert, seal.key)], roots, require_client_auth=roots is not None
    )


def agreed(
    manifest: Shards, *, parts: Sequence[int], rows: int, epoch: int, timeout: float = SUMS
) -> Terms:
    """What all devices of a division hold alike: of another model or epoch nobody joins its sums.

    parts: shards of each device.  timeout: seconds of silence in the middle of a step; between
    steps it may last for ever.
    """
    return Terms(
        devices=len(parts),
        parts=tuple(parts),
        hidden=manifest.shape.hidden,
        rows=rows,
        model=f"{manifest.digest.hex()} {epoch}",
        timeout=timeout,
    )


def fresh() -> bytes:
    """Random bytes for one greeting."""
    return secrets.token_bytes(NONCE)


def host(peer: str) -> str | None:
    """The host of what gRPC calls a peer: ipv4:1.2.3.4:567 or ipv6:[::1]:567; None: no such."""
    kind, _, rest = unquote(peer).partition(":")
    found = rest.rpartition(":")[0]
    return found if kind in ("ipv4", "ipv6") and found else None
