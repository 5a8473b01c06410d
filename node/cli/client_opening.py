"""The way from a command to the swarm: the node of this home, another node's API, or the peers themselves."""

from pathlib import Path

import shoal
from shoal.swarm.errors import UsageError
from shoal.swarm.home import Home

from .invite_text import read_line
from .node_api import running_api
from .node_log import CLIENT, start_log


def open_client(folder: Path | None, invite: str | None, api: str | None, api_key: str | None) -> shoal.Client:
    """invite: makes a thin client, with no node. api: of a node elsewhere

    raises: SwarmUnreachable, Refused, UsageError
    """
    if invite is not None and api:
        raise UsageError("--invite asks the peers, --api asks a node: give one of them")
    home = Home.find(folder)
    if api:
        return shoal.connect(api, api_key=api_key, home=home.root)
    line = None if invite is None else read_line(invite)
    node = None if line else running_api(home)
    if node is not None:
        return shoal.connect(node.facts.api, home=home.root)
    if line or home.swarm.exists():
        home.prepare()
        start_log(home.logs, CLIENT)
    return shoal.connect(line, home=home.root)
