"""One model over several weak devices: a hub and its spokes, each with a part of every layer.

hub = Hub("127.0.0.1:0", Terms(devices=3, hidden=4096))     # on one, then hub.gather()
spoke = Spoke("hub:50710", Terms(devices=3, hidden=4096), device=1)     # on each other
whole = hub.reduce(part)                     # on all at once: the same bits everywhere
"""

from splitrt.star.greet import Terms
from splitrt.star.meet import Hub, Spoke
from splitrt.star.pace import EXACT, WAYS, fastest, measure, settle
from splitrt.star.reduce import Way
from splitrt.star.seal import Seal

__all__ = ["EXACT", "WAYS", "Hub", "Seal", "Spoke", "Terms", "Way", "fastest", "measure", "settle"]
