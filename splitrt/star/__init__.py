"""One model over several weak devices: a hub and its spokes, each with a part of every layer.

with Star("models/in-3", listen="0.0.0.0:50710") as star:         # the hub, of `split --star 3`
    star.gather(2)
    for token in star.answer(ids): ...
serve(join="hub:50710")                                           # on each spoke

Below it, sums that are the same bits on all devices:

hub = Hub("127.0.0.1:0", Terms(devices=3, hidden=4096))     # on one, then hub.gather()
spoke = Spoke("hub:50710", Terms(devices=3, hidden=4096), device=1)     # on each other
whole = hub.reduce(part)                     # on all at once
"""

from splitrt.star.figures import Figures
from splitrt.star.greet import Terms
from splitrt.star.meet import Hub, Spoke
from splitrt.star.pace import EXACT, WAYS, fastest, measure, settle
from splitrt.star.point import Point, serve
from splitrt.star.reduce import Way
from splitrt.star.room import Room
from splitrt.star.seal import Seal
from splitrt.star.star import Star

__all__ = [
    "EXACT",
    "WAYS",
    "Figures",
    "Hub",
    "Point",
    "Room",
    "Seal",
    "Spoke",
    "Star",
    "Terms",
    "Way",
    "fastest",
    "measure",
    "serve",
    "settle",
]
