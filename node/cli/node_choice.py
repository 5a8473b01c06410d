"""What a node shall be: the flags of `up` and `join` together with the settings."""

import platform
import re
from typing import Any

from shoal.node.options import NodeOptions
from shoal.node.settings import load_settings
from shoal.swarm.errors import UsageError
from shoal.swarm.home import Home
from shoal.swarm.transports.p2pd import NetworkOptions

from .last_port import last_port

MAX_NAME_LENGTH = 56  # "NAME's swarm" has to fit too
_ADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/[^/\s]+/\S+")


def node_options(home: Home, flags: dict[str, Any], invite: str | None) -> NodeOptions:
    """flags: by the names of the settings; raises UsageError"""
    settings = load_settings(home, flags)
    for address in settings.announce:
        if not _ADDRESS.fullmatch(address):
            raise UsageError(f"--announce takes a multiaddr such as /ip4/203.0.113.7/tcp/4001, not {address!r}")
    for address in settings.relay:
        if not _ADDRESS.fullmatch(address) or "/p2p/" not in address:
            raise UsageError(f"--relay takes a multiaddr that ends in /p2p/ and a PeerID, not {address!r}")
    name = settings.name or platform.node().split(".")[0] or "node"
    if not name.isprintable() or len(name) > MAX_NAME_LENGTH or not name.strip():
        raise UsageError(f"--name takes 1 to {MAX_NAME_LENGTH} printable characters")
    if settings.swarm_name and not settings.swarm_name.isprintable():
        raise UsageError("--swarm-name takes printable characters only")
    if settings.gateway_only and (settings.layers or flags.get("model")):
        raise UsageError("--gateway-only hosts nothing; leave out the model and --layers, or --gateway-only")
    if settings.gateway_only and flags.get("follow"):
        raise UsageError("--gateway-only hosts nothing that could follow a run; leave out --follow")
    return NodeOptions(
        home=home,
        name=name,
        model=None if settings.gateway_only else settings.model,
        layers=settings.layers,
        dtype=settings.dtype,
        device=settings.device,
        max_memory=settings.max_memory,
        threads=settings.threads,
        network=NetworkOptions(
            host=settings.host,
            port=settings.port or last_port(home, settings.host),
            announce=settings.announce,
            relays=settings.relay,
            nat=settings.nat,
        ),
        api_host=settings.api_host,
        api_port=settings.api_port,
        swarm_name=settings.swarm_name,
        public=settings.public,
        invite=invite,
        follow=None if settings.gateway_only else settings.follow,
    )
