"""A peer-to-peer network in which volunteers' machines train and serve language models together.

    with shoal.connect() as client:
        print(client.generate("It was a dark and"))

Everything is loaded on first use: importing shoal costs milliseconds and brings neither torch nor hivemind.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .swarm.client.async_client import AsyncClient, AsyncStream
    from .swarm.client.connect import aconnect, connect
    from .swarm.client.results import Result
    from .swarm.client.sync_client import Client, Stream
    from .swarm.errors import (
        ContextTooLong,
        LocalFault,
        ModelNotServable,
        OutOfMemory,
        PeerUnreachable,
        Refused,
        RemoteFault,
        ShoalError,
        StreamBroken,
        SwarmUnreachable,
        TimedOut,
        Unavailable,
        UsageError,
        VersionMismatch,
    )
    from .swarm.sessions.generation import Failover, Route, RouteHop, RoutePrefill, ServedModel
    from .swarm.text.model_choice import UnknownModel
    from .swarm.text.pieces import Piece, TokenLogprob, Usage

_HOMES = {
    "swarm.client.async_client": ("AsyncClient", "AsyncStream"),
    "swarm.client.connect": ("aconnect", "connect"),
    "swarm.client.results": ("Result",),
    "swarm.client.sync_client": ("Client", "Stream"),
    "swarm.errors": (
        "ContextTooLong",
        "LocalFault",
        "ModelNotServable",
        "OutOfMemory",
        "PeerUnreachable",
        "Refused",
        "RemoteFault",
        "ShoalError",
        "StreamBroken",
        "SwarmUnreachable",
        "TimedOut",
        "Unavailable",
        "UsageError",
        "VersionMismatch",
    ),
    "swarm.sessions.generation": ("Failover", "Route", "RouteHop", "RoutePrefill", "ServedModel"),
    "swarm.text.model_choice": ("UnknownModel",),
    "swarm.text.pieces": ("Piece", "TokenLogprob", "Usage"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Client",
    "ContextTooLong",
    "Failover",
    "LocalFault",
    "ModelNotServable",
    "OutOfMemory",
    "PeerUnreachable",
    "Piece",
    "Refused",
    "RemoteFault",
    "Result",
    "Route",
    "RouteHop",
    "RoutePrefill",
    "ServedModel",
    "ShoalError",
    "Stream",
    "StreamBroken",
    "SwarmUnreachable",
    "TimedOut",
    "TokenLogprob",
    "Unavailable",
    "UnknownModel",
    "Usage",
    "UsageError",
    "VersionMismatch",
    "__version__",
    "aconnect",
    "connect",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
