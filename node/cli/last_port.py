"""The port for peers of the last run, taken again: the others look for this node where they last saw it."""

import re
from collections.abc import Iterable

from shoal.swarm import private_file
from shoal.swarm.errors import ShoalError, UsageError
from shoal.swarm.home import Home
from shoal.swarm.transports.p2pd import refuse_port_in_use

FILE = "last_port"


def last_port(home: Home, host: str) -> int:
    """0, any free one, when there was no run or somebody else has the port now."""
    try:
        data = private_file.read(home.root / FILE)
        port = int(data) if data else 0
        if not 0 < port < 1 << 16:
            return 0
        refuse_port_in_use(host, port)
    except (UsageError, ValueError):
        return 0
    return port


def remember_port(home: Home, addresses: Iterable[str]) -> None:
    """addresses: multiaddrs that the node listens on"""
    ports = {int(found[1]) for address in addresses if (found := re.search(r"^/ip[46]/[^/]+/tcp/(\d+)", address))}
    if len(ports) == 1:  # a mapped port outside would be a second one
        try:
            private_file.write(home.root / FILE, f"{ports.pop()}\n".encode())
        except ShoalError:
            return  # only a convenience
