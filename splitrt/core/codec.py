"""From codes to bytes and back: dense packing, then zstd with a check before every allocation.

Payload of a zstd rung: one flag byte (0 stored, 1 compressed), then the body. Of a raw rung: the
packed bytes. Element 2i of a 4-bit rung lies in the low nibble of byte i.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import zstandard

from splitrt.core.manifest import CodecSpec, Manifest, verified
from splitrt.errors import PacketError

LEVEL = 1
SMALL = 4096  # packed bytes; a dictionary pays below
WORTH = 0.95  # stored unless zstd comes below this share
FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS  # four bytes less a frame
LARGEST_HALF = 65504.0
STORED, ZSTD = 0, 1


class Codec:
    """One rung: `encode` on the device; `open` on the server, up to the packed bytes.

    The server unpacks in torch, on its own device.
    """

    def __init__(self, bits: int, coder: str, dictionary: bytes | None, count: int) -> None:
        self.bits, self.coder, self.count = bits, coder, count
        self.packed_size = (count * bits + 7) // 8
        self.limit = self.packed_size + (coder == "zstd")
        self._dictionary = None
        if dictionary is not None and self.packed_size < SMALL:
            self._dictionary = zstandard.ZstdCompressionDict(dictionary)
        self._local = threading.local()

    def encode(self, array: np.ndarray) -> bytes:
        """The payload of float features (f32, f16) or uint8 codes (q8 … q1)."""
        packed = self.pack(array)
        if self.coder == "raw":
            return packed
        body = self._compressor().compress(packed)
        if len(body) < WORTH * len(packed):
            return bytes((ZSTD,)) + body
        return bytes((STORED,)) + packed

    def pack(self, array: np.ndarray) -> bytes:
        """Exactly `packed_size` bytes."""
        flat = array.reshape(-1)
        if flat.size != self.count:
            raise PacketError(f"{flat.size} numbers to send, the model's cut has {self.count}")
        if self.bits > 8:
            return self._floats(flat)
        if self.bits == 8:
            return flat.astype(np.uint8).tobytes()
        each = 8 // self.bits
        padded = np.zeros(self.packed_size * each, np.uint8)
        padded[: self.count] = flat
        lanes = padded.reshape(-1, each) << (np.arange(each, dtype=np.uint8) * self.bits)
        return np.bitwise_or.reduce(lanes, axis=1).astype(np.uint8).tobytes()

    def open(self, payload: bytes) -> bytes:
        """The packed bytes of a payload from a peer; PacketError if it is anything else."""
        if len(payload) > self.limit:
            raise PacketError(f"payload of {len(payload)} bytes, at most {self.limit} wanted")
        if self.coder == "raw":
            return self._sized(payload)
        if not payload or payload[0] not in (STORED, ZSTD):
            raise PacketError("payload without a known flag byte")
        body = payload[1:]
        packed = self._sized(body) if payload[0] == STORED else self._decompress(body)
        spare = self.packed_size * 8 - self.count * self.bits
        if spare and packed[-1] >> (8 - spare):
            raise PacketError("padding bits are not zero")
        return packed

    def _floats(self, flat: np.ndarray) -> bytes:
        if not np.isfinite(flat).all():
            raise PacketError(
                "the head gave NaN or infinity\nhelp: check the picture and the model"
            )
        if self.bits == 16:
            return flat.clip(-LARGEST_HALF, LARGEST_HALF).astype("<f2").tobytes()
        return flat.astype("<f4").tobytes()

    def _decompress(self, body: bytes) -> bytes:
        """zstd ignores max_output_size when the frame states a size: look at that first."""
        try:
            stated = zstandard.get_frame_parameters(body, format=FORMAT)
            if stated.content_size != self.packed_size:
                raise PacketError(
                    f"compressed frame states {stated.content_size} bytes, "
                    f"{self.packed_size} wanted"
                )
            if stated.window_size > max(1 << 10, 2 * self.packed_size):
                raise PacketError(f"compressed frame wants a window of {stated.window_size} bytes")
            return self._sized(self._decompressor().decompress(body, allow_extra_data=False))
        except (zstandard.ZstdError, MemoryError, OverflowError, SystemError) as error:
            raise PacketError("payload does not decompress") from error

    def _sized(self, packed: bytes) -> bytes:
        if len(packed) != self.packed_size:
            raise PacketError(f"{len(packed)} packed bytes, {self.packed_size} wanted")
        return packed

    def _compressor(self) -> zstandard.ZstdCompressor:
        if not hasattr(self._local, "compressor"):
            parameters = zstandard.ZstdCompressionParameters.from_level(
                LEVEL,
                source_size=self.packed_size,
                dict_size=16 << 10 if self._dictionary else 0,
                format=FORMAT,
                write_content_size=True,
                write_checksum=False,
                write_dict_id=False,
            )
            self._local.compressor = zstandard.ZstdCompressor(
                dict_data=self._dictionary, compression_params=parameters
            )
        compressor: zstandard.ZstdCompressor = self._local.compressor
        return compressor

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        if not hasattr(self._local, "decompressor"):
            self._local.decompressor = zstandard.ZstdDecompressor(
                dict_data=self._dictionary, format=FORMAT
            )
        decompressor: zstandard.ZstdDecompressor = self._local.decompressor
        return decompressor


def codecs(folder: str | Path, manifest: Manifest) -> dict[str, Codec]:
    """Every rung of a model directory, by name."""
    return {name: _codec(folder, manifest, spec) for name, spec in manifest.codecs.items()}


def _codec(folder: str | Path, manifest: Manifest, spec: CodecSpec) -> Codec:
    dictionary = None
    if spec.dictionary is not None:
        dictionary = verified(folder, manifest, spec.dictionary).read_bytes()
    return Codec(spec.bits, spec.coder, dictionary, manifest.elements)
