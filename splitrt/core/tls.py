"""What both sides need to know each other: PEM files that are read and proved, own addresses."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

from splitrt.errors import SplitrtError

LARGEST = 1 << 20  # bytes of a PEM or token file
TOKEN = "authorization"  # the metadata that carries "Bearer TOKEN"
BEARER = "Bearer "


def small(path: str | Path) -> bytes:
    """A small file; SplitrtError if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise SplitrtError(
            f"{path} cannot be read: {error.strerror}\nhelp: name the file"
        ) from error
    if len(raw) > LARGEST:
        raise SplitrtError(f"{path} is larger than {LARGEST >> 20} MiB\nhelp: name another file")
    return raw


def pair(cert: str | Path, key: str | Path) -> tuple[bytes, bytes]:
    """(key, certificate) in PEM; SplitrtError unless they belong together."""
    read = small(key), small(cert)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key, password=lambda: b"")  # else it asks on the terminal
    except ssl.SSLError as error:
        raise SplitrtError(
            f"{cert} and {key} are no pair\nhelp: a PEM certificate and its key, without password"
        ) from error
    return read


def authorities(path: str | Path) -> bytes:
    """Certificates of authorities in PEM; SplitrtError if there are none."""
    raw = small(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=raw.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise SplitrtError(f"{path} holds no PEM certificate\nhelp: name the CA's file") from error
    return raw


def loopback(address: str) -> bool:
    """Whether host:port, or a host, is reached without leaving this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address if address.count(":") > 1 and "]" not in address else address.rsplit(":", 1)[0]
    host = host.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
