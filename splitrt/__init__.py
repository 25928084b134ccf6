"""Split inference: a model's head on the device, its tail on a server; the device's half.

`splitrt.cloud` has the server and `splitrt.train` the tools; both need torch, this does not.
"""

from splitrt.core.manifest import Similar
from splitrt.core.result import Result, Timings
from splitrt.core.sample import Sampling
from splitrt.core.spoken import Difference, Tally, Token
from splitrt.edge.capture import Camera, Frame, Pictures
from splitrt.edge.chat import Chat
from splitrt.edge.decoder import Decoder, Step
from splitrt.edge.edge import Edge
from splitrt.edge.pilot import Caps
from splitrt.edge.trust import Trust
from splitrt.errors import (
    DeadlineMissed,
    LinkDown,
    LinkError,
    ModelError,
    ModelMismatch,
    PacketError,
    ProfileError,
    Refused,
    SplitrtError,
)

__all__ = [
    "Camera",
    "Caps",
    "Chat",
    "DeadlineMissed",
    "Decoder",
    "Difference",
    "Edge",
    "Frame",
    "LinkDown",
    "LinkError",
    "ModelError",
    "ModelMismatch",
    "PacketError",
    "Pictures",
    "ProfileError",
    "Refused",
    "Result",
    "Sampling",
    "Similar",
    "SplitrtError",
    "Step",
    "Tally",
    "Timings",
    "Token",
    "Trust",
]
