"""How a place on the network is spelled."""

from __future__ import annotations

import re

from splitrt.errors import LinkError

HELP = (
    "help: host:port, several with commas, dns:///name:port for all addresses of a name, "
    "or fleet://host:port for all servers of a fleet"
)


def host_and_port(text: str, where: str) -> tuple[str, int]:
    """The two of host:port or [address]:port. LinkError, which names the text, if they are not."""
    found = re.fullmatch(r"\[([0-9a-fA-F:.]+)\]:(\d{1,5})|([^\s:/\[\]]+):(\d{1,5})", where)
    if found is None or not 0 < int(found[2] or found[4]) < 65536:
        raise LinkError(f"{text}: {where!r} is no host and port\n{HELP}")
    return found[1] or found[3], int(found[2] or found[4])
