"""A frame's packed codes as their difference to an earlier frame's: for cameras that stand still.

Every code has a lane of `bits` bits; lanes are subtracted and added modulo 2^bits, so any two
frames have a difference and adding it back is exact. It is mostly zeros and goes as raw deflate
(RFC 1951) with runs only: smaller than zstd, whose headers weigh more on a few hundred bytes.
"""

from __future__ import annotations

import zlib

import numpy as np

from splitrt.errors import PacketError

KEPT = 8  # answered frames of a stream that may still be a base
TOP_BITS = {8: 0x80, 4: 0x88, 2: 0xAA, 1: 0xFF}  # of each lane in a byte


def encode(packed: bytes, base: bytes, bits: int) -> bytes:
    """The payload that `open` turns back into `packed`, given the same base."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    return squeezer.compress(_subtracted(packed, base, bits)) + squeezer.flush()


def open(payload: bytes, base: bytes, bits: int) -> bytes:
    """The packed bytes of a frame from a peer; PacketError if the payload is anything else."""
    if len(payload) > len(base):
        raise PacketError(f"difference of {len(payload)} bytes, at most {len(base)} wanted")
    return _added(_inflated(payload, len(base)), base, bits)


def _inflated(payload: bytes, size: int) -> bytes:
    """Exactly `size` bytes; never more than one beyond are made, whatever the payload claims."""
    opener = zlib.decompressobj(-15)
    try:
        difference = opener.decompress(payload, size + 1)
    except zlib.error as error:
        raise PacketError("difference does not decompress") from error
    if len(difference) != size:
        raise PacketError(f"difference of {len(difference)} packed bytes, {size} wanted")
    if not opener.eof or opener.unused_data or opener.unconsumed_tail:
        raise PacketError("difference does not end where its numbers do")
    return difference


def _subtracted(packed: bytes, base: bytes, bits: int) -> bytes:
    """packed - base in every lane; the top bits apart, so that no lane borrows from the next."""
    a, b, top = *_pair(packed, base), np.uint8(TOP_BITS[bits])
    return (((a | top) - (b & ~top)) ^ ((a ^ ~b) & top)).tobytes()


def _added(packed: bytes, base: bytes, bits: int) -> bytes:
    """packed + base in every lane; the top bits apart, so that no lane carries into the next."""
    a, b, top = *_pair(packed, base), np.uint8(TOP_BITS[bits])
    return (((a & ~top) + (b & ~top)) ^ ((a ^ b) & top)).tobytes()


def _pair(packed: bytes, base: bytes) -> tuple[np.ndarray, np.ndarray]:
    if len(packed) != len(base):
        raise PacketError(f"{len(packed)} packed bytes against a base of {len(base)}")
    return np.frombuffer(packed, np.uint8), np.frombuffer(base, np.uint8)
