"""Whole pictures as JPEG: the plan that beats every bottleneck where the link is fast."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from splitrt.errors import PacketError

ROOM = 4096  # bytes for headers, beyond those of the raw picture


class Jpeg:
    """A codec like `Codec`, of uint8 pictures [H, W, 3]; what is packed are the decoded pixels."""

    bits, codes = 8, False

    def __init__(self, quality: int, shape: Sequence[int]) -> None:
        self.quality, self.shape = quality, tuple(shape)
        self.packed_size = math.prod(shape)
        self.limit = self.packed_size + ROOM

    def sized(self, shape: Sequence[int]) -> Jpeg:
        """The same for pictures of another size."""
        return self if tuple(shape) == self.shape else Jpeg(self.quality, shape)

    def encode(self, picture: np.ndarray) -> bytes:
        """The payload of a picture."""
        if picture.shape != self.shape or picture.dtype != np.uint8:
            raise PacketError(f"picture {list(picture.shape)}, {list(self.shape)} wanted")
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "JPEG", quality=self.quality)
        return out.getvalue()

    def pack(self, picture: np.ndarray) -> bytes:
        """The pixels."""
        return picture.tobytes()

    def open(self, payload: bytes) -> bytes:
        """The pixels of a payload from a peer; PacketError if it is not a picture of this size."""
        if len(payload) > self.limit:
            raise PacketError(f"payload of {len(payload)} bytes, at most {self.limit} wanted")
        height, width, _ = self.shape
        try:
            with Image.open(io.BytesIO(payload), formats=["JPEG"]) as image:
                if image.size != (width, height) or image.mode != "RGB":  # before it is decoded
                    raise PacketError(
                        f"JPEG of {image.height} × {image.width} {image.mode}, "
                        f"{height} × {width} RGB wanted"
                    )
                return np.asarray(image).tobytes()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise PacketError("payload is no JPEG") from error
