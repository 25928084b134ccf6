"""Before anything runs: cut a model, train its bottleneck, export it, score it (needs torch)."""

from splitrt.train.cut import Pixels, Split, cut
from splitrt.train.distill import Schedule, distill, fast, varied
from splitrt.train.exits import calibration_error
from splitrt.train.export import About, export
from splitrt.train.frames import Frames, read
from splitrt.train.score import score

__all__ = [
    "About",
    "Frames",
    "Pixels",
    "Schedule",
    "Split",
    "calibration_error",
    "cut",
    "distill",
    "export",
    "fast",
    "read",
    "score",
    "varied",
]
