"""What a node shall be: the flags of `up` and `join` together with the settings."""

import platform
import re
from typing import Any

import psutil

from shoal.node.memory_size import parse_size
from shoal.node.options import DTYPES, NodeOptions
from shoal.node.settings import Settings, load_settings
from shoal.node.training.limits_units import bits_per_second
from shoal.swarm.errors import UsageError
from shoal.swarm.home import Home
from shoal.swarm.transfer.block_transfer_donor import DEFAULT_RATE_BYTE_S
from shoal.swarm.transports.p2pd import NetworkOptions, refuse_port_in_use
from shoal.swarm.units import check_syntax

from .last_name import MAX_NAME_LENGTH, is_name, last_name
from .last_port import last_port

_SOME_BYTES = 1 << 40  # for the syntax of a share of the memory any amount will do
_ZERO = re.compile(r"\s*0+(\.0*)?\s*[a-zA-Z/]*\s*")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
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
    name = settings.name or last_name(home) or platform.node().split(".")[0] or "node"
    if not is_name(name):
        raise UsageError(f"--name takes 1 to {MAX_NAME_LENGTH} printable characters")
    if settings.swarm_name and not settings.swarm_name.isprintable():
        raise UsageError("--swarm-name takes printable characters only")
    if settings.gateway_only and (settings.layers or flags.get("model")):
        raise UsageError("--gateway-only hosts nothing; leave out the model and --layers, or --gateway-only")
    _check_words(settings)
    refuse_port_in_use(settings.host, 0)
    if settings.gateway_only and flags.get("follow"):
        raise UsageError("--gateway-only hosts nothing that could follow a run; leave out --follow")
    return NodeOptions(
        home=home,
        name=name,
        model=None if settings.gateway_only else settings.model,
        layers=settings.layers,
        rebalance=settings.rebalance,
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
        ledger=settings.ledger,
        kv_disk=settings.kv_disk,
        kv_memory=settings.kv_memory,
        standby_bytes=parse_size(settings.standby_memory, psutil.virtual_memory().available),
        drain_limit_s=settings.drain_limit,
        upload_byte_s=_upload_byte_s(settings.upload_limit),
        follow=None if settings.gateway_only else settings.follow,
    )


def _upload_byte_s(text: str | None) -> float | None:
    """None for nothing. raises: UsageError"""
    if text is None:
        return DEFAULT_RATE_BYTE_S
    return None if _ZERO.fullmatch(text) else bits_per_second(text, "--upload-limit") / 8


def _check_words(settings: Settings) -> None:
    """What is wrong with any model on any machine is told before an invite is used. raises: UsageError"""
    if settings.layers is not None:
        try:
            check_syntax(settings.layers)
        except ValueError as error:
            raise UsageError(f"--layers: {error}") from error
    if settings.dtype not in ("auto", *DTYPES):
        raise UsageError(f"--dtype takes auto, {', '.join(DTYPES)}, not {settings.dtype!r}")
    if not _DEVICE.fullmatch(settings.device):
        raise UsageError(f"--device takes auto, cpu, cuda or cuda:1, not {settings.device!r}")
    for size in (settings.max_memory, settings.kv_disk, settings.kv_memory):
        if size is not None:
            parse_size(size, _SOME_BYTES)
