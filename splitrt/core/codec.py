"""From codes to bytes and back: dense packing, a coder, and a check before every allocation.

Payload of a zstd or deflate rung: one flag byte (0 stored, 1 compressed), then the body. Of a raw
rung: the packed bytes. Of an ans rung: the coder's state. Element 2i of a 4-bit rung lies in the
low nibble of byte i.
"""

from __future__ import annotations

import functools
import math
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zstandard

from splitrt.core.ans import Ans, Tables
from splitrt.core.jpeg import Jpeg
from splitrt.core.manifest import Manifest, Plan, verified
from splitrt.core.tensors import Tensors
from splitrt.errors import PacketError

LEVEL = 1
SMALL = 4096  # packed bytes; a dictionary pays below
WORTH = 0.95  # stored unless zstd comes below this share
FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS  # four bytes less a frame
LARGEST_HALF = 65504.0
STORED, COMPRESSED = 0, 1
KEPT = 16  # sizes of pictures for which a codec is kept


class Codec:
    """One plan's codec: `encode` on the device; `open` on the server, up to the packed bytes.

    The server unpacks in torch, on its own device.
    """

    def __init__(
        self,
        bits: int,
        coder: str,
        shape: Sequence[int],
        *,
        dictionary: bytes | None = None,
        tables: Tables | None = None,
    ) -> None:
        self.bits, self.coder, self.count = bits, coder, math.prod(shape)
        self.codes = bits <= 8  # integers, so that one frame can be a difference to another
        self.ans = None if tables is None else Ans(tables, tuple(shape))
        self.packed_size = (self.count * bits + 7) // 8
        self.limit = self.packed_size + (coder in ("zstd", "deflate"))
        if self.ans is not None:
            self.limit = self.ans.limit
        self._dictionary = None
        if dictionary is not None and self.packed_size < SMALL:
            self._dictionary = zstandard.ZstdCompressionDict(dictionary)
        self._local = threading.local()
        self._others = functools.lru_cache(KEPT)(
            lambda count: Codec(bits, coder, [count], dictionary=dictionary)
        )

    def sized(self, shape: Sequence[int]) -> Codec:
        """This rung for another shape, where pictures change their size."""
        count = math.prod(shape)
        return self if count == self.count else self._others(count)

    def encode(self, array: np.ndarray) -> bytes:
        """The payload of float features (f32, f16) or uint8 codes (q8 … q1)."""
        if self.ans is not None:
            return self.ans.encode(self._counted(array))
        packed = self.pack(array)
        if self.coder == "raw":
            return packed
        deflate = self.coder == "deflate"
        body = _deflated(packed) if deflate else self._compressor().compress(packed)
        if len(body) < WORTH * len(packed):
            return bytes((COMPRESSED,)) + body
        return bytes((STORED,)) + packed

    def pack(self, array: np.ndarray) -> bytes:
        """Exactly `packed_size` bytes."""
        flat = self._counted(array).reshape(-1)
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
        if self.ans is not None:
            return self.pack(self.ans.decode(payload))
        if self.coder == "raw":
            return self._sized(payload)
        if not payload or payload[0] not in (STORED, COMPRESSED):
            raise PacketError("payload without a known flag byte")
        body = payload[1:]
        packed = self._sized(body) if payload[0] == STORED else self._decompress(body)
        spare = self.packed_size * 8 - self.count * self.bits
        if spare and packed[-1] >> (8 - spare):
            raise PacketError("padding bits are not zero")
        return packed

    def _counted(self, array: np.ndarray) -> np.ndarray:
        if array.size != self.count:
            raise PacketError(f"{array.size} numbers to send, the model's cut has {self.count}")
        return array

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
        if self.coder == "deflate":
            return self._sized(_inflated(body, self.packed_size))
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


def codecs(folder: str | Path, manifest: Manifest) -> dict[str, Codec | Jpeg]:
    """The codec of every cloud plan of a model directory, by the plan's name."""
    tables = Tensors(folder, manifest, "tables.safetensors")
    return {
        plan.name: _codec(folder, manifest, plan, tables)
        for plan in manifest.plans
        if plan.codec is not None
    }


def _codec(folder: str | Path, manifest: Manifest, plan: Plan, tensors: Tensors) -> Codec | Jpeg:
    spec, shape = manifest.codecs[plan.codec or ""], manifest.crossing(plan)
    if spec.coder == "jpeg":
        return Jpeg(spec.quality or 0, shape)
    dictionary, tables = None, None
    if plan.dictionary is not None:
        dictionary = verified(folder, manifest, plan.dictionary).read_bytes()
    if spec.coder == "ans":
        key = f"{plan.width}.{plan.codec}"
        tables = Tables(tensors[f"{key}.frequencies"], tensors[f"{key}.contexts"])
    return Codec(spec.bits, spec.coder, shape, dictionary=dictionary, tables=tables)


def _deflated(packed: bytes) -> bytes:
    """Raw deflate with runs only: the least overhead on codes that are mostly zero."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    return squeezer.compress(packed) + squeezer.flush()


def _inflated(body: bytes, size: int) -> bytes:
    """At most one byte more than `size`, whatever the body claims."""
    opener = zlib.decompressobj(-15)
    try:
        packed = opener.decompress(body, size + 1)
    except zlib.error as error:
        raise PacketError("payload does not decompress") from error
    if not opener.eof or opener.unused_data or opener.unconsumed_tail:
        raise PacketError("payload does not end where its numbers do")
    return packed
