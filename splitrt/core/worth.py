"""Which frames teach: neither unreliable nor uninformative, and unlike what was sent already.

An entropy window and a running mean, as EATA (Niu et al. 2022) selects samples and CEMA (Chen et
al. 2024) uploads; the upper bound follows the stream's own entropy. Pure: state in, state out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

# Shares of ln K, the largest entropy of K classes. CEMA's are .4 and .02, but its device and server
# read the same picture; here what the exit hardly knows is what the tail has to teach: LOG.md.
TOP = 0.9  # above, a frame is unreliable (E_max)
BOTTOM = 0.3  # below, it says nothing new (E_min)
ALIKE = 0.5  # cosine of its probabilities to the mean of those sent; EATA's is .4 for ten classes
LOOKED = 8  # one frame in so many is not asked whether it is redundant: to a collapsed exit all are
FADING = 0.99  # of the mean entropy, a frame
KEPT = 0.9  # of the mean of probabilities, a frame that is sent
MEMORY = 0.95  # of the mean mark by which a revision is switched on and off, a frame
LONG = 0.995  # of the one that the server is told
FIRST = 32  # frames whose mean entropy is the measure for later ones

Why = Literal["worth", "unreliable", "uninformative", "redundant"]


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """What a device remembers of its frames: from `Stream()` on, the one after each frame.

    top: of the entropy window, a share of ln K.  entropy: running mean, a share of ln K.
    sent: mean probabilities [K] of frames worth sending.  mean: of all frames' marks [C], as of
    now; level: over a longer time.
    """

    frames: int = 0
    top: float = TOP
    entropy: float = 0.0
    sent: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    level: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


def weigh(stream: Stream, shares: np.ndarray, marked: np.ndarray) -> tuple[Why, Stream]:
    """Probabilities [K] of the exit's answer and the frame's `mark` [C] -> why, what is kept.

    Only "worth" is sent. `stream` itself is not changed.
    """
    now = entropy(shares)
    stream = _followed(stream, now, marked)
    if now > stream.top:
        return "unreliable", stream
    if now < BOTTOM:
        return "uninformative", stream
    asked = stream.sent.size and stream.frames % LOOKED
    if asked and _cosine(stream.sent, shares) > ALIKE:
        return "redundant", stream
    sent = KEPT * stream.sent + (1 - KEPT) * shares if stream.sent.size else shares
    return "worth", replace(stream, sent=sent)


def entropy(shares: np.ndarray) -> float:
    """Of probabilities [K], as a share of ln K: 0 is sure, 1 knows nothing."""
    if len(shares) < 2:
        return 0.0
    found = -(shares * np.log(np.maximum(shares, 1e-300))).sum()
    return float(found / np.log(len(shares)))


def _followed(stream: Stream, now: float, marked: np.ndarray) -> Stream:
    """The running means with one frame more, and the window's top with them.

    E_max(t) = E_max(t-1) · mean entropy(t) / mean entropy(t-1), never above where it began: as
    the exit grows surer, what it is unsure of counts as unreliable earlier.
    """
    frames = stream.frames + 1
    fading = min(FADING, 1 - 1 / frames)  # the plain mean at first
    mean = fading * stream.entropy + (1 - fading) * now
    top = stream.top
    if frames > FIRST and stream.entropy > 0:
        top = min(TOP, top * mean / stream.entropy)
    return replace(
        stream,
        frames=frames,
        top=top,
        entropy=mean,
        mean=_faded(stream.mean, marked, min(MEMORY, 1 - 1 / frames)),
        level=_faded(stream.level, marked, min(LONG, 1 - 1 / frames)),
    )


def _faded(mean: np.ndarray, now: np.ndarray, memory: float) -> np.ndarray:
    return memory * mean + (1 - memory) * now if mean.size else now


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))
