"""Which plan is best for this frame: what each costs here, and what it is worth by the deadline."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """A plan of the manifest with what it costs on this device.

    bytes: of the whole message.  head: seconds from the picture to the payload.  accuracy: of the
    answer if it comes in time, 0 to 1.  joules: of the device, for the head and for sending.
    """

    name: str
    bytes: float
    head: float
    accuracy: float
    joules: float = 0.0
