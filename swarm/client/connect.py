"""Which way to the swarm: an address, the node that runs here, or straight to the peers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from shoal.swarm.errors import UsageError
from shoal.swarm.home import Home
from shoal.swarm.members.invite import PREFIX

from .async_client import AsyncClient
from .backend import Backend
from .sync_client import Client

_PROBE_S = 2.0


def connect(
    target: str | None = None,
    *,
    model: str | None = None,
    api_key: str | None = None,
    home: str | Path | None = None,
) -> Client:
    """A client that is open at once; see `aconnect` for the arguments.

    raises: SwarmUnreachable, Refused, UsageError
    """
    return Client(lambda: open_backend(target, api_key, home), model)


def aconnect(
    target: str | None = None,
    *,
    model: str | None = None,
    api_key: str | None = None,
    home: str | Path | None = None,
) -> AsyncClient:
    """target: an address (`http://127.0.0.1:8411`), an invite (`shoal1:...`), or None for the swarm of this home:
    through its node when one runs, else straight to its peers.

    model: for every request that names none
    api_key: of the address; without it this home's own, which is sent to loopback only
    home: the node's data folder; else SHOAL_HOME, else the user's
    """
    return AsyncClient(lambda: open_backend(target, api_key, home), model)


@asynccontextmanager
async def open_backend(
    target: str | None, api_key: str | None, home_folder: str | Path | None
) -> AsyncIterator[Backend]:
    home = Home.find(None if home_folder is None else Path(home_folder))
    if target is None:
        running = await _running_node(home)
        if running is not None:
            target = running
    if target is not None and target.startswith(("http://", "https://")):
        from .http_backend import HttpBackend  # a third of a second that peers do not need

        async with HttpBackend(target, api_key or _own_key(home, target)) as backend:
            yield backend
    elif target is None or target.startswith(PREFIX):
        from .peer_backend import open_peer_backend  # hivemind, which a client of an address does not need

        async with open_peer_backend(home, target) as peers:
            yield peers
    else:
        raise UsageError(f"cannot connect to {target!r}: give an address (http://...) or an invite ({PREFIX}...)")


async def _running_node(home: Home) -> str | None:
    """The API address in node.json, if something answers there: a killed node leaves its file behind."""
    facts = home.read_facts()
    if facts is None or not facts.api:
        return None
    from .http_backend import HttpBackend

    async with HttpBackend(facts.api, None) as probe:
        return facts.api if await probe.healthy(_PROBE_S) else None


def _own_key(home: Home, address: str) -> str | None:
    """This home's key is nobody else's business."""
    host = address.split("://", 1)[1].split("/", 1)[0].rsplit("@", 1)[-1].rsplit(":", 1)[0]
    local = host in ("localhost", "[::1]") or host.startswith("127.")
    return home.api_key() if local and home.api_key_file.exists() else None
