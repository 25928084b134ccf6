"""The sum of all devices' parts, the same bits on each: over the hub, or everyone with everyone.

TPI-LLM (Li et al. 2024): what an allreduce between weak devices costs is its latency, so two hops
over a hub beat a ring of 2 (n - 1); everyone with everyone is one hop, and n - 1 times the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from splitrt.errors import LinkDown, PacketError, SplitrtError
from splitrt.star.frame import HEAD, Line, Message
from splitrt.star.part import Wire

KINDS = ("star", "mesh")
PART, SUM, CAST, TELL = b"PART", b"SUMS", b"CAST", b"TELL"
TOLD = 1 << 16  # bytes that `tell` may say
MANY = 8  # rows
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Way:
    """How a sum is made. star: parts to the hub, the sum back; mesh: parts to all, each adds.

    wire: how numbers travel. f32 is exact; f16 and q8 round every part and the sum, alike on all
    devices, whoever holds which part, by both ways.
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

    parts: how many each device adds to a sum.  rows, hidden: the largest of them.  device 0 is the
    hub.  wide: kind of sums of MANY rows, where bytes count.  meshed: whether every device has a
    line to every other. Any error ends the party: its lines close, so that the others learn of it
    at once. For one thread.
    """

    def __init__(self, device: int, parts: Sequence[int], rows: int, hidden: int) -> None:
        self.device, self.devices, self.rows, self.hidden = device, len(parts), rows, hidden
        self.parts = tuple(parts)
        self.lines: dict[int, Line] = {}  # by device
        self._most = 4 * rows * hidden  # bytes of a part
        self._out, self._in = (Message(max(TOLD, self._most * max(parts))) for _ in range(2))
        self._parts: list[Message] = []
        self._wires: dict[str, Wire] = {}
        self._number = 0
        self._over: str | None = None
        self.meshed = False
        self.way = Way()

    @property
    def way(self) -> Way:
        """How sums are made; the same on all devices. Setting it sets `wide`, too."""
        return self._way

    @way.setter
    def way(self, way: Way) -> None:
        if way.wire not in self._wires:
            self._wires[way.wire] = Wire(way.wire, self.rows, self.hidden)
        if way.kind == "mesh" and self.devices > 1:
            if not self.meshed:
                raise LinkDown("not every device reaches every other\nhelp: --reduce star")
            if not self._parts:
                self._parts = [Message(self._most * count) for count in self.parts]
        self._way, self._wire, self.wide = way, self._wires[way.wire], way.kind

    def reduce(self, array: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """float32 [parts, T, hidden], or of one part [T, hidden] -> the sum of all devices' parts.

        They are added one after the other, in the devices' order: who holds which of them changes
        no bit.  out: where to, [T, hidden]; may be `array`. LinkDown names a device that is gone or
        silent.
        """
        own = array if array.ndim == 3 else array[None]
        self._fits(own[0])
        if len(own) != self.parts[self.device]:
            raise SplitrtError(f"{len(own)} parts\nhelp: {self.parts[self.device]}, as was agreed")
        if out is None:
            out = np.empty_like(own[0])
        elif out.shape != own[0].shape or out.dtype != np.float32:
            raise SplitrtError(f"out is {out.dtype} {out.shape}\nhelp: float32 {own[0].shape}")
        return self._whole(self._reduced, own, out)

    def close(self) -> None:
        """Ends all lines."""
        self._over = self._over or "it was closed"
        for line in tuple(self.lines.values()):
            line.close()

    def _reduced(self, own: np.ndarray, out: np.ndarray) -> np.ndarray:
        kind = self._way.kind if len(out) < MANY else self.wide
        if kind == "mesh" and self.devices > 1:
            self._exchange(own, out)
        elif self.device == 0:
            self._collect(own, out)
        else:
            self._ask(own, out)
        return out

    def _collect(self, own: np.ndarray, out: np.ndarray) -> None:
        """The hub's star."""
        wire, number, size = self._wire, self._number, self._wire.size(len(out))
        self._first(own, out)
        for device in range(1, self.devices):
            self.lines[device].receive(self._in, PART, number, size * self.parts[device])
            self._add(self._in, self.parts[device], out)
        wire.write(out, self._out.body)
        message = self._out.sealed(SUM, number, size)
        for line in self.lines.values():
            line.send(message)
        if not wire.exact:
            wire.read(self._out.body, out)

    def _first(self, own: np.ndarray, out: np.ndarray) -> None:
        """The hub's own parts, as they would have travelled."""
        if self._wire.exact:
            np.copyto(out, own[0])
            for part in own[1:]:
                np.add(out, part, out=out)
            return
        self._written(self._out, own)
        self._wire.read(self._out.body, out)
        self._add(self._out, len(own), out, 1)

    def _ask(self, own: np.ndarray, out: np.ndarray) -> None:
        """A spoke's star."""
        wire, number, size = self._wire, self._number, self._wire.size(len(out))
        hub = self.lines[0]
        hub.send(self._written(self._out, own))
        hub.receive(self._in, SUM, number, size)
        wire.read(self._in.body, out)

    def _exchange(self, own: np.ndarray, out: np.ndarray) -> None:
        """The mesh, step by step: a part may be larger than what sockets hold while all send."""
        number, size = self._number, self._wire.size(len(out))
        message = self._written(self._parts[self.device], own)
        around = [(self.device + k) % self.devices for k in range(1, self.devices)]
        step = min(self.lines[device].step for device in around)
        for device in around:
            self.lines[device].expect(self._parts[device], size * self.parts[device])
        for start in range(0, HEAD.size + size * max(self.parts), step):
            for device in around:
                self.lines[device].send(message[start : start + step])
            for device in around:
                self.lines[device].take(PART, number, start + step)
        self._wire.read(self._parts[0].body, out)
        self._add(self._parts[0], self.parts[0], out, 1)
        for part, count in zip(self._parts[1:], self.parts[1:], strict=True):
            self._add(part, count, out)
        if not self._wire.exact:
            self._wire.write(out, self._out.body)
            self._wire.read(self._out.body, out)

    def _written(self, message: Message, own: np.ndarray) -> memoryview:
        """Own parts, one behind the other, as they go out."""
        size = self._wire.size(own.shape[1])
        for place, part in enumerate(own):
            self._wire.write(part, message.body[place * size :])
        return message.sealed(PART, self._number, size * len(own))

    def _add(self, message: Message, count: int, out: np.ndarray, first: int = 0) -> None:
        """The parts of a message, from that one on, to `out`."""
        size = self._wire.size(len(out))
        for place in range(first, count):
            self._wire.add(message.body[place * size :], out)

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
