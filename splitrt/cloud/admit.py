"""How much may come: of each device by buckets that fill with time, of all by what was refused."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from splitrt.errors import SplitrtError

MOST_DEVICES = 10_000  # whose buckets are kept; the one not seen for longest is forgotten
EXACT = 1e-6  # seconds: what rounding may leave over
HALF_LIFE = 1.0  # seconds in which what was taken and refused is forgotten by half
FREE = 0.15  # refusals for each frame that was taken, which are too few to do anything about
FEW = 10.0  # frames, of which nothing can be learnt
AWAY = 3.0  # seconds to stay away, for each refusal beyond those
LONGEST_AWAY = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class Quota:
    """What one device may send a second; None: as much as it likes.

    burst: seconds' worth that may come at once.
    """

    frames_per_second: float | None = None
    bytes_per_second: float | None = None
    burst: float = 1.0

    def __post_init__(self) -> None:
        for name in ("frames_per_second", "bytes_per_second", "burst"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SplitrtError(f"{name} = {value}\nhelp: a number of more than 0")


class Bucket:
    """Fills by `rate` a second up to `room`. Starts full."""

    def __init__(self, rate: float, room: float, now: float) -> None:
        self.rate, self.room = rate, room
        self._level, self._at = room, now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much may be taken; more than `room` may be when it is full."""
        self._level = min(self.room, self._level + (now - self._at) * self.rate)
        self._at = now
        missing = (min(amount, self.room) - self._level) / self.rate
        return missing if missing > EXACT else 0.0

    def take(self, amount: float) -> None:
        """Take it, though the bucket be in debt afterwards."""
        self._level -= amount


class Quotas:
    """The buckets of all devices. Used by the server's loop."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.limited = (quota.frames_per_second, quota.bytes_per_second) != (None, None)
        self._devices: OrderedDict[str, list[tuple[Bucket, bool]]] = OrderedDict()

    def wait(self, device: str, size: int, now: float, frames: int = 1) -> float:
        """0 if frames of so many bytes may come now, and count; else seconds until then.

        What is refused costs nothing.
        """
        buckets = self._of(device, now)
        amounts = [(bucket, size if in_bytes else frames) for bucket, in_bytes in buckets]
        missing = max((bucket.wait(amount, now) for bucket, amount in amounts), default=0.0)
        if not missing:
            for bucket, amount in amounts:
                bucket.take(amount)
        return missing

    def _of(self, device: str, now: float) -> list[tuple[Bucket, bool]]:
        """That device's buckets, and whether each counts bytes."""
        if device in self._devices:
            self._devices.move_to_end(device)
            return self._devices[device]
        quota, buckets = self.quota, []
        if (frames := quota.frames_per_second) is not None:
            buckets.append((Bucket(frames, max(1.0, frames * quota.burst), now), False))
        if (size := quota.bytes_per_second) is not None:
            buckets.append((Bucket(size, size * quota.burst, now), True))
        self._devices[device] = buckets
        if len(self._devices) > MOST_DEVICES:
            self._devices.popitem(last=False)
        return buckets


class Excess:
    """How many frames were refused of late because of the others, for each that was taken.

    A refusal costs the server a quarter of a millisecond, which the frames that it could answer
    then lack. So whoever is refused is told to stay away, the longer the more are.
    """

    def __init__(self) -> None:
        self._taken = self._refused = self._at = 0.0

    def taken(self, now: float) -> None:
        """One more that was taken."""
        self._fade(now)
        self._taken += 1

    def refused(self, now: float) -> float:
        """One more that was not; seconds to stay away."""
        self._fade(now)
        self._refused += 1
        share = self._refused / max(FEW, self._taken)
        return min(LONGEST_AWAY, AWAY * max(0.0, share - FREE))

    def _fade(self, now: float) -> None:
        left = 0.5 ** (max(0.0, now - self._at) / HALF_LIFE)
        self._taken, self._refused, self._at = left * self._taken, left * self._refused, now
