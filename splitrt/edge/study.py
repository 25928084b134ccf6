"""What an adapted device makes of its own frames: logits revised or not, which are worth telling.

No thread and no clock: `pupil` has those.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitrt.core.codec import Codec
from splitrt.core.gate import probabilities
from splitrt.core.jpeg import Jpeg
from splitrt.core.manifest import Manifest, Plan, Width
from splitrt.core.revision import Revision, averaged, corrected, mark
from splitrt.core.scales import scale
from splitrt.core.worth import Stream, weigh
from splitrt.errors import PacketError, SplitrtError

logger = logging.getLogger(__name__)

# A good revision contradicts the server, too: it follows a teacher that has adapted, and the server
# answers by the tail as it was exported. On darkened pictures it did so in .31 of the frames on
# which exit and server agree, and was right in .39 of all instead of .26. So only what contradicts
# most of them is dropped: a revision that has collapsed, or was made to harm.
WINDOW = 100  # frames on which the shipped exit and the server agreed
LEAST = 10  # of them that must have come
KEPT = 0.5  # of them on which a revision must agree, too, but for chance
DIGEST = 32  # bytes
FARTHEST = 1000  # by which a number may be ahead: one at the end of all would be the last


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One frame as the exit saw it: logits [K] as shipped, and those that count.

    number: of the revision that made them; 0: none did.  worth: whether a server could learn of it.
    """

    shipped: np.ndarray
    logits: np.ndarray
    number: int
    worth: bool


class Study:
    """The exit of one width, with at most one revision; may be used from several threads.

    The dequantised codes of `plan` are what a revision looks at, beside the exit's logits.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        width: Width,
        codecs: Mapping[str, Codec | Jpeg],
    ) -> None:
        if width.exit is None or manifest.sizes is not None or manifest.side:
            raise SplitrtError(
                f"width {width.name!r} of {manifest.name} has no exit to adapt\n"
                "help: leave out adapt, or export a classifier of pictures of one size with exits"
            )
        self.manifest, self.width, self.record = manifest, width, width.exit
        self.plan, self.codec = lesson(manifest, width, codecs)
        self.values = scale(folder, manifest, self.plan)  # as the server has them, to the bit
        self._lock = threading.Lock()
        self._stream = Stream()
        self._revision: Revision | None = None
        self._seen, self._tail = 0, b""
        self._kept: deque[bool] = deque(maxlen=WINDOW)  # whether the revised exit agreed, too

    def rung_of(self, width: Width) -> str | None:
        """The output of that width's head which holds the codes; None if it is another width."""
        return self.plan.codec if width.name == self.width.name else None

    @property
    def used(self) -> int:
        """Number of the revision in use, 0 for none."""
        revision = self._revision
        return 0 if revision is None else revision.number

    @property
    def seen(self) -> int:
        """The largest number that was taken, dropped since or not."""
        return self._seen

    @property
    def tail(self) -> bytes:
        """Of which model the revision in use was made, in the server's words."""
        return self._tail if self.used else b""

    @property
    def level(self) -> np.ndarray:
        """The stream's mean mark [C], over a longer time."""
        return self._stream.level

    def view(self, shipped: np.ndarray, codes: np.ndarray) -> View:
        """What to answer for a frame of these logits [K] and codes [C, …]."""
        values = self.values(codes)
        marked, revision, before = mark(values), self._revision, self._stream.mean
        logits, number = shipped, 0
        if revision is not None and revision.fits(before if before.size else marked):
            logits, number = revision(shipped, values), revision.number
            if not np.isfinite(logits).all():
                logits, number = shipped, 0
                self.drop("it gives infinite numbers", revision.number)
        shares = probabilities(logits, self.record.temperature)
        with self._lock:
            why, self._stream = weigh(self._stream, shares, marked)
        return View(shipped, logits, number, why == "worth")

    def adopt(self, number: int, width: str, sha256: bytes, body: bytes, tail: bytes = b"") -> None:
        """Take what a server of that tail sent, from the next frame on; an empty body takes all.

        PacketError if it is not what it is said to be; then the old one stays. One thread calls it.
        """
        if not self._seen < number <= self._seen + FARTHEST:
            wanted = f"{self._seen + 1} to {self._seen + FARTHEST}"
            raise PacketError(f"revision {number}, and {wanted} may come")
        revision = None if not body else self._opened(number, width, sha256, body)
        with self._lock:
            self._revision, self._seen, self._tail = revision, number, tail[:DIGEST]
            self._kept.clear()

    def drop(self, why: str, number: int | None = None) -> int:
        """Go back to the exit as it was shipped, if that one, or any, is in use; its number."""
        with self._lock:
            revision = self._revision
            if revision is None or number not in (None, revision.number):
                return 0
            self._revision = None
            self._kept.clear()
        logger.warning("revision %d is dropped: %s", revision.number, why)
        return revision.number

    def compare(self, view: View, answer: np.ndarray) -> int:
        """The server's logits [K] for a frame. Number of the revision that goes for it, or 0."""
        right = int(answer.argmax())
        with self._lock:
            if int(view.shipped.argmax()) != right or not 0 < view.number == self.used:
                return 0
            self._kept.append(int(view.logits.argmax()) == right)
            kept, count = sum(self._kept), len(self._kept)
        if count < LEAST or kept >= KEPT * count - count**0.5:  # two standard deviations
            return 0
        words = f"of {count} answers that exit and server agree on it contradicts {count - kept}"
        return self.drop(words, view.number)

    def blend(self, view: View, answer: np.ndarray, *, pictured: bool) -> np.ndarray:
        """The server's logits [K] for a frame -> what to answer, with what a revision knows.

        pictured: the server saw the picture, and errs otherwise than exit and tail. Where no
        revision was used for the frame, or it is dropped by now, or the answer is no number,
        `answer` itself.
        """
        if not view.number or not self.used or not np.isfinite(answer).all():
            return answer
        heat = self.record.temperature
        if not pictured:
            answer = corrected(answer, view.shipped, view.logits, heat)
        return averaged(answer, view.logits, heat)

    def _opened(self, number: int, width: str, sha256: bytes, body: bytes) -> Revision:
        if hashlib.sha256(body).digest() != sha256:
            raise PacketError(f"revision {number} has another sha256 than it is said to have")
        revision = Revision.decode(body, self.manifest)
        found = (revision.number, revision.width, revision.plan)
        wanted = (number, self.width.name, self.plan.name)
        if width != self.width.name or found != wanted:
            raise PacketError(f"revision is {found}, wanted {wanted}")
        return revision


def lesson(
    manifest: Manifest, width: Width, codecs: Mapping[str, Codec | Jpeg]
) -> tuple[Plan, Codec]:
    """The plan of that width whose codes teach: the default one, else the most accurate."""
    found = [
        (plan.name == manifest.default_plan, plan.accuracy or 0.0, plan, codec)
        for plan in manifest.plans
        if plan.place == "cloud" and plan.width == width.name
        for codec in [codecs[plan.name]]
        if isinstance(codec, Codec) and codec.codes
    ]
    if not found:
        raise SplitrtError(
            f"width {width.name!r} of {manifest.name} has no plan of integer codes\n"
            "help: leave out adapt, or export the model with rungs of 8 bits or less"
        )
    _, _, plan, codec = max(found, key=lambda one: one[:2])
    return plan, codec
