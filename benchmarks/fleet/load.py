"""What simulated devices are to do, and what became of their frames."""

from __future__ import annotations

from dataclasses import dataclass, field

RATE = 10  # frames a second of each device


@dataclass(frozen=True, slots=True)
class Load:
    """What the devices of one process do.

    addresses: servers; each device begins with one of them, chance says which.
    begin: time.monotonic() of the first frame.  warm, seconds: not counted, then counted.
    rate: frames a second; 0: only pings, as an Edge's link sends them.  steered: by the controller;
    else every frame goes that the server's refusals allow.  deaf: not even those count.
    slack: the server is told the time that is left, so that it can refuse.  closed: frames that
    each device keeps in flight, as fast as they are answered; 0: `rate` frames a second.
    connect: time.monotonic() before which no device connects.
    ca: PEM of who vouches for the servers.  tokens: a file of name:token, a line for each device.
    """

    folder: str
    plan: str
    addresses: tuple[str, ...]
    devices: int
    begin: float
    seconds: float
    seed: int = 0
    warm: float = 3.0
    rate: float = RATE
    steered: bool = False
    deaf: bool = False
    slack: bool = True
    closed: int = 0
    ca: str | None = None
    tokens: str | None = None
    connect: float = 0.0
    first: int = 0  # number of the first device

    @property
    def end(self) -> float:
        return self.begin + self.warm + self.seconds

    def counts(self, now: float) -> bool:
        return 0 <= now - self.begin - self.warm < self.seconds


@dataclass(slots=True)
class Count:
    """What became of the frames that were captured, or answered in a closed loop, while it counts.

    kept: not sent, the device answers.  late: answers that the server computed in vain.
    broken: their server went away.  lost: frames without any answer.  took: milliseconds of each
    answer.  stamps: time.monotonic() of answers in time, counted or not.  welcome: seconds from
    the first attempt of each connection to its Welcome, and time.monotonic() of it.
    """

    frames: int = 0
    kept: int = 0
    sent: int = 0
    in_time: int = 0
    late: int = 0
    busy: int = 0
    expired: int = 0
    broken: int = 0
    lost: int = 0
    took: list[float] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)
    welcome: list[tuple[float, float]] = field(default_factory=list)
    attempts: int = 0

    @property
    def whole(self) -> bool:
        """Whether every frame is in exactly one of the other counts."""
        ended = self.in_time + self.late + self.busy + self.expired + self.broken + self.lost
        return self.frames in (0, self.kept + self.sent) and self.sent == ended
