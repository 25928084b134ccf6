"""What can go wrong, as one tree; every message says what was found, what was wanted, the way out.

SplitrtError
├── ModelError            the files of a model directory
│   └── ModelMismatch     edge and server hold different models
├── PacketError           what arrived is not what was promised
├── ProfileError          a device profile is wrong or missing
└── LinkError             the way to the server
    ├── LinkDown          nobody answered
    ├── DeadlineMissed    the answer came too late to be of use
    └── Refused           the server is full, or does not know you
"""

from __future__ import annotations


class SplitrtError(Exception):
    """The root: what splitrt raises on purpose."""


class ModelError(SplitrtError):
    """The files of a model directory, or a model that cannot be cut as asked."""


class ModelMismatch(ModelError):
    """Edge and server hold different models."""


class PacketError(SplitrtError):
    """What arrived is not what was promised."""


class ProfileError(SplitrtError):
    """A device profile is wrong or missing."""


class LinkError(SplitrtError):
    """The way to the server."""


class LinkDown(LinkError):
    """Nobody answered."""


class DeadlineMissed(LinkError):
    """The answer came too late to be of use."""


class Refused(LinkError):
    """The server is full, or does not know you."""
