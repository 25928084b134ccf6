"""Before anything runs: cut a model, train its bottleneck, export it, score it (needs torch)."""

from splitrt.core.layouts import Layout
from splitrt.core.sizes import Sizes
from splitrt.train.cut import Pixels, Split, another, cut
from splitrt.train.distill import Schedule, distill, fast, holed, varied
from splitrt.train.divide import divide
from splitrt.train.early import early
from splitrt.train.exits import calibrate, calibration_error
from splitrt.train.export import About, export
from splitrt.train.frames import Frames, read
from splitrt.train.free import Free
from splitrt.train.muon import Muon
from splitrt.train.plot import draw
from splitrt.train.precision import precision
from splitrt.train.score import score
from splitrt.train.shards import shard
from splitrt.train.similar import similar
from splitrt.train.slim import Student, scaled

__all__ = [
    "About",
    "Frames",
    "Free",
    "Layout",
    "Muon",
    "Pixels",
    "Schedule",
    "Sizes",
    "Split",
    "Student",
    "another",
    "calibrate",
    "calibration_error",
    "cut",
    "distill",
    "divide",
    "draw",
    "early",
    "export",
    "fast",
    "holed",
    "precision",
    "read",
    "scaled",
    "score",
    "shard",
    "similar",
    "varied",
]
