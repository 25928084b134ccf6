"""Split inference: a model's head on the device, its tail on a server; the device's half.

`splitrt.cloud` has the server and `splitrt.train` the tools; both need torch, this does not.
"""

from splitrt.core.boxes import Boxes, found
from splitrt.core.manifest import Manifest, Similar
from splitrt.core.result import Result, Timings
from splitrt.core.sample import Sampling
from splitrt.core.spoken import Difference, Tally, Token
from splitrt.daemon.client import connect
from splitrt.edge.camera import Camera
from splitrt.edge.capture import Frame, Pictures
from splitrt.edge.chat import Chat
from splitrt.edge.decoder import Decoder, Step
from splitrt.edge.edge import Edge
from splitrt.edge.pan import Pan
from splitrt.edge.pilot import Caps
from splitrt.edge.source import source
from splitrt.edge.trace import traced
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
    "Boxes",
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
    "Manifest",
    "ModelError",
    "ModelMismatch",
    "PacketError",
    "Pan",
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
    "connect",
    "found",
    "source",
    "traced",
]
