"""The sum of all devices' parts, the same bits on each: over the hub, or everyone with everyone.

TPI-LLM (Li et al. 2024): what an allreduce between weak devices costs is its latency, so two hops
over a hub beat a ring of 2 (n - 1); everyone with everyone is one hop, and n - 1 times the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from splitrt.errors import LinkDown, PacketError, SplitrtError
from splitrt.star.frame import HEAD, Line, Message
from splitrt.star.part import Wire

KINDS = ("star", "mesh")
PART, SUM, CAST, TELL = b"PART", b"SUMS", b"CAST", b"TELL"
TOLD = 1 << 16  # bytes that `tell` may say
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Way:
    """How a sum is made. star: parts to the hub, the sum back; mesh: parts to all, each adds.

    wire: how numbers travel. f32 is exact; f16 and q8 change the sum, alike on all devices.
    """

    kind: str = "star"
    wire: str = "f32"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SplitrtError(f"no way {self.kind!r}\nhelp: one of {', '.join(KINDS)}")

    def __str__(self) -> str:
        return f"{self.kind} {self.wire}"


class Party:
    """One device of a star, and its lines to others; what all call together, in one order.

    rows, hidden: the largest array. device 0 is the hub. Any error ends the party: its lines close,
    so that the others learn of it at once. meshed: whether every device has a line to every other.
    For one thread.
    """

    def __init__(self, device: int, devices: int, rows: int, hidden: int) -> None:
        self.device, self.devices, self.rows, self.hidden = device, devices, rows, hidden
        self.lines: dict[int, Line] = {}  # by device
        self._most = 4 * rows * hidden
        self._out = Message(max(TOLD, self._most))
        self._in = Message(max(TOLD, self._most))
        self._parts: list[Message] = []
        self._wires: dict[str, Wire] = {}
        self._number = 0
        self._over: str | None = None
        self.meshed = False
        self.way = Way()

    @property
    def way(self) -> Way:
        """How sums are made; the same on all devices."""
        return self._way

    @way.setter
    def way(self, way: Way) -> None:
        if way.wire not in self._wires:
            self._wires[way.wire] = Wire(way.wire, self.rows, self.hidden)
        if way.kind == "mesh" and self.devices > 1:
            if not self.meshed:
                raise LinkDown("not every device reaches every other\nhelp: --reduce star")
            if not self._parts:
                self._parts = [Message(self._most) for _ in range(self.devices)]
        self._way, self._wire = way, self._wires[way.wire]

    def reduce(self, array: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """float32 [T, hidden], of one shape on all devices -> their sum, in the devices' order.

        out: where to; may be `array`. LinkDown names a device that is gone or silent.
        """
        self._fits(array)
        if out is None:
            out = np.empty_like(array)
        elif out.shape != array.shape or out.dtype != np.float32:
            raise SplitrtError(f"out is {out.dtype} {out.shape}\nhelp: float32 {array.shape}")
        return self._whole(self._reduced, array, out)

    def close(self) -> None:
        """Ends all lines."""
        self._over = self._over or "it was closed"
        for line in self.lines.values():
            line.close()

    def _reduced(self, array: np.ndarray, out: np.ndarray) -> np.ndarray:
        if self.devices == 1:
            np.copyto(out, array)
        elif self._way.kind == "mesh":
            self._exchange(array, out)
        elif self.device == 0:
            self._collect(array, out)
        else:
            self._ask(array, out)
        return out

    def _collect(self, array: np.ndarray, out: np.ndarray) -> None:
        """The hub's star. Its own part has not travelled, so it is exact; the sum is as sent."""
        wire, number, size = self._wire, self._number, self._wire.size(len(array))
        np.copyto(out, array)
        for device in range(1, self.devices):
            self.lines[device].receive(self._in, PART, number, size)
            wire.add(self._in.body, out)
        wire.write(out, self._out.body)
        message = self._out.sealed(SUM, number, size)
        for line in self.lines.values():
            line.send(message)
        if not wire.exact:
            wire.read(self._out.body, out)

    def _ask(self, array: np.ndarray, out: np.ndarray) -> None:
        """A spoke's star."""
        wire, number, size = self._wire, self._number, self._wire.size(len(array))
        wire.write(array, self._out.body)
        hub = self.lines[0]
        hub.send(self._out.sealed(PART, number, size))
        hub.receive(self._in, SUM, number, size)
        wire.read(self._in.body, out)

    def _exchange(self, array: np.ndarray, out: np.ndarray) -> None:
        """The mesh, step by step: a part may be larger than what sockets hold while all send."""
        wire, number, size = self._wire, self._number, self._wire.size(len(array))
        own = self._parts[self.device]
        wire.write(array, own.body)
        message = own.sealed(PART, number, size)
        around = [(self.device + k) % self.devices for k in range(1, self.devices)]
        step = min(self.lines[device].step for device in around)
        for device in around:
            self.lines[device].expect(self._parts[device], size)
        for start in range(0, HEAD.size + size, step):
            for device in around:
                self.lines[device].send(message[start : start + step])
            for device in around:
                self.lines[device].take(PART, number, start + step)
        wire.read(self._parts[0].body, out)
        for part in self._parts[1:]:
            wire.add(part.body, out)

    def _cast(self, tag: bytes, body: np.ndarray) -> None:
        """The hub says that to all. body: bytes."""
        np.copyto(self._out.body[: len(body)], body)
        message = self._out.sealed(tag, self._number, len(body))
        for device in range(1, self.devices):
            self.lines[device].send(message)

    def _heard(self, tag: bytes, timeout: float | None) -> int:
        """What the hub says is in `_in`: its length."""
        hub = self.lines[0]
        before, hub.timeout = hub.timeout, timeout
        _, length = hub.hear(self._in, (tag,), self._number)
        hub.timeout = before
        return length

    def _whole(self, call: Callable[..., T], *given: object) -> T:
        """A call with its number; whatever interrupts it ends the party, for others wait."""
        if self._over is not None:
            raise LinkDown(f"this star is over: {self._over}\nhelp: gather it again")
        self._number += 1
        try:
            return call(*given)
        except BaseException as error:
            self._over = str(error).split("\n")[0] or type(error).__name__
            self.close()
            raise

    def _fits(self, array: np.ndarray) -> None:
        if array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != self.hidden:
            found = f"{array.dtype} {list(array.shape)}"
            raise SplitrtError(f"a part is {found}\nhelp: float32 [T, {self.hidden}]")
        if not 0 < len(array) <= self.rows:
            raise SplitrtError(f"{len(array)} rows\nhelp: 1 to {self.rows}, as was agreed")

    def _rows(self, length: int) -> np.ndarray:
        """`length` bytes of `_in` as float32 rows."""
        if length % (4 * self.hidden) or not 0 < length <= self._most:
            raise PacketError(
                f"the hub's {length} bytes are no rows of {self.hidden}\n"
                "help: the same splitrt on all devices?"
            )
        return self._in.body[:length].view("<f4").reshape(-1, self.hidden).copy()

    def _joined(self, lines: Mapping[int, Line]) -> None:
        self.lines = dict(sorted(lines.items()))
