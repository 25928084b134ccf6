"""Frames of HTTP/2 (RFC 9113) by hand, for those who do not speak it as gRPC does."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW = 4  # a setting


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Nine bytes of header, then the payload."""
    head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags))
    return head + struct.pack(">I", stream) + payload


def block(path: str, **more: str) -> bytes:
    """The header block of a gRPC call: literals that are not indexed (RFC 7541, 6.2.2)."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "test",
        "content-type": "application/grpc", "te": "trailers", **more,
    }  # fmt: skip
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


def call(stream: int, path: str, **more: str) -> bytes:
    """The frame that begins a call."""
    return frame(HEADERS, END_HEADERS, stream, block(path, **more))


def message(stream: int, raw: bytes, *, length: int | None = None, flags: int = 0) -> bytes:
    """A gRPC message in one DATA frame; `length` may lie."""
    prefix = struct.pack(">BI", 0, len(raw) if length is None else length)
    return frame(DATA, flags, stream, prefix + raw)


def setting(name: int, value: int) -> bytes:
    return frame(SETTINGS, payload=struct.pack(">HI", name, value))


def opened(address: str, start: bytes = b"") -> socket.socket:
    """A connection that has sent `start`."""
    host, port = address.rsplit(":", 1)
    line = socket.create_connection((host, int(port)), 10)
    sent(line, start)
    return line


def greeted(address: str, *settings: bytes) -> socket.socket:
    """A connection after preface and settings."""
    return opened(address, PREFACE + (b"".join(settings) or frame(SETTINGS)))


def sent(line: socket.socket, raw: bytes) -> bool:
    """Whether all of it could be sent: the server may hang up."""
    try:
        line.sendall(raw)
    except OSError:
        return False
    return True


def heard(line: socket.socket, seconds: float) -> tuple[bytes, bool]:
    """What the server says within some seconds; and whether it hung up."""
    until, said = time.monotonic() + seconds, b""
    while (left := until - time.monotonic()) > 0:
        line.settimeout(left)
        try:
            piece = line.recv(65536)
        except TimeoutError:
            break
        except OSError:
            return said, True
        if not piece:
            return said, True
        said += piece
    return said, False


def hung_up(*lines: socket.socket) -> None:
    for line in lines:
        with contextlib.suppress(OSError):
            line.close()


def _text(words: str) -> bytes:
    """A string without Huffman; its length as an integer of 7 bits (RFC 7541, 5.1)."""
    raw = words.encode()
    if len(raw) < 127:
        return bytes((len(raw),)) + raw
    length, rest = b"\x7f", len(raw) - 127
    while rest > 127:
        length, rest = length + bytes((rest & 127 | 128,)), rest >> 7
    return length + bytes((rest,)) + raw
